"""Which process this is among those that torchrun or Slurm started, for both programs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Process:
    """This process among `world_size`, `local_world_size` of them on this host; source: "torchrun", "Slurm" or "single
    process"."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    source: str = "single process"

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Process:
        """From torchrun's variables, else from those of a Slurm step. ValueError when they cannot be."""

        def read(name: str, default: int, least: int = 0) -> int:
            value = environment.get(name) or str(default)
            if not value.isdecimal() or int(value) < least:
                raise ValueError(
                    f"{name}={value!r} in the environment: must be a number of at least {least}; unset it to run alone"
                )
            return int(value)

        if environment.get("WORLD_SIZE") or environment.get("RANK"):
            source, names = "torchrun", ("RANK", "WORLD_SIZE", "LOCAL_RANK")
            local_world_size = read("LOCAL_WORLD_SIZE", 1, least=1)
        elif _in_slurm_step(environment):
            tasks = "SLURM_STEP_NUM_TASKS" if environment.get("SLURM_STEP_NUM_TASKS") else "SLURM_NTASKS"
            source, names = "Slurm", ("SLURM_PROCID", tasks, "SLURM_LOCALID")
            on_nodes = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE") or "1"
            local_world_size = _tasks_on_node(on_nodes, read("SLURM_NODEID", 0))
        else:
            return cls()
        require(environment, source, names[:2])
        rank, world_size, local_rank = read(names[0], 0), read(names[1], 1, least=1), read(names[2], 0)
        if not rank < world_size:
            raise ValueError(f"{names[0]}={rank} with {names[1]}={world_size}: must be below; unset both to run alone")
        return cls(rank, world_size, local_rank, local_world_size, source)


def require(environment: Mapping[str, str], source: str, names: Sequence[str]) -> None:
    """Raises ValueError where a launcher has not set all its variables."""
    if missing := [name for name in names if not environment.get(name)]:
        raise ValueError(
            f"started by {source}, but {', '.join(missing)} is not set: start all ranks by one launcher, or unset its "
            "other variables to run alone"
        )


def _in_slurm_step(environment: Mapping[str, str]) -> bool:
    """A batch script and an interactive shell have a number, too, but run once: no step, or one of a single task."""
    in_job = environment.get("SLURM_JOB_ID") or environment.get("SLURM_JOBID")
    in_step = environment.get("SLURM_STEP_ID", "batch").isdecimal()
    return bool(environment.get("SLURM_PROCID")) and (in_step or not in_job)


def _tasks_on_node(tasks_per_node: str, node: int) -> int:
    """Slurm's "2(x3),1": two tasks on each of three nodes, one on the fourth."""
    groups = re.findall(r"(\d+)(?:\(x(\d+)\))?", tasks_per_node)
    tasks = [int(count) for count, nodes in groups for _ in range(int(nodes or 1))]
    return max(1, tasks[node] if node < len(tasks) else max(tasks, default=1))
