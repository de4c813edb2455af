"""How large the output becomes: scale or size asked for -> sizes of the passes. Whole numbers only: no tensors here.

All sizes are (width, height) in pixels, as people and files write them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

Size = tuple[int, int]

DEFAULT_SCALE = 4.0
SIZES = ("scale", "size", "width", "height", "long_side")  # the keys of Target.to_dict: one of them
MAX_PASS = 4.0  # the scale that the network was trained for; more is done in several passes


def by(size: Size) -> str:
    """(640, 480) -> '640x480'."""
    return f"{size[0]}x{size[1]}"


@dataclass(frozen=True)
class Target:
    """What was asked for: a scale, or a size by one side, by both, or by the longer one. Nothing: DEFAULT_SCALE."""

    scale: float | None = None
    width: int | None = None
    height: int | None = None
    long_side: int | None = None

    def of(self, source: Size) -> Size:
        """The output's size for a picture of size `source`. The aspect ratio is kept unless both sides are given.

        Raises ValueError when the output would be smaller than the picture.
        """
        width, height = source
        if self.width and self.height:
            size = self.width, self.height
        else:
            scale = self.scale or DEFAULT_SCALE
            if self.width:
                scale = self.width / width
            elif self.height:
                scale = self.height / height
            elif self.long_side:
                scale = self.long_side / max(source)
            size = max(1, round(width * scale)), max(1, round(height * scale))
        if size[0] < width or size[1] < height:
            raise ValueError(
                f"{width}x{height} to {size[0]}x{size[1]} makes the picture smaller, and this program enlarges: "
                "ask for a larger size, or shrink it with an image editor"
            )
        return size

    def scale_of(self, source: Size) -> str:
        """The scale as a name of a file has it, three digits at most: of the longer side where a size was asked for."""
        by_size = self.width or self.height or self.long_side
        scale = max(self.of(source)) / max(source) if by_size else self.scale or DEFAULT_SCALE
        return f"{scale:.3g}" if by_size else f"{scale:g}"

    def to_dict(self) -> dict[str, float | int | list[int]]:
        """What was asked for, as it is stored: {"scale": 4.0}, {"size": [640, 480]}, {"width": 640}, …"""
        if self.width and self.height:
            return {"size": [self.width, self.height]}
        sides = {"width": self.width, "height": self.height, "long_side": self.long_side}
        return {name: side for name, side in sides.items() if side} or {"scale": self.scale or DEFAULT_SCALE}


def passes(source: Size, target: Size) -> list[Size]:
    """Sizes after each pass, the last one `target`: as few passes as possible, equal ones, of at most MAX_PASS a side.

    Raises ValueError when the target is smaller than the source.
    """
    if any(t < s for s, t in zip(source, target, strict=True)):
        raise ValueError(f"target {target} is smaller than {source}")
    largest = max(t / s for s, t in zip(source, target, strict=True))
    count = max(1, math.ceil(math.log(largest, MAX_PASS) - 1e-9)) if largest > 1 else 1
    sizes = [
        tuple(round(s * (t / s) ** (step / count)) for s, t in zip(source, target, strict=True))
        for step in range(1, count)
    ]
    return [*sizes, target]


@dataclass(frozen=True)
class Trim:
    """What the release does to the input first, in this order; 0 leaves a step out.

    lr_size    the shorter side is resized to it
    crop_size  the top left square of that side is cut out
    round      both sides are cut, around the centre, to multiples of it
    """

    lr_size: int = 0
    crop_size: int = 0
    round: int = 0

    def resized(self, source: Size) -> Size:
        """The size after the first step."""
        if not self.lr_size:
            return source
        scale = self.lr_size / min(source)
        return max(1, round(source[0] * scale)), max(1, round(source[1] * scale))

    def box(self, resized: Size) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) of what the other steps leave of the resized picture.

        Raises ValueError when nothing would be left.
        """
        width, height = resized
        if self.crop_size:
            width, height = min(width, self.crop_size), min(height, self.crop_size)
        left = top = 0
        if self.round:
            if min(width, height) < self.round:
                raise ValueError(f"--round {self.round} leaves nothing of {width}x{height} px: use --round 0")
            left, top = width % self.round // 2, height % self.round // 2
            width, height = width // self.round * self.round, height // self.round * self.round
        return left, top, left + width, top + height

    def of(self, source: Size) -> Size:
        """The size that is upscaled."""
        left, top, right, bottom = self.box(self.resized(source))
        return right - left, bottom - top
