"""Which square of a picture is trained on: the crop rules of the release.

With probability 0.7 a random square of the original, mirrored with probability 0.3; else the picture is reduced until
its shorter side is that of the square. So the model sees detail at the pixel level and whole scenes alike.
All pictures here are uint8 (3,H,W), RGB.
"""

from __future__ import annotations

import torch

from sat_sr.config import LR_FACTOR
from sat_sr.diffusion.resize import resize

ORIGINAL_PROB = 0.7
FLIP_PROB = 0.3
AUGMENTATIONS = ("release", "full", "tone")
TONE_PROB = 0.5
LEAST_CONTRAST = 0.25


def training_crop(image: torch.Tensor, size: int, generator: torch.Generator, augment: str = "release") -> torch.Tensor:
    """A random square of a picture.

    image     (3,H,W) uint8, no side below `size`
    augment   "release": the rules above; "full": mirrored and turned to one of the 8 orientations as well, for small
              sets of pictures without an up and down; "tone": and half of them in other contrasts (`draw_tone`)
    returns   (3,S,S) uint8
    """
    original = _coin(ORIGINAL_PROB, generator)
    if not original:
        image = _shorter_side(image, size)
    image = _random_square(image, size, generator)
    if augment == "release":
        return image.flip(-1) if original and _coin(FLIP_PROB, generator) else image
    image = orient(image, _below(8, generator))
    return tone(image, *draw_tone(generator)) if augment == "tone" else image


def paired_crop(
    image: torch.Tensor, lr: torch.Tensor, size: int, generator: torch.Generator, augment: str = "release"
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same random square of a picture and of its low-resolution partner.

    Never reduced, that would change the pair's degradation.

    image     (3,H,W) uint8;   lr  (3,H/4,W/4) uint8
    returns   (3,S,S), (3,S/4,S/4) uint8
    """
    small = size // LR_FACTOR
    top, left = _below(lr.shape[-2] - small + 1, generator), _below(lr.shape[-1] - small + 1, generator)
    turn = int(_coin(FLIP_PROB, generator)) if augment == "release" else _below(8, generator)
    pair = _square(image, top * LR_FACTOR, left * LR_FACTOR, size), _square(lr, top, left, small)
    pair = tuple(orient(square, turn) for square in pair)
    if augment != "tone":
        return pair
    look = draw_tone(generator)
    return tuple(tone(square, *look) for square in pair)


def center_crop(image: torch.Tensor, size: int) -> torch.Tensor:
    """The square in the middle; its corner lies on a multiple of 4, so that a pair's crops stay aligned.

    image     (3,H,W), no side below `size`
    returns   (3,S,S)
    """
    top, left = ((side - size) // (2 * LR_FACTOR) * LR_FACTOR for side in image.shape[-2:])
    return _square(image, top, left, size)


def center_pair(image: torch.Tensor, lr: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The squares in the middle of a picture (3,H,W) and of its partner (3,H/4,W/4), aligned."""
    top, left = ((side - size) // (2 * LR_FACTOR) for side in image.shape[-2:])
    target = _square(image, top * LR_FACTOR, left * LR_FACTOR, size)
    return target, _square(lr, top, left, size // LR_FACTOR)


def orient(image: torch.Tensor, turn: int) -> torch.Tensor:
    """One of the 8 orientations of a square (…,S,S): bit 0 swaps left and right, 1 top and bottom, 2 transposes."""
    if turn & 1:
        image = image.flip(-1)
    if turn & 2:
        image = image.flip(-2)
    return image.transpose(-1, -2) if turn & 4 else image


def draw_tone(generator: torch.Generator) -> tuple[float, float]:
    """Contrast and offset for `tone`, so that 0..255 stays within 0..255: (1, 0) for half of the crops.

    What a photograph's dark and flat places look like follows from its exposure; a model that has seen few of them
    leaves a grain there.
    """
    changed = _coin(TONE_PROB, generator)
    lowest, offset = torch.rand(2, generator=generator).tolist()
    contrast = LEAST_CONTRAST ** (1 - lowest) if changed else 1.0  # uniform in its logarithm
    return contrast, offset * 255 * (1 - contrast)


def tone(image: torch.Tensor, contrast: float, offset: float) -> torch.Tensor:
    """contrast · image + offset, in levels: uint8 as it came."""
    return image if contrast == 1 else image.float().mul_(contrast).add_(offset).round_().to(torch.uint8)


def _shorter_side(image: torch.Tensor, size: int) -> torch.Tensor:
    height, width = image.shape[-2:]
    short = min(height, width)
    target = (max(size, round(height * size / short)), max(size, round(width * size / short)))
    if target == (height, width):
        return image
    return resize(image[None].float(), target)[0].round_().clamp_(0, 255).to(torch.uint8)


def _random_square(image: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    top, left = (_below(side - size + 1, generator) for side in image.shape[-2:])
    return _square(image, top, left, size)


def _square(image: torch.Tensor, top: int, left: int, size: int) -> torch.Tensor:
    return image[..., top : top + size, left : left + size]


def _coin(probability: float, generator: torch.Generator) -> bool:
    return bool(torch.rand((), generator=generator) < probability)


def _below(bound: int, generator: torch.Generator) -> int:
    return int(torch.randint(bound, (), generator=generator))
