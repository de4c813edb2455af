"""Which process this is among those that torchrun or Slurm started, for both programs."""

from __future__ import annotations

import re
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
        """From torchrun's variables, else from those of a Slurm step. ValueError when they cannot be."""

        def read(name: str, default: int, least: int = 0) -> int:
            value = environment.get(name) or str(default)
            if not value.isdecimal() or int(value) < least:
                raise ValueError(
                    f"{name}={value!r} in the environment: must be a number of at least {least}; unset it to run alone"
                )
            return int(value)

        if environment.get("WORLD_SIZE") and environment.get("RANK"):
            source, names = "torchrun", ("RANK", "WORLD_SIZE", "LOCAL_RANK")
            local_count = read("LOCAL_WORLD_SIZE", 1, least=1)
        elif environment.get("SLURM_PROCID") and environment.get("SLURM_NTASKS"):
            # A batch script and an interactive shell have both variables, too, but run once: no step, or one of a task.
            in_job = environment.get("SLURM_JOB_ID") or environment.get("SLURM_JOBID")
            if in_job and not environment.get("SLURM_STEP_ID", "batch").isdecimal():
                return cls()
            tasks = "SLURM_STEP_NUM_TASKS" if environment.get("SLURM_STEP_NUM_TASKS") else "SLURM_NTASKS"
            source, names = "Slurm", ("SLURM_PROCID", tasks, "SLURM_LOCALID")
            on_nodes = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE") or "1"
            local_count = _tasks_on_node(on_nodes, read("SLURM_NODEID", 0))
        else:
            return cls()
        number, count, local = read(names[0], 0), read(names[1], 1, least=1), read(names[2], 0)
        if not number < count:
            raise ValueError(f"{names[0]}={number} with {names[1]}={count}: must be below; unset both to run alone")
        return cls(number, count, local, local_count, source)


def _tasks_on_node(tasks_per_node: str, node: int) -> int:
    """Slurm's "2(x3),1": two tasks on each of three nodes, one on the fourth."""
    groups = re.findall(r"(\d+)(?:\(x(\d+)\))?", tasks_per_node)
    tasks = [int(count) for count, nodes in groups for _ in range(int(nodes or 1))]
    return max(1, tasks[node] if node < len(tasks) else max(tasks, default=1))
