"""Slurm's warning that the time is over, and anybody's polite request to stop."""

from __future__ import annotations

import signal


class Preemption:
    """`asked` is true once SIGTERM or SIGUSR1 has come: the trainer saves after the step that it is in, and ends."""

    def __init__(self) -> None:
        self.asked = False

    def watch(self) -> None:
        """From now on, for good: a second signal must not end the process while it saves."""
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: object) -> None:
        self.asked = True  # looked at after each step; the ranks agree there
