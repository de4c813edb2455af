"""The same resize without a second picture of its size: a region of it, some columns at a time, from parts.

A resize is linear and separable: along the rows, then along the columns. So a part of the output needs a part of the
input, and parts of the input, each among zeros, add up to the whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

STRIP = 256  # rows or columns taken at a time


def resize_columns(
    image: torch.Tensor,
    size: tuple[int, int],
    rows: slice = slice(None),
    columns: slice = slice(None),
    scales: tuple[float | None, float | None] = (None, None),
) -> Callable[[int, int], torch.Tensor]:
    """The same bits as `diffusion.resize.resize(image, size)[..., rows, columns]`, a few columns at a time.

    A resize is done along the rows, then along the columns. The first half is done here, for the rows that matter; what
    is returned does the second: (left, right), counted from the first of `columns`, -> (B, c, rows, right - left). It
    needs the first half, of the input's height and the output's width, and a strip of the output's height.

    scales  (vertical, horizontal) where they are not the ratio of the sizes
    """
    (height, width), (down, across) = size, scales
    rows, columns = range(height)[rows], range(width)[columns]
    seen = _seen(image.shape[-2], height, down, rows)
    half = image.new_empty(*image.shape[:2], len(seen), len(columns))
    for top in range(seen.start, seen.stop, STRIP):
        bottom = min(top + STRIP, seen.stop)
        strip = _resize_axis(image[..., top:bottom, :], -1, width, across)
        half[..., top - seen.start : bottom - seen.start, :] = strip[..., columns.start : columns.stop]

    def take(left: int, right: int) -> torch.Tensor:
        strip = half[..., left:right]
        if len(seen) < image.shape[-2]:  # the others have no weight, but centres are counted from the first
            whole = strip.new_zeros(*strip.shape[:2], image.shape[-2], right - left)
            whole[..., seen.start : seen.stop, :] = strip
            strip = whole
        return _resize_axis(strip, -2, height, down)[..., rows.start : rows.stop, :]

    return take


def resize_region(
    image: torch.Tensor,
    size: tuple[int, int],
    rows: slice = slice(None),
    columns: slice = slice(None),
    scales: tuple[float | None, float | None] = (None, None),
) -> torch.Tensor:
    """The same bits as `resize(image, size)[..., rows, columns]` without making the rest. Arguments as there."""
    take, width = resize_columns(image, size, rows, columns, scales), len(range(size[1])[columns])
    region = image.new_empty(*image.shape[:2], len(range(size[0])[rows]), width)
    for left in range(0, width, STRIP):
        right = min(left + STRIP, width)
        region[..., left:right] = take(left, right)
    return region


def resize_part(
    part: torch.Tensor,
    whole: tuple[int, int],
    size: tuple[int, int],
    rows: slice = slice(None),
    columns: slice = slice(None),
) -> torch.Tensor:
    """What a part of a picture contributes to its resize, which is linear: the contributions of all parts add up to it.

    part           (B, c, rows, columns) of the picture
    whole          (h, w) of the picture
    size           (H, W) of the resized picture
    rows, columns  of the part
    returns        (B, c, H, W): `resize` of the picture with zeros around the part, in strips
    """

    def among_zeros(strip: torch.Tensor, axis: int, place: slice) -> torch.Tensor:
        if strip.shape[axis] == whole[axis]:
            return strip
        shape = list(strip.shape)
        shape[axis] = whole[axis]
        surrounded = strip.new_zeros(shape)
        surrounded.narrow(axis, place.start, strip.shape[axis]).copy_(strip)
        return surrounded

    half = part.new_empty(*part.shape[:3], size[1])
    for top in range(0, part.shape[-2], STRIP):
        strip = among_zeros(part[..., top : top + STRIP, :], -1, columns)
        half[..., top : top + STRIP, :] = _resize_axis(strip, -1, size[1], None)
    resized = part.new_empty(*part.shape[:2], *size)
    for left in range(0, size[1], STRIP):
        strip = among_zeros(half[..., left : left + STRIP], -2, rows)
        resized[..., left : left + STRIP] = _resize_axis(strip, -2, size[0], None)
    return resized


def _seen(length: int, new_length: int, scale: float | None, wanted: range) -> range:
    """The positions of the input that some of the output depend on, and one more on either side."""
    ratio = 1 / scale if scale else length / new_length
    support = 2 * max(1, ratio)
    first = math.floor((wanted.start + 0.5) * ratio - support) - 1
    return range(max(first, 0), min(math.ceil((wanted.stop - 0.5) * ratio + support) + 1, length))


def _resize_axis(image: torch.Tensor, axis: int, length: int, scale: float | None) -> torch.Tensor:
    """One of the two directions; the other is left alone."""
    size, scales = list(image.shape[-2:]), [None, None]
    size[axis], scales[axis] = length, scale
    if axis == -2 and size[1] == 1:  # see `diffusion.resize.resize`
        return _resize_axis(image.expand(-1, -1, -1, 2), axis, length, scale)[..., :1]
    return torch.ops.aten._upsample_bicubic2d_aa(image.contiguous(), size, False, *scales)
