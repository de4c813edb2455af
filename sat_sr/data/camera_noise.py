"""The noise of sensors: Gaussian, and that of the photons that were counted."""

from __future__ import annotations

import math
from functools import cache

import torch


def gaussian_noise(image: torch.Tensor, sigma: float, gray: bool, generator: torch.Generator) -> torch.Tensor:
    """(3,h,w), or (1,h,w) where one channel serves all three; `sigma` in grey levels of 8 bit."""
    shape = (1 if gray else 3, *image.shape[-2:])
    return torch.randn(shape, generator=generator, device=image.device).mul_(sigma / 255)


def poisson_noise(image: torch.Tensor, scale: float, gray: bool, generator: torch.Generator) -> torch.Tensor:
    """Photon noise of (3,h,w) in [0, 1], times `scale`; (1,h,w), that of the luma, where one channel serves all three.

    The picture is rounded to 8 bit, and full white is worth `peak` photons: the number of different levels found,
    rounded up to a power of two.
    """
    if gray:
        image = 0.2989 * image[:1] + 0.587 * image[1:2] + 0.114 * image[2:]
    levels = (image * 255).round_().clamp_(0, 255)
    index = levels.flatten().int()
    peak = 2 ** math.ceil(math.log2(torch.bincount(index, minlength=256).count_nonzero().item()))
    # Only 256 rates exist: look a photon count up by its level and a random 12-bit quantile. That is much cheaper than
    # torch.poisson, and the same law but for the outermost 1/8192 on either side.
    table = _poisson_quantiles(peak, image.device)
    quantile = torch.randint(4096, index.shape, generator=generator, device=image.device, dtype=torch.int32)
    photons = table.index_select(0, index.mul_(4096).add_(quantile)).view_as(levels)
    return photons.mul_(scale / peak).sub_(levels.mul_(scale / 255))


@cache
def _poisson_quantiles(peak: int, device: torch.device) -> torch.Tensor:
    """(256·4096,) float32 photon counts: at 4096 l + j the quantile (j + 1/2)/4096 of the Poisson law of peak·l/255."""
    rates = torch.arange(256, dtype=torch.float64)[:, None] * (peak / 255)
    counts = torch.arange(math.ceil(peak + 6 * math.sqrt(peak) + 6), dtype=torch.float64)
    cumulative = torch.special.gammaincc(counts + 1, rates)  # P(N <= count)
    quantiles = ((torch.arange(4096, dtype=torch.float64) + 0.5) / 4096).expand(256, -1).contiguous()
    return torch.searchsorted(cumulative, quantiles).flatten().float().to(device)
