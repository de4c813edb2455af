"""The part of a canvas that one process computes, and how it learns what is true of the whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class CanvasPart:
    """What one of the processes that share a canvas computes.

    rows, columns   pixels of the canvas, overlap included
    overlap         its first pixel rows and columns, which the part before has, too: in sums they count there
    all_reduce_sum  sums a tensor on the host over all parts, in place and for all of them
    """

    rows: slice
    columns: slice
    overlap: tuple[int, int]
    all_reduce_sum: Callable[[torch.Tensor], torch.Tensor]

    def without_overlap(self, picture: torch.Tensor) -> torch.Tensor:
        """What counts here of a picture (B, 3, H, W) of the part: a view."""
        return picture[..., self.overlap[0] :, self.overlap[1] :]


WHOLE_CANVAS = CanvasPart(slice(None), slice(None), (0, 0), lambda tensor: tensor)
