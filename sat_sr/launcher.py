"""Which process this is among those that torchrun or Slurm started, for both programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Rank:
    """This process: number of count, and of local_count on this host; source is "torchrun", "Slurm" or "" (alone)."""

    number: int = 0
    count: int = 1
    local: int = 0
    local_count: int = 1
    source: str = ""

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Rank:
        """From torchrun's variables, else from those of a Slurm step. ValueError when they are no numbers."""

        def read(*names: str, default: int) -> int:
            name = next((name for name in names if environment.get(name)), None)
            if name is None:
                return default
            value = environment[name]
            if not value.isdecimal():
                raise ValueError(f"{name}={value!r} in the environment: must be a number; unset it to run alone")
            return int(value)

        if environment.get("WORLD_SIZE") and environment.get("RANK"):
            source, names = "torchrun", ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        elif environment.get("SLURM_PROCID") and environment.get("SLURM_NTASKS"):
            # A batch script and an interactive shell have both variables, too, but run once: no step, or one of a task.
            in_job = environment.get("SLURM_JOB_ID") or environment.get("SLURM_JOBID")
            if in_job and not environment.get("SLURM_STEP_ID", "batch").isdecimal():
                return cls()
            tasks = "SLURM_STEP_NUM_TASKS" if environment.get("SLURM_STEP_NUM_TASKS") else "SLURM_NTASKS"
            source, names = "Slurm", ("SLURM_PROCID", tasks, "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE")
        else:
            return cls()
        number, count = read(names[0], default=0), read(names[1], default=1)
        if not number < count:
            raise ValueError(f"{names[0]}={number} with {names[1]}={count}: must be below; unset both to run alone")
        return cls(number, count, read(names[2], default=0), read(names[3], default=1), source)
