"""Taking over from the input what upsampling must not change.

Every fix adds to the output a smooth part of its difference to the input: `output + L(input - output)`, L a low-pass.

mean            L keeps the mean of each channel
wavelet         L keeps the coarsest band of an undecimated wavelet transform of 5 levels (structures above 32 pixels)
backprojection  L = upsample(downsample(·)): whatever the input resolves; the output, downsampled, is then the input
                (Irani and Peleg 1991)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from sat_sr.diffusion.resize import resize

COLOR_FIXES = ("none", "mean", "wavelet", "backprojection")
WAVELET_LEVELS = 5
STRIP = 256  # rows
BACKPROJECTIONS = 2  # bicubic down and up is not quite a projection: the second pass takes what the first left


def fix_colors(output: torch.Tensor, image: torch.Tensor, fix: str) -> torch.Tensor:
    """Apply one of COLOR_FIXES. output (B, 3, H, W) and image (B, 3, h, w) in [-1, 1]; returns (B, 3, H, W)."""
    size = output.shape[-2:]
    if fix == "mean":
        return output + (image.mean((-2, -1), keepdim=True) - output.mean((-2, -1), keepdim=True))
    if fix == "wavelet":
        return _coarsest_band(resize(image, size).sub_(output)).add_(output)
    if fix == "backprojection":
        output = output.clone()
        for _ in range(BACKPROJECTIONS):
            output = output.add_(resize(image - resize(output, image.shape[-2:]), size))
        return output
    if fix == "none":
        return output
    raise ValueError(f"unknown color fix {fix!r}: choose one of {', '.join(COLOR_FIXES)}")


def _coarsest_band(x: torch.Tensor) -> torch.Tensor:
    """Repeated blur by (1, 2, 1)/4 with holes of 1, 2, 4, ... pixels, edges repeated (the à-trous algorithm).

    Done in strips that reach as far beyond what they give as the blur does: a large picture exists twice, not six
    times.
    """
    height, reach = x.shape[-2], 2**WAVELET_LEVELS - 1
    band = torch.empty_like(x)
    for top in range(0, height, STRIP):
        bottom, first = min(top + STRIP, height), max(top - reach, 0)
        strip = _blur(x[..., first : bottom + reach, :])
        band[..., top:bottom, :] = strip[..., top - first : bottom - first, :]
    return band


def _blur(x: torch.Tensor) -> torch.Tensor:
    for level in range(WAVELET_LEVELS):
        hole = 2**level
        for pad, cut in (((hole, hole, 0, 0), -1), ((0, 0, hole, hole), -2)):
            padded, length = F.pad(x, pad, mode="replicate"), x.shape[cut]
            x = padded.narrow(cut, 0, length) + padded.narrow(cut, 2 * hole, length)
            x = x.add_(padded.narrow(cut, hole, length), alpha=2).div_(4)
    return x
