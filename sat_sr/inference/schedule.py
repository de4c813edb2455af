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
"""

from __future__ import annotations

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
        return len(self.rows) * len(self.cols)

    def __str__(self) -> str:
        return f"blocks ({self.rows.start},{self.cols.start})..({self.rows.stop - 1},{self.cols.stop - 1})"


@dataclass(frozen=True)
class Schedule:
    """An order of computation over a grid of blocks.

    grid   (I, J) blocks of the canvas
    group  (rows, columns) of blocks computed together; the last of a band or of the walk may be smaller
    order  "layer" or "block"
    """

    grid: tuple[int, int]
    group: tuple[int, int]
    order: Order

    def __post_init__(self) -> None:
        if min(self.grid) < 1 or min(self.group) < 1:
            raise ValueError(f"grid {self.grid}, group {self.group}: all sides must be at least 1")
        if self.order not in ("layer", "block"):
            raise ValueError(f"order {self.order!r}: must be 'layer' or 'block'")
        # A group never reaches beyond the grid.
        object.__setattr__(self, "group", (min(self.group[0], self.grid[0]), min(self.group[1], self.grid[1])))

    @property
    def by_columns(self) -> bool:
        """Whether bands are vertical: the walk goes along the shorter side of the grid."""
        return self.grid[1] > self.grid[0]

    @property
    def line(self) -> int:
        """Blocks along a band: the length of the line of blocks kept between bands."""
        return min(self.grid)

    @property
    def thickness(self) -> int:
        """Blocks across a band."""
        return self.group[1] if self.by_columns else self.group[0]

    def groups(self) -> Iterator[Group]:
        """The groups in an order that has every neighbour above and to the left computed before it is needed."""
        rows = [range(r, min(r + self.group[0], self.grid[0])) for r in range(0, self.grid[0], self.group[0])]
        cols = [range(c, min(c + self.group[1], self.grid[1])) for c in range(0, self.grid[1], self.group[1])]
        if self.by_columns:
            yield from (Group(r, c) for c in cols for r in rows)
        else:
            yield from (Group(r, c) for r in rows for c in cols)

    @property
    def num_groups(self) -> int:
        return -(-self.grid[0] // self.group[0]) * -(-self.grid[1] // self.group[1])

    def __str__(self) -> str:
        name = "layer-major" if self.order == "layer" else "block-major"
        direction = "columns" if self.by_columns else "rows"
        return f"{name}, groups of {self.group[0]}x{self.group[1]} blocks along {direction}"
