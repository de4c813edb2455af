"""The device that a name stands for, and the type in which a network computes there."""

from __future__ import annotations

import os

import torch

from sat_sr.model.stock import before_ampere
from sat_sr.programs.cores import own_cores


def resolve_device(name: str) -> torch.device:
    """'auto' -> CUDA, else MPS, else the CPU; other names as PyTorch has them.

    Raises ValueError for a device that is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r}: write auto, cpu, cuda, cuda:1 or mps") from error
    available = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}.get(device.type)
    if available and not available():
        raise ValueError(f"device {name!r} is not available on this machine: use --device auto or cpu")
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        last = "cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise ValueError(f"device {name!r} is not available on this machine: it has {last}")
    return device


def share_cores(processes: int) -> None:
    """Use a part of this host's cores, one of `processes` that compute on it at the same time.

    With threads for all cores in each, they wait for each other at every parallel loop. OMP_NUM_THREADS takes
    precedence, unless it is the 1 that torchrun sets by default.
    """
    threads, by_torchrun = os.environ.get("OMP_NUM_THREADS"), "TORCHELASTIC_RUN_ID" in os.environ
    if processes == 1 or (threads and not (by_torchrun and threads == "1")):
        return
    ours = own_cores()
    # Slurm may have divided the cores of the job among its tasks already.
    shared = int(on_node) if (on_node := os.environ.get("SLURM_CPUS_ON_NODE", "")).isdecimal() else ours
    torch.set_num_threads(max(1, min(ours, shared // processes)))


def default_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on CUDA, else float32: CPUs compute bfloat16 slower, and CUDA devices before Ampere not at all. float16
    would be fast on these, but weights that were trained in bfloat16 may leave its range."""
    return torch.bfloat16 if device.type == "cuda" and not before_ampere(device) else torch.float32
