"""Which blocks are computed when. Whole numbers only: no tensors here.

The picture is a grid of I x J blocks, computed in rectangular groups. Groups are walked band by band: a band is as
thick as a group and runs along the *shorter* side of the grid, because what must be kept between bands is one line of
blocks as long as the band.

        walk along rows (J <= I)                    walk along columns (J > I)
      +----+----+----+                              +----+----+----+----+
      | 1  | 2  | 3  |  band 1                      | 1  | 3  | 5  | 7  |
      +----+----+----+                              +----+----+----+----+
      | 4  | 5  | 6  |  band 2                      | 2  | 4  | 6  | 8  |
      +----+----+----+                              +----+----+----+----+

Two orders compute the same numbers:

block-major   a group goes through all layers, then the next group starts. Kept: a line of K and V in every layer.
layer-major   all groups go through layer l, then layer l+1 starts. Kept: the hidden state of the whole canvas, updated
              in place, and a line of K and V of one layer.

Several processes share a picture by cutting it across the walk: each computes a *part*, some consecutive block rows (or
columns, when the walk goes along columns), and gets the line above its first band from the process before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Order = Literal["layer", "block"]


@dataclass(frozen=True)
class Group:
    """A rectangle of blocks: its block rows and block columns in the grid."""

    rows: range
    cols: range

    @property
    def blocks(self) -> int:
        """How many blocks it has."""
        return len(self.rows) * len(self.cols)

    def __str__(self) -> str:
        return f"blocks ({self.rows.start},{self.cols.start})..({self.rows.stop - 1},{self.cols.stop - 1})"


@dataclass(frozen=True)
class Schedule:
    """An order of computation over a grid of blocks.

    grid   (I, J) blocks of the canvas
    group  (rows, columns) of blocks computed together, at most: taken smaller where that needs no more groups. The last
           of a band or of the walk may be smaller still
    order  "layer" or "block"
    part   block rows (columns, when the walk goes along columns) computed here; None: all of them
    """

    grid: tuple[int, int]
    group: tuple[int, int]
    order: Order
    part: range | None = None

    def __post_init__(self) -> None:
        if min(self.grid) < 1 or min(self.group) < 1:
            raise ValueError(f"grid {self.grid}, group {self.group}: all sides must be at least 1")
        if self.order not in ("layer", "block"):
            raise ValueError(f"order {self.order!r}: must be 'layer' or 'block'")
        part = range(max(self.grid)) if self.part is None else self.part
        if not (0 <= part.start < part.stop <= max(self.grid) and part.step == 1):
            raise ValueError(f"part {part} of grid {self.grid}: must be consecutive, within the longer side, not empty")
        object.__setattr__(self, "part", part)
        # As many groups, no larger than it takes: none reaches beyond the grid, and the last ones are not thin.
        object.__setattr__(self, "group", tuple(map(_balanced, self.group, self.extent)))

    @property
    def by_columns(self) -> bool:
        """Whether bands are vertical: the walk goes along the shorter side of the grid."""
        return self.grid[1] > self.grid[0]

    @property
    def is_shared(self) -> bool:
        """Whether other processes compute other parts."""
        return len(self.part) < max(self.grid)

    @property
    def line(self) -> int:
        """Blocks along a band: the length of the line of blocks kept between bands."""
        return min(self.grid)

    @property
    def thickness(self) -> int:
        """Blocks across a band."""
        return self.group[1] if self.by_columns else self.group[0]

    @property
    def origin(self) -> tuple[int, int]:
        """Block row and column where the part starts."""
        return (0, self.part.start) if self.by_columns else (self.part.start, 0)

    @property
    def end(self) -> tuple[int, int]:
        """Block row and column after the part's last."""
        return (self.grid[0], self.part.stop) if self.by_columns else (self.part.stop, self.grid[1])

    @property
    def extent(self) -> tuple[int, int]:
        """Block rows and columns of the part."""
        return self.end[0] - self.origin[0], self.end[1] - self.origin[1]

    def groups(self) -> Iterator[Group]:
        """The groups in an order that has every neighbour above and to the left computed before it is needed."""
        rows, cols = (
            [range(start, min(start + side, end)) for start in range(first, end, side)]
            for first, end, side in zip(self.origin, self.end, self.group, strict=True)
        )
        if self.by_columns:
            yield from (Group(r, c) for c in cols for r in rows)
        else:
            yield from (Group(r, c) for r in rows for c in cols)

    @property
    def num_groups(self) -> int:
        """How many groups the part has."""
        return math.prod(-(-length // side) for length, side in zip(self.extent, self.group, strict=True))

    @property
    def blocks(self) -> int:
        """Blocks of the part."""
        return math.prod(self.extent)

    def across(self, length: int) -> tuple[int, int]:
        """A length across the bands as rows and columns."""
        return (0, length) if self.by_columns else (length, 0)

    def pixels(self, block: int, overlap: tuple[int, int] = (0, 0)) -> tuple:
        """Index of the part in a canvas (B, 3, H, W) with blocks of that many pixels per side.

        overlap  pixel rows and columns of the part before that come with it
        """
        sides = zip(self.origin, self.end, overlap, strict=True)
        return ..., *(slice(start * block - more, end * block) for start, end, more in sides)

    def __str__(self) -> str:
        name = "layer-major" if self.order == "layer" else "block-major"
        direction = "columns" if self.by_columns else "rows"
        return f"{name}, groups of {self.group[1]}x{self.group[0]} blocks along {direction}"


def _balanced(side: int, length: int) -> int:
    """The smallest side with which no more groups fill the length: 17 blocks are 6 + 6 + 5, not 8 + 8 + 1."""
    groups = -(-length // side)
    return -(-length // groups)
