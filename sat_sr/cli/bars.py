"""Progress bars with a time left of our own: of a picture, and of a list of pictures."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

from tqdm import tqdm

from sat_sr.cli.time_left import TimeLeft

PICTURE_FORMAT = "{desc} {percentage:3.0f} %|{bar}| {elapsed} < {left} left"
_LIST_FORMAT = "{desc} |{bar}| {elapsed} < {left} left"


class Bar(tqdm):
    """tqdm's, with a time left of our own: {left}."""

    time_left: TimeLeft | None = None
    left: float | None = None

    def start(self) -> None:
        """The work begins; until then no time passes for the time left."""
        self.time_left = self.time_left or TimeLeft()

    def show(self, done: float) -> None:
        self.left = self.time_left.at(done / self.total) if self.time_left and self.total else None
        self.update(done - self.n)

    @property
    def format_dict(self) -> dict[str, Any]:
        return {**super().format_dict, "left": interval(self.left)}


class ListBar:
    """Pictures done, and the share of the work on all of them: a large one takes longer than a small one.

    costs   of each picture
    """

    def __init__(self, costs: list[float]) -> None:
        self._costs, self._before, self._done = costs, [0.0, *accumulate(costs)], 0
        self._bar = Bar(total=self._before[-1], desc=self._desc(), bar_format=_LIST_FORMAT, position=1, leave=False)

    def __enter__(self) -> ListBar:
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.close()

    def start(self) -> None:
        """The first picture that is computed begins: reading lists and loading weights is behind."""
        self._bar.start()

    def show(self, share: float) -> None:
        """`share` (0..1) of the present picture is done."""
        self._bar.show(self._before[self._done] + share * self._costs[self._done])

    def next(self) -> None:
        self._done += 1
        self._bar.set_description_str(self._desc(), refresh=False)
        self._bar.show(self._before[self._done])
        self._bar.refresh()

    def _desc(self) -> str:
        return f"{self._done} of {len(self._costs)} pictures"


def interval(seconds: float | None) -> str:
    """Seconds as "01:30", "?" where they are not known."""
    return "?" if seconds is None else tqdm.format_interval(seconds)
