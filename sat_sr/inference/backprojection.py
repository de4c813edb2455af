"""Denoised pictures that reduce to the input: what the input resolves is taken from it in the network calls.

A denoised picture D, reduced to the size of the input y, should be y. What is missing is enlarged and added:
D + U(y - A D), with A the reduction and U the enlargement (back-projection, Irani and Peleg 1991). As this is done in
the calls and not only at the end, the sampler stays with pictures that reduce to the input, and the network invents
only what is in the null space of A (DDNM, arXiv 2212.00490).
"""

from __future__ import annotations

import math

import torch

from sat_sr.diffusion.samplers import Denoise
from sat_sr.inference.canvas import Canvas
from sat_sr.inference.canvas_part import WHOLE_CANVAS, CanvasPart
from sat_sr.inference.resize_in_parts import STRIP, resize_part

PASSES = 2  # U is not quite the inverse of A: the second pass takes what the first left
# A is the bicubic resize that the network's conditions are made with. U is Lanczos: bicubic enlargement is steeper
# halfway between the samples than at them, which leaves a grid.
LANCZOS_LOBES = 3


class Backprojection:
    """A denoiser whose pictures reduce to the input.

    denoise  D(x; sigma) over the canvas, or over a part of it
    image    (B, 3, h, w) in [-1, 1], the input
    canvas   geometry; beyond the target the canvas is left alone
    part     of the canvas that `denoise` computes
    """

    def __init__(self, denoise: Denoise, image: torch.Tensor, canvas: Canvas, part: CanvasPart = WHOLE_CANVAS):
        self.denoise, self.image, self.target, self.part = denoise, image, canvas.target, part
        self.rows, self.columns = (
            slice(*where.indices(length)[:2])
            for where, length in zip((part.rows, part.columns), canvas.target, strict=True)
        )
        self.own = [
            slice(min(where.start + overlap, where.stop), where.stop)
            for where, overlap in zip((self.rows, self.columns), part.overlap, strict=True)
        ]

    def __call__(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        denoised = self.denoise(x, sigma)
        inside = denoised[..., : self._length(self.rows), : self._length(self.columns)]
        for _ in range(PASSES):
            self._add_missing(inside)
        return denoised

    def _add_missing(self, inside: torch.Tensor) -> None:
        """D + U(y - A D) in place, in strips; what it needs on top is as high or as wide as the input."""
        own = self.part.without_overlap(inside)
        reduced = self.part.all_reduce_sum(resize_part(own, self.target, self.image.shape[-2:], *self.own))
        missing = lanczos(self.image - reduced, -1, self.target[1], self.columns)
        for left in range(0, inside.shape[-1], STRIP):
            strip = slice(left, left + STRIP)
            inside[..., strip] += lanczos(missing[..., strip], -2, self.target[0], self.rows)

    @staticmethod
    def _length(place: slice) -> int:
        return place.stop - place.start


def lanczos(image: torch.Tensor, axis: int, length: int, wanted: slice = slice(None)) -> torch.Tensor:
    """Resize one axis of a picture (B, c, h, w) to `length` by Lanczos-3, and keep the `wanted` part of it.

    Antialiased; at the edges the kernel is cut and what remains is weighted up. As Pillow's `Resampling.LANCZOS`.
    """
    ratio = image.shape[axis] / length
    stretch = max(1.0, ratio)
    centre = (torch.arange(length, dtype=torch.float64)[wanted] + 0.5) * ratio - 0.5
    reach = math.ceil(LANCZOS_LOBES * stretch)
    position = centre.floor().long()[:, None] + torch.arange(-reach, reach + 1)
    distance = (position - centre[:, None]) / stretch
    weight = torch.sinc(distance) * torch.sinc(distance / LANCZOS_LOBES) * (distance.abs() < LANCZOS_LOBES)
    weight *= (position >= 0) & (position < image.shape[axis])
    weight = (weight / weight.sum(1, keepdim=True)).to(image.dtype)
    position = position.clamp(0, image.shape[axis] - 1)
    shape = [-1, 1] if axis == -2 else [-1]
    resized = 0
    for tap in range(position.shape[1]):
        resized = image.index_select(axis, position[:, tap]).mul_(weight[:, tap].view(shape)).add_(resized)
    return resized
