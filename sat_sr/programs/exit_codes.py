"""Exit codes of both programs, documented in README.md and docs/training.md."""

from __future__ import annotations

DONE = 0
FAILED = 1  # training: an error; generation: some pictures failed, the others are done
WRONG_USE = 2  # as argparse ends
SAVED = 75  # EX_TEMPFAIL of sysexits.h: training has saved on a signal; run the same command again


def of_signal(number: int) -> int:
    """Of a program that a signal has ended, as shells count: 130 after Ctrl-C, 143 after SIGTERM."""
    return 128 + number
