"""How many cores this process may compute on."""

from __future__ import annotations

import os


def own_cores() -> int:
    """Those that Slurm, a container or `taskset` leaves to it, not all that the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
