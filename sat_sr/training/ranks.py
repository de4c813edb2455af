"""Where the ranks of a training meet, and their process group. Which of them this is: sat_sr/programs/launcher.py."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sat_sr.programs.launcher import Process, require

BASE_PORT = 10000  # MASTER_PORT under Slurm: this plus the last four digits of the job id
# What must be set as well for ranks to meet.
_MEETING = {"torchrun": ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"), "Slurm": ("SLURM_LOCALID",)}


@dataclass(frozen=True)
class Ranks(Process):
    """This process among all of them, and where they meet."""

    master_addr: str = "127.0.0.1"
    master_port: int = 0

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

    Under Slurm MASTER_ADDR is the first host of the step, for which srun may take a part of the job's, and MASTER_PORT
    is BASE_PORT + the last four digits of SLURM_JOBID, unless they are set. Raises ValueError when a launcher's
    variables are incomplete or not numbers.
    """
    environment = os.environ if environment is None else environment
    process = Process.of(environment)
    require(environment, process.source, _MEETING.get(process.source, ()))
    address, port = environment.get("MASTER_ADDR"), _port(environment)
    if process.source == "Slurm":
        job_id = environment.get("SLURM_JOB_ID", environment.get("SLURM_JOBID", "0"))
        address = address or _first_of_step(environment)
        port = port or BASE_PORT + int(job_id[-4:])
    return Ranks(**asdict(process), master_addr=address or "127.0.0.1", master_port=port or _free_port())


def _first_of_step(environment: Mapping[str, str]) -> str:
    for name in ("SLURM_STEP_NODELIST", "SLURM_NODELIST"):
        if environment.get(name):
            return first_host(environment[name])
    raise ValueError("started by Slurm, but SLURM_NODELIST is not set: set MASTER_ADDR, or start the ranks by srun")


def first_host(node_list: str) -> str:
    """First host name of a Slurm node list such as "node[01-04],other", by `scontrol show hostnames`."""
    if not shutil.which("scontrol"):
        raise ValueError(f"SLURM_NODELIST={node_list!r} but there is no scontrol here to read it: set MASTER_ADDR")
    shown = subprocess.run(["scontrol", "show", "hostnames", node_list], capture_output=True, text=True, check=False)
    hosts = shown.stdout.split()
    if shown.returncode or not hosts:
        raise ValueError(f"scontrol cannot read SLURM_NODELIST={node_list!r} ({shown.stderr.strip()}): set MASTER_ADDR")
    return hosts[0]


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


def gather(value: Any) -> list[Any]:
    """What each rank has, in their order; all of them call it together."""
    import torch.distributed as dist

    of_ranks = [None] * dist.get_world_size()
    dist.all_gather_object(of_ranks, value)
    return of_ranks


def wait_for_all() -> None:
    """Until all ranks are here.

    One alone does not ask: DeepSpeed makes its group without a device, and PyTorch warns of a barrier there, on CUDA.
    """
    import torch.distributed as dist

    if dist.get_world_size() > 1:
        dist.barrier()
