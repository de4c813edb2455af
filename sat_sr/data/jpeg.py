"""JPEG compression of float images: libjpeg through Pillow on the CPU, the same arithmetic on tensors elsewhere.

The tensor codec follows libjpeg where it shows in the pixels: 8-bit rounding of Y, Cb and Cr, 4:2:0 chroma with its
alternating rounding, the quantisation tables of ITU-T T.81 annex K scaled by quality, replicated edges, and the
triangle-filter ("fancy") chroma upsampling of the decoder. Entropy coding is lossless and left out.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
)
_RGB_TO_YCC = ((0.299, 0.587, 0.114), (-0.168735892, -0.331264108, 0.5), (0.5, -0.418687589, -0.081312411))
_YCC_TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136286, -0.714136286), (1.0, 1.772, 0.0))


def jpeg(images: torch.Tensor, qualities: Sequence[int]) -> torch.Tensor:
    """Compress and decompress every image with its own quality, 4:2:0 chroma.

    images     (B,3,H,W) float32 RGB in [0, 1] (clamped and rounded to 8 bit); qualities: B integers in 1..100
    returns    (B,3,H,W) float32 in [0, 1], multiples of 1/255

    Pillow's codec for CPU tensors, the tensor codec for others: they differ by a part of a grey level in the mean.
    """
    for quality in qualities:
        if not 1 <= quality <= 100:
            raise ValueError(f"JPEG quality {quality} is outside of 1..100")
    if images.device.type == "cpu":
        return torch.stack([jpeg_pillow(image, quality) for image, quality in zip(images, qualities, strict=True)])
    return jpeg_tensor(images, qualities)


def jpeg_pillow(image: torch.Tensor, quality: int) -> torch.Tensor:
    """One image (3,H,W) through an encoder and a decoder, in memory."""
    pixels = (image * 255).round_().clamp_(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous()
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, "JPEG", quality=int(quality), subsampling="4:2:0")
    decoded = torch.from_numpy(np.array(Image.open(file)))
    return decoded.permute(2, 0, 1).contiguous().float().div_(255)


def jpeg_tensor(images: torch.Tensor, qualities: Sequence[int]) -> torch.Tensor:
    """The same as `jpeg`, batched, on whatever device the images are."""
    height, width = images.shape[-2:]
    tables_B2kk = torch.stack([_quantisation_tables(int(quality)) for quality in qualities]).to(images)
    rgb = (images * 255).round().clamp(0, 255)
    # Whole units of 16 × 16 pixels: two chroma blocks' worth of luma, completed by repeating the last row and column.
    rgb = F.pad(rgb, (0, -width % 16, 0, -height % 16), mode="replicate")
    ycc = _mix_channels(rgb, _RGB_TO_YCC)
    luma = ycc[:, :1].round()
    chroma = _halve((ycc[:, 1:] + 128).round())
    luma = _quantise(luma, tables_B2kk[:, :1])[..., :height, :width]
    chroma = _quantise(chroma, tables_B2kk[:, 1:])[..., : math.ceil(height / 2), : math.ceil(width / 2)]
    chroma = _double(chroma)[..., :height, :width] - 128
    return _mix_channels(torch.cat([luma, chroma], dim=1), _YCC_TO_RGB).round().clamp(0, 255) / 255


@cache
def _quantisation_tables(quality: int) -> torch.Tensor:
    """(2,8,8) luminance and chrominance steps, scaled as libjpeg does: half the table at 75, all ones at 100."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    base = torch.tensor([_LUMINANCE, _CHROMINANCE])
    return ((base * percent + 50) // 100).clamp(1, 255)


@cache
def _dct_matrix() -> torch.Tensor:
    """(8,8) orthonormal DCT-II: row u is the basis function of frequency u."""
    u, x = torch.meshgrid(*(torch.arange(8, dtype=torch.float64),) * 2, indexing="ij")
    matrix = torch.cos((2 * x + 1) * u * math.pi / 16) / 2
    matrix[0] /= math.sqrt(2)
    return matrix


def _mix_channels(image: torch.Tensor, matrix: Sequence[Sequence[float]]) -> torch.Tensor:
    return torch.einsum("dc,bchw->bdhw", torch.tensor(matrix).to(image), image)


def _quantise(plane: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """What remains of 8-bit planes (B,C,H,W) after their DCT coefficients were rounded to multiples of (B,1,8,8)."""
    dct = _dct_matrix().to(plane)
    blocks = (plane - 128).unflatten(-1, (-1, 8)).unflatten(-3, (-1, 8)).transpose(-3, -2)  # (B,C,rows,columns,8,8)
    step = table[:, :, None, None]
    # Exact halves are frequent in flat blocks: libjpeg rounds a coefficient's away from zero, a pixel's up. The sliver
    # more than 1/2 keeps float32's last digits from deciding otherwise.
    half = 0.5 + 1e-4
    levels = dct @ blocks @ dct.T / step
    coefficients = levels.sign() * (levels.abs() + half).floor() * step
    pixels = (dct.T @ coefficients @ dct).transpose(-3, -2).flatten(-4, -3).flatten(-2, -1)
    return (pixels + 128 + half).floor().clamp(0, 255)


def _halve(chroma: torch.Tensor) -> torch.Tensor:
    """Mean of 2 × 2 pixels, rounded. The bias 1, 2, 1, 2, … along a row lets libjpeg round halves without drift."""
    sums = chroma.unflatten(-1, (-1, 2)).sum(-1).unflatten(-2, (-1, 2)).sum(-2)
    bias = 1 + torch.arange(sums.shape[-1], device=chroma.device) % 2
    return ((sums + bias) / 4).floor()


def _double(chroma: torch.Tensor) -> torch.Tensor:
    """Twice the size by the triangle filter (weights 3/4 and 1/4 in each direction), rounded."""
    sixteenths = F.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False) * 16
    bias = 8 - torch.arange(sixteenths.shape[-1], device=chroma.device) % 2
    return ((sixteenths.round() + bias) / 16).floor()
