"""The conditions of the network when its grid has moved.

It was trained on inputs whose pixels are aligned with its grid: every four pixels of lr_upsampled are one of the input,
enlarged. Moved by a part of that, lr_upsampled is unlike anything it has seen, and what it draws is soft. So there it
gets another input: the latest estimate of the picture, reduced and enlarged again on the moved grid.

    offset a multiple of LR_FACTOR   lr of the input, moved                       lr_upsampled of the input, moved
    any other                        lr' = A(estimate, moved) + S(lr - A(estimate))        U(lr')

A is the reduction and U the enlargement of `diffusion.resize`, S moves by interpolation. The estimate is the denoised
picture of the call before, with all that is done to it (`detail`, `backprojection`); before the first, the interpolated
input. What it has lost of the input, the second term, would be lost for good, and more with every call; after
back-projection nothing is lost, and the term is left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F

from sat_sr.config import LR_FACTOR, lr_size
from sat_sr.diffusion.resize import resize
from sat_sr.diffusion.samplers import Denoise
from sat_sr.inference.canvas_part import WHOLE_CANVAS, CanvasPart
from sat_sr.inference.placement import Placement

TILE = 512  # pixels per side that are reduced at a time
_REACH = 4  # LR pixels around a window: two that the kernels reach beyond it, two whose kernels the window's edge cuts


class ConditionedDenoiser(Protocol):
    """A denoiser whose LR condition can be replaced from call to call: `inference.denoiser`."""

    lr: torch.Tensor

    @property
    def next_offset(self) -> int: ...

    def set_condition(self, lr: torch.Tensor | None) -> None: ...


class MovingGrid:
    """A denoiser that gives the network, before each call, the condition at the offset of that call.

    denoise        D(x; sigma), whose pictures are the estimates
    denoiser       the network's own, at the bottom of `denoise`
    lr_upsampled   (B, 3, H, W) of the part: the first estimate
    canvas         (H, W) of the whole canvas
    part           of the canvas that `denoise` computes
    faithful       whether estimates reduce to the input
    """

    def __init__(
        self,
        denoise: Denoise,
        denoiser: ConditionedDenoiser,
        lr_upsampled: torch.Tensor,
        canvas: tuple[int, int],
        part: CanvasPart = WHOLE_CANVAS,
        *,
        faithful: bool = False,
    ):
        self.denoise, self.denoiser, self.canvas, self.part = denoise, denoiser, canvas, part
        self.first = (range(canvas[0])[part.rows].start, range(canvas[1])[part.columns].start)
        self.faithful = faithful
        self._set_condition(lr_upsampled)

    def __call__(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        denoised = self.denoise(x, sigma)
        self._set_condition(denoised)
        return denoised

    def _set_condition(self, estimate: torch.Tensor) -> None:
        offset = self.denoiser.next_offset
        lr = None
        if offset % LR_FACTOR:
            lr = self._reduced(estimate, offset)
            if not self.faithful:
                lr += moved(self.denoiser.lr - self._reduced(estimate, 0), offset)
        self.denoiser.set_condition(lr)

    def _reduced(self, estimate: torch.Tensor, offset: int) -> torch.Tensor:
        """A(estimate), with the picture at that offset on the canvas."""
        rows, columns = (
            slice(start + more + offset if start + more else 0, min(start + length + offset, side))
            for start, more, length, side in zip(
                self.first, self.part.overlap, estimate.shape[-2:], self.canvas, strict=True
            )
        )
        placement = Placement(*(start + offset for start in self.first))
        return self.part.all_reduce_sum(
            reduced(lambda *window: placement.read(estimate, *window), rows, columns, len(estimate), self.canvas)
        )


def reduced(
    read: Callable[[slice, slice], torch.Tensor], rows: slice, columns: slice, batch: int, canvas: tuple[int, int]
) -> torch.Tensor:
    """What a part of a canvas contributes to its reduction by LR_FACTOR; the contributions of all parts add up to it.

    read           (rows, columns) of the canvas -> (B, 3, rows, columns), within the part
    rows, columns  of the part
    returns        (B, 3, H/4, W/4): `resize` of the canvas with zeros around the part, tile by tile
    """
    height, width = canvas
    lr = torch.zeros(batch, 3, *lr_size(canvas))
    for top, left in itertools.product(range(rows.start, rows.stop, TILE), range(columns.start, columns.stop, TILE)):
        bottom, right = min(top + TILE, rows.stop), min(left + TILE, columns.stop)
        down, across = _around(top, bottom, height), _around(left, right, width)
        tile = lr.new_zeros(batch, 3, len(down) * LR_FACTOR, len(across) * LR_FACTOR)
        first = down.start * LR_FACTOR, across.start * LR_FACTOR
        window = tile[..., top - first[0] : bottom - first[0], left - first[1] : right - first[1]]
        window.copy_(read(slice(top, bottom), slice(left, right)))
        lr[..., down.start : down.stop, across.start : across.stop] += resize(tile, (len(down), len(across)))
    return lr


def moved(lr: torch.Tensor, offset: int) -> torch.Tensor:
    """An LR condition (B, 3, h, w) moved down and right by `offset` canvas pixels: S, bicubic, edges mirrored."""
    height, width = lr.shape[-2:]
    # grid_sample counts from -1, the first pixel's centre, to 1, the last one's.
    rows, columns = (
        (torch.arange(length, dtype=torch.float64) - offset / LR_FACTOR) * 2 / (length - 1) - 1
        for length in (height, width)
    )
    at = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1).to(lr.dtype).expand(len(lr), -1, -1, -1)
    return F.grid_sample(lr, at, mode="bicubic", padding_mode="reflection", align_corners=True)


def enlarged(lr: torch.Tensor, rows: slice, columns: slice) -> torch.Tensor:
    """A window of the enlarged LR condition: `resize(lr, canvas)[..., rows, columns]`, clipped to [-1, 1].

    lr       (B, 3, H/4, W/4)
    rows     and columns of the canvas, multiples of LR_FACTOR
    returns  (B, 3, rows, columns)
    """
    around = [
        _around(window.start, window.stop, side * LR_FACTOR)
        for window, side in zip((rows, columns), lr.shape[-2:], strict=True)
    ]
    window = lr[..., around[0].start : around[0].stop, around[1].start : around[1].stop]
    window = resize(window, (len(around[0]) * LR_FACTOR, len(around[1]) * LR_FACTOR))
    at = (
        slice(wanted.start - more.start * LR_FACTOR, wanted.stop - more.start * LR_FACTOR)
        for wanted, more in zip((rows, columns), around, strict=True)
    )
    return window[(..., *at)].clamp_(-1, 1)


def _around(start: int, stop: int, side: int) -> range:
    """The LR pixels under the pixels start to stop of a side, and _REACH more on either side."""
    return range(max(start // LR_FACTOR - _REACH, 0), min(-(-stop // LR_FACTOR) + _REACH, side // LR_FACTOR))
