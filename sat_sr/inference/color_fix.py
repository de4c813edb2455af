"""Taking over from the input what upsampling must not change, when the picture is done.

A fix adds to the output a smooth part of its difference to the input: `output + L(input - output)`, L a low-pass.

mean     L keeps the mean of each channel
wavelet  L keeps the coarsest band of an undecimated wavelet transform of 5 levels (structures above 32 pixels)

`backprojection`, which takes over all that the input resolves, does so in the network calls and has a file of its own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from sat_sr.inference.resize_in_parts import STRIP, resize_columns
from sat_sr.sampling import COLOR_FIXES

WAVELET_LEVELS = 5


def fix_colors(output: torch.Tensor, image: torch.Tensor, fix: str) -> torch.Tensor:
    """Apply what COLOR_FIXES has for the end. output (B, 3, H, W) and image (B, 3, h, w) in [-1, 1].

    Returns output, overwritten; untouched for "none" and "backprojection".

    A large picture exists once: everything is done in strips; what is needed on top is as high or as wide as the input.
    """
    if fix == "mean":
        return output.add_(image.mean((-2, -1), keepdim=True) - output.mean((-2, -1), keepdim=True))
    if fix == "wavelet":
        return _exchange_coarsest_band(output, image)
    if fix in ("none", "backprojection"):
        return output
    raise ValueError(f"unknown color fix {fix!r}: choose one of {', '.join(COLOR_FIXES)}")


def _strips(width: int) -> list[slice]:
    return [slice(left, min(left + STRIP, width)) for left in range(0, width, STRIP)]


def _exchange_coarsest_band(output: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Give output the input's structures above 2^WAVELET_LEVELS pixels: add the blurred difference, in place.

    A strip reaches as far beyond what it gives as the blur does; to its left the output has changed by then, so what
    was there is kept.
    """
    height, width = output.shape[-2:]
    reach = 2**WAVELET_LEVELS - 1
    upsampled = resize_columns(image, (height, width))
    before = output[..., :0]
    for strip in _strips(width):
        original = torch.cat([before, output[..., strip.start : strip.stop + reach]], dim=-1)
        first = strip.start - before.shape[-1]
        band = _blur(upsampled(first, first + original.shape[-1]).sub_(original))
        output[..., strip] += band[..., strip.start - first : strip.stop - first]
        before = original[..., max(strip.stop - reach - first, 0) : strip.stop - first]
    return output


def _blur(x: torch.Tensor) -> torch.Tensor:
    """Repeated blur by (1, 2, 1)/4 with holes of 1, 2, 4, ... pixels, edges repeated (à-trous algorithm). In place."""
    for level in range(WAVELET_LEVELS):
        hole = 2**level
        for pad, cut in (((hole, hole, 0, 0), -1), ((0, 0, hole, hole), -2)):
            padded, length = F.pad(x, pad, mode="replicate"), x.shape[cut]
            torch.add(padded.narrow(cut, 0, length), padded.narrow(cut, 2 * hole, length), out=x)
            x.add_(padded.narrow(cut, hole, length), alpha=2).div_(4)
    return x
