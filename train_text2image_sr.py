#!/usr/bin/env python3
"""Train an Inf-DiT upscaler: see docs/training.md, or --help."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from sat_sr.allocator import keep_freed_memory
from sat_sr.training.arguments import parse_arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code of a run: 0 done, 75 saved on a signal and not done; see docs/training.md."""
    settings = parse_arguments(list(sys.argv[1:] if argv is None else argv))
    keep_freed_memory()
    from sat_sr.training.launch import launch  # torch, SAT and DeepSpeed: seconds

    return launch(settings)


if __name__ == "__main__":
    sys.exit(main())
