"""How long the rest of some work takes, from what is done of it."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable


class TimeLeft:
    """Follows one piece of work, which begins now.

    The first part of a work is the slowest: memory is touched, libraries wake up, layers are compiled. So the speed is
    that of the later half of what is done: it has forgotten the start soon, and still averages over enough.

    clock   seconds since some moment
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._shares, self._times = [0.0], [clock()]

    def at(self, share: float) -> float | None:
        """Seconds that are left when `share` (0..1) is done; None as long as nothing is."""
        now = self._clock()
        while len(self._shares) > 1 and self._shares[-1] > share:  # work was lost: a call begins anew in less memory
            self._shares.pop()
            self._times.pop()
        self._shares.append(share)
        self._times.append(now)
        half = bisect_right(self._shares, share / 2) - 1
        done = share - self._shares[half]
        return (now - self._times[half]) / done * (1 - share) if done > 0 else None
