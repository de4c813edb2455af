"""The program of training: flags, what must be set up before anything heavy is imported, then the run."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from sat_sr.programs.allocator import keep_freed_memory
from sat_sr.training.arguments import parse_arguments
from sat_sr.training.preemption import Preemption


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code of a run: 0 done, 75 saved on a signal and not done; see docs/training.md."""
    settings = parse_arguments(list(sys.argv[1:] if argv is None else argv))
    preemption = Preemption()
    if not settings.dry_run:
        preemption.watch()  # first: imports and large weights take minutes
    keep_freed_memory()
    from sat_sr.training.launch import launch  # torch, SAT and DeepSpeed: seconds

    return launch(settings, preemption)
