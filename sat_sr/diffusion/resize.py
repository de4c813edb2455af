"""The one resize of the method: antialiased bicubic, and the two conditions made with it.

Besides, what back-projection needs: the resize of a picture whose parts are in several hands, and Lanczos enlargement.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from sat_sr.config import LR_FACTOR

STRIP = 256  # rows or columns taken at a time
LANCZOS_LOBES = 3


def resize(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bicubic resize with antialiasing (kernel a = -0.5), as the model was trained with.

    Without `antialias` PyTorch takes a = -0.75 instead, which differs by up to 0.2 of the range.

    image    (B, c, h, w) float
    size     (H, W) pixels
    returns  (B, c, H, W), not clamped: bicubic overshoots
    """
    if size[1] == 1:  # what PyTorch makes of a single column is not a resize: take it twice
        column = F.interpolate(image, (image.shape[-2], 1), mode="bicubic", antialias=True, align_corners=False)
        image, size = column.expand(-1, -1, -1, 2).contiguous(), (size[0], 2)
        return F.interpolate(image, size=size, mode="bicubic", antialias=True, align_corners=False)[..., :1]
    return F.interpolate(image, size=size, mode="bicubic", antialias=True, align_corners=False)


def resize_columns(
    image: torch.Tensor,
    size: tuple[int, int],
    rows: slice = slice(None),
    columns: slice = slice(None),
    scales: tuple[float | None, float | None] = (None, None),
) -> Callable[[int, int], torch.Tensor]:
    """The same bits as `resize(image, size)[..., rows, columns]`, a few columns at a time.

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
    rows, columns  where the part lies
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
    if axis == -2 and size[1] == 1:  # see `resize`
        return _resize_axis(image.expand(-1, -1, -1, 2), axis, length, scale)[..., :1]
    return torch.ops.aten._upsample_bicubic2d_aa(image.contiguous(), size, False, *scales)


def lr_conditions(image: torch.Tensor, canvas: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """What the network is told about the picture.

    image    (B, 3, h, w) in [-1, 1], any size
    canvas   (H, W) pixels, multiples of 4
    returns  lr (B, 3, H/4, W/4): for CLIP and the LR cross-attention, not clamped;
             lr_upsampled (B, 3, H, W), clipped to [-1, 1]: joined to the noisy canvas

    Raises ValueError when a canvas side is no multiple of 4.
    """
    height, width = canvas
    if height % LR_FACTOR or width % LR_FACTOR:
        raise ValueError(f"canvas {width}x{height}: both sides must be multiples of {LR_FACTOR}")
    lr_size = (height // LR_FACTOR, width // LR_FACTOR)
    lr = image if image.shape[-2:] == lr_size else resize(image, lr_size)
    return lr, resize(image, canvas).clamp(-1, 1)
