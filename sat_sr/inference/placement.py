"""Where a picture is on the grid of blocks: in the last network call at its corner, in others at an offset from it.

A block sees its neighbours above and to the left, not those to the right and below, and it is decoded patch by patch:
lines of the grid can show, faintly. When the grid moves from call to call, by a number of patches and half a patch,
the lines of one call are inside blocks and patches in the next, and gone (cycle spinning, Coifman and Donoho 1995; for
diffusion SpotDiffusion, arXiv 2407.15507):

    the last call                  a call before
    +----+----+----+               +----+----+----+        the canvas (drawn) has a margin to the right and below, so
    |pict|ure |    |               | ┌──|----|-┐  |        that the picture is covered at every offset
    +----+----+----+               +-|pi|ctur|e|--+
    |    |    |    |               | └──|----|-┘  |
    +----+----+----+               +----+----+----+

Before the picture's first row and column the network sees it mirrored. How far the grid moves is one of the settings
(`sampling.grid_offsets`); the network's conditions there: `moving_grid`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Placement(NamedTuple):
    """Pixels of the grid above and to the left of a picture (B, 3, H, W); negative: the picture begins before the grid.

    Windows are given by their pixel rows and columns on the grid.
    """

    top: int = 0
    left: int = 0

    def read(self, picture: torch.Tensor, rows: slice, columns: slice) -> torch.Tensor:
        """A window (B, 3, rows, columns): a view, or a copy where it begins before the picture."""
        windows = [(-2, rows.start - self.top, rows.stop - self.top)]
        windows += [(-1, columns.start - self.left, columns.stop - self.left)]
        for dim, start, stop in windows:  # both, before anything is copied
            first, end = max(start, 0), max(stop, 1 - start)
            picture = picture.narrow(dim, first, end - first)
        for dim, start, stop in windows:
            if start < 0:
                picture = picture.index_select(dim, torch.arange(start, stop, device=picture.device).abs_())
        return picture

    def write(self, picture: torch.Tensor, rows: slice, columns: slice, window: torch.Tensor) -> None:
        """Put into the picture the part of a window that is inside it."""
        for dim, wanted, offset in ((-2, rows, self.top), (-1, columns, self.left)):
            start, stop = max(wanted.start - offset, 0), max(wanted.stop - offset, 0)
            picture = picture.narrow(dim, start, stop - start)
            length = window.shape[dim]
            window = window.narrow(dim, length - (stop - start), stop - start)
        picture.copy_(window)
