"""Where a picture lies on the grid of blocks: in the first network call at its corner, later some pixels farther in.

A block sees its neighbours above and to the left, not those to the right and below, and it is decoded patch by patch:
lines of the grid can show, faintly. When the grid moves from call to call, by a number of patches and half a patch,
the lines of one call are inside blocks and patches in the next, and gone (cycle spinning, Coifman and Donoho 1995; for
diffusion SpotDiffusion, arXiv 2407.15507):

    call 1                         a later call
    +----+----+----+               +----+----+----+        the canvas (drawn) has a margin to the right and below, so
    |pict|ure |    |               | ┌──|----|-┐  |        that the picture is covered wherever it lies
    +----+----+----+               +-|pi|ctur|e|--+
    |    |    |    |               | └──|----|-┘  |
    +----+----+----+               +----+----+----+

Before the picture's first row and column the network sees it mirrored.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from sat_sr.config import LR_FACTOR


def grid_places(shift: int, block: int, calls: int) -> list[int]:
    """How many pixels the picture lies farther in, down and right alike, in each of the network calls.

    From call to call the grid moves on by `shift` pixels; after a whole block it is where it was.
    """
    return [call * shift % block for call in range(calls)]


class Placement(NamedTuple):
    """Pixels of the grid above and to the left of a picture (B, 3, H, W); negative: the picture begins before the grid.

    Windows are given by their pixel rows and columns on the grid.
    """

    top: int = 0
    left: int = 0

    def read(self, picture: torch.Tensor, rows: slice, columns: slice) -> torch.Tensor:
        """A window (B, 3, rows, columns): a view, or a copy where it begins before the picture."""
        for dim, window, offset in ((-2, rows, self.top), (-1, columns, self.left)):
            start, stop = window.start - offset, window.stop - offset
            if start < 0:
                picture = picture.index_select(dim, torch.arange(start, stop, device=picture.device).abs_())
            else:
                picture = picture.narrow(dim, start, stop - start)
        return picture

    def write(self, picture: torch.Tensor, rows: slice, columns: slice, window: torch.Tensor) -> None:
        """Put into the picture what of a window lies in it."""
        for dim, place, offset in ((-2, rows, self.top), (-1, columns, self.left)):
            start, stop = max(place.start - offset, 0), max(place.stop - offset, 0)
            picture = picture.narrow(dim, start, stop - start)
            length = window.shape[dim]
            window = window.narrow(dim, length - (stop - start), stop - start)
        picture.copy_(window)


def shifted_lr(lr: torch.Tensor, shift: int) -> torch.Tensor:
    """The LR condition of a canvas whose picture lies `shift` pixels farther in, mirrored before it.

    Between the pixels of the LR condition it is interpolated bicubically.

    lr       (B, 3, H/4, W/4)
    returns  the same shape
    """
    height, width = lr.shape[-2:]
    # grid_sample counts from -1, the first pixel's centre, to 1, the last one's.
    rows, columns = (
        (torch.arange(length, dtype=torch.float64, device=lr.device) - shift / LR_FACTOR) * 2 / (length - 1) - 1
        for length in (height, width)
    )
    place = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1).to(lr.dtype)
    place = place.expand(len(lr), -1, -1, -1)
    return F.grid_sample(lr, place, mode="bicubic", padding_mode="reflection", align_corners=True)
