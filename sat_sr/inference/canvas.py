"""From a picture of any size to a canvas of whole blocks, and back.

The output has exactly the target's size; the network needs whole blocks. So the input is continued by reflection to the
right and below, resized with the *target's* scale, and the surplus cut off after sampling. When the target fills whole
blocks nothing is added, and the conditions are exactly `diffusion.resize.lr_conditions` of the input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral

import torch

from sat_sr.config import LR_FACTOR, lr_size
from sat_sr.diffusion.resize import lr_condition, lr_conditions
from sat_sr.inference.resize_in_parts import resize_region

MIN_SCALE = 1 / LR_FACTOR  # below, the input is larger than its own LR condition could ever use


@dataclass(frozen=True)
class Canvas:
    """Geometry of one picture. All sizes are (height, width) pixels.

    source  of the input picture
    target  of the output picture
    size    of the canvas: the target, and a margin if there is to be one, rounded up to whole blocks
    """

    source: tuple[int, int]
    target: tuple[int, int]
    size: tuple[int, int]

    @classmethod
    def of(
        cls,
        source: tuple[int, int],
        block: int,
        *,
        scale: float | None = None,
        target: tuple[int, int] | None = None,
        margin: int = 0,
    ) -> Canvas:
        """The canvas for a scale or a target size (height, width); exactly one of them.

        margin  pixels that the canvas has at least to the right and below of the target

        Raises ValueError for a scale or size out of range.
        """
        if (scale is None) == (target is None):
            raise ValueError("give either a scale or a target size, not both and not neither")
        if scale is not None:
            if not math.isfinite(scale) or scale <= MIN_SCALE:
                raise ValueError(f"scale {scale}: must be a number above {MIN_SCALE}")
            target = tuple(max(1, round(side * scale)) for side in source)
        elif not all(isinstance(side, Integral) and side > 0 for side in target):
            raise ValueError(f"target size {target[1]}x{target[0]}: must be whole numbers of pixels, at least 1")
        elif any(t <= s * MIN_SCALE for t, s in zip(target, source, strict=True)):
            raise ValueError(
                f"target size {target[1]}x{target[0]} for a picture of {source[1]}x{source[0]}: "
                f"each side must be above {MIN_SCALE} of the picture's"
            )
        size = tuple(-(-(side + margin) // block) * block for side in target)
        return cls(tuple(source), tuple(target), size)

    @property
    def padded(self) -> bool:
        """Whether the canvas is larger than the target."""
        return self.size != self.target

    def conditions(
        self, image: torch.Tensor, rows: slice = slice(None), columns: slice = slice(None)
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 3, h, w) in [-1, 1] -> lr (B, 3, H/4, W/4), lr_upsampled (B, 3, H, W) clipped to [-1, 1].

        rows, columns  the part of the canvas whose lr_upsampled is made: the same bits as of the whole
        """
        whole = (len(range(self.size[0])[rows]), len(range(self.size[1])[columns])) == self.size
        if not self.padded and whole:
            return lr_conditions(image, self.size)
        if not self.padded:
            return lr_condition(image, self.size), resize_region(image, self.size, rows, columns).clamp_(-1, 1)
        scales = [t / s for t, s in zip(self.target, self.source, strict=True)]
        # Whole pixels of the input, enough for the canvas and for the reach of the LR condition's kernel beyond it.
        reach = [math.ceil(2 * max(1, LR_FACTOR / scale)) + 2 for scale in scales]
        wanted = [math.ceil(side / scale) + more for side, scale, more in zip(self.size, scales, reach, strict=True)]
        image = reflect_to(image, (max(wanted[0], self.source[0]), max(wanted[1], self.source[1])))
        lr = _resize_by(image, [scale / LR_FACTOR for scale in scales], lr_size(self.size))
        if whole:
            return lr, _resize_by(image, scales, self.size).clamp_(-1, 1)
        return lr, resize_region(_not_of(image, self.size), self.size, rows, columns, tuple(scales)).clamp_(-1, 1)

    def crop(self, canvas: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) of the canvas -> (B, 3, *target), a view."""
        return canvas[..., : self.target[0], : self.target[1]]


def reflect_to(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Continue a picture (B, c, h, w) to the right and below by reflection without repeating the edge, however far."""
    for dim, wanted in ((-2, size[0]), (-1, size[1])):
        period = max(2 * (image.shape[dim] - 1), 1)
        index = torch.arange(wanted, device=image.device) % period
        image = image.index_select(dim, torch.minimum(index, period - index) if image.shape[dim] > 1 else index)
    return image


def _resize_by(image: torch.Tensor, scales: list[float], size: list[int] | tuple[int, int]) -> torch.Tensor:
    """The top left `size` of a bicubic resize at exactly these scales; image must reach at least two pixels farther.

    `F.interpolate` takes scales or a size; the operation that it calls takes both, and makes no more than is wanted.
    """
    return torch.ops.aten._upsample_bicubic2d_aa(_not_of(image, size), list(size), False, *scales)


def _not_of(image: torch.Tensor, size: list[int] | tuple[int, int]) -> torch.Tensor:
    """The image, a pixel shorter where it has the wanted length: PyTorch would copy it there, whatever the scale."""
    for dim, length in zip((-2, -1), size, strict=True):
        if image.shape[dim] == length:
            image = image.narrow(dim, 0, length - 1)
    return image
