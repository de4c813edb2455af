"""Where the ranks of a training meet, and their process group. Which of them this is: sat_sr/programs/launcher.py."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from sat_sr.programs.launcher import Rank

BASE_PORT = 10000  # MASTER_PORT under Slurm: this plus the last four digits of the job id
_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_SLURM = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS", "SLURM_NODELIST")


@dataclass(frozen=True)
class Ranks:
    """This process among all of them, and where they meet."""

    rank: int
    local_rank: int
    world_size: int
    master_addr: str
    master_port: int
    source: str  # "torchrun", "Slurm" or "single process"

    def to_environment(self) -> dict[str, str]:
        """The variables that torch.distributed, DeepSpeed and SAT read."""
        return {
            "RANK": str(self.rank),
            "LOCAL_RANK": str(self.local_rank),
            "WORLD_SIZE": str(self.world_size),
            "MASTER_ADDR": self.master_addr,
            "MASTER_PORT": str(self.master_port),
        }


def find_ranks(environment: Mapping[str, str] | None = None) -> Ranks:
    """Reads the launcher's variables: torchrun's if there are any, else a Slurm step's (srun), else one process.

    Under Slurm MASTER_ADDR is the first host of SLURM_NODELIST and MASTER_PORT is BASE_PORT + the last four digits of
    SLURM_JOBID, unless they are set. Raises ValueError when a launcher's variables are incomplete or no numbers.
    """
    environment = os.environ if environment is None else environment
    if environment.get("WORLD_SIZE") or environment.get("RANK"):
        _require(environment, _TORCHRUN, "torchrun")
    elif environment.get("SLURM_STEP_ID", "batch").isdecimal() and environment.get("SLURM_PROCID"):
        _require(environment, _SLURM, "Slurm")
    rank = Rank.of(environment)
    address, port = environment.get("MASTER_ADDR"), _port(environment)
    if rank.source == "Slurm":
        job_id = environment.get("SLURM_JOB_ID", environment.get("SLURM_JOBID", "0"))
        address, port = address or first_host(environment["SLURM_NODELIST"]), port or BASE_PORT + int(job_id[-4:])
    source = rank.source or "single process"
    return Ranks(rank.number, rank.local, rank.count, address or "127.0.0.1", port or _free_port(), source)


def first_host(node_list: str) -> str:
    """First host name of a Slurm node list such as "node[01-04],other", by `scontrol show hostnames`."""
    if not shutil.which("scontrol"):
        raise ValueError(f"SLURM_NODELIST={node_list!r} but there is no scontrol here to read it: set MASTER_ADDR")
    shown = subprocess.run(["scontrol", "show", "hostnames", node_list], capture_output=True, text=True, check=False)
    hosts = shown.stdout.split()
    if shown.returncode or not hosts:
        raise ValueError(f"scontrol cannot read SLURM_NODELIST={node_list!r} ({shown.stderr.strip()}): set MASTER_ADDR")
    return hosts[0]


def _require(environment: Mapping[str, str], names: tuple[str, ...], launcher: str) -> None:
    missing = [name for name in names if not environment.get(name)]
    if missing:
        raise ValueError(f"started by {launcher}, but {', '.join(missing)} is not set: start all ranks by one launcher")


def _port(environment: Mapping[str, str]) -> int | None:
    port = environment.get("MASTER_PORT")
    if port and not (port.isdecimal() and 0 < int(port) < 65536):
        raise ValueError(f"MASTER_PORT={port!r}: must be a port's number, such as 29500")
    return int(port) if port else None


def _free_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start_process_group(ranks: Ranks, use_cuda: bool, timeout_minutes: float) -> None:
    """Opens torch.distributed (NCCL on CUDA, gloo on the CPU) for all ranks, through DeepSpeed.

    Call before anything imports DeepSpeed. `timeout_minutes` bounds how long a rank waits for the others in one
    exchange; a rank that died breaks its connections at once, so this only matters for one that hangs.
    """
    from datetime import timedelta

    os.environ.update(ranks.to_environment())
    if not use_cuda:
        os.environ["DS_ACCELERATOR"] = "cpu"

    import deepspeed
    import torch

    if use_cuda:
        torch.cuda.set_device(ranks.local_rank)
    else:
        # DeepSpeed would compile a shared-memory all-reduce with g++ here. Besides the wait, its ranks spin on flags in
        # shared memory: if one dies the others never return. gloo sees the closed connection and fails.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        dist_backend="nccl" if use_cuda else "gloo",
        auto_mpi_discovery=False,
        verbose=False,
        timeout=timedelta(minutes=timeout_minutes),
        rank=ranks.rank,
        world_size=ranks.world_size,
    )
