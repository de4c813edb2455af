"""The device that a name stands for."""

from __future__ import annotations

import torch


def resolve_device(name: str) -> torch.device:
    """'auto' -> CUDA, else MPS, else the CPU; anything else as torch takes it.

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
    return device
