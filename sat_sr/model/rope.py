"""Two-dimensional rotary positions (RoPE, arXiv 2104.09864): rows in the first half of the head, columns in the second.

The table is separable: the angles of a token depend on its row in one half and on its column in the other, so two
short tables replace the 1024 x 1024 x d one of the release.
"""

from __future__ import annotations

import functools

import torch
from torch import nn


@functools.lru_cache(maxsize=8)
def axis_rotations(period: int, half: int, device: torch.device) -> torch.Tensor:
    """The table of one axis, by id · 10000^(-2t/D), t < D/2, D = half the head dim: (period, D/2) complex64.

    16 KiB in the small model, 160 KiB in the official one; a group takes from it in each call.
    """
    exponents = torch.arange(0, half, 2, dtype=torch.float32, device=device) / half
    angles = torch.arange(period, device=device)[:, None].float() * (1.0 / 10000**exponents)
    return torch.complex(angles.cos(), angles.sin())


def rotary(rows: torch.Tensor, cols: torch.Tensor, head_dim: int, period: int) -> torch.Tensor:
    """The rotation of every token in a group of blocks, a unit complex number for each pair of channels.

    rows     (i, n) position ids of the token rows of each block row
    cols     (j, n) likewise of the columns
    period   ids are taken modulo this
    returns  (i, j, L, 1, d/2) complex64, L = n² tokens per block, row-major, the 1 for the heads
    """
    half = head_dim // 2
    i, n = rows.shape
    j = cols.shape[0]
    table = axis_rotations(period, half, rows.device)
    by_row = table[rows % period][:, None, :, None, :].expand(i, j, n, n, half // 2)
    by_col = table[cols % period][None, :, None, :, :].expand(i, j, n, n, half // 2)
    return torch.cat([by_row, by_col], dim=-1).reshape(i, j, n * n, 1, half)


def rotate_(x: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """Rotate adjacent pairs (a, b) -> (a cos − b sin, b cos + a sin), in float32: one complex product.

    x (..., i, j, L, h, d), overwritten if it is float32 or there are no gradients; rotation of `rotary`. Returns the
    shape and dtype of x.
    """
    if x.dtype == torch.float32 or torch.is_grad_enabled():
        return _rotated(x.float(), rotation).to(x.dtype)
    # One row of blocks at a time: its copy in float32 is small, and of the official model stays in a GPU's cache.
    for row, turn in zip(x.unbind(-5), rotation, strict=True):
        row.copy_(_rotated(row.float(), turn))
    return x


def norm_and_rotate(x: torch.Tensor, norm: nn.LayerNorm, rotation: torch.Tensor) -> torch.Tensor:
    """`rotate_` of the norm of x, as Inductor makes one pass of it, in float32 throughout.

    x (..., i, j, L, h, d); rotation (i, j, L, 1, d/2, 2), `torch.view_as_real` of `rotary`, as Inductor has no complex
    numbers. Each number is rotated with the other one of its pair, and that is normalised again where it is needed: as
    a result of its own the norm would go through memory, in float32.
    """
    numbers = x.float()
    variance, mean = torch.var_mean(numbers, -1, correction=0, keepdim=True)
    scale = (variance + norm.eps).rsqrt()

    def normed(numbers, weight, bias):
        return (numbers - mean) * scale * weight + bias

    cos, sin = rotation.unbind(-1)
    cos, sin = torch.stack([cos, cos], -1).flatten(-2), torch.stack([-sin, sin], -1).flatten(-2)
    others = normed(*(_swapped(t) for t in (numbers, norm.weight, norm.bias)))
    return (normed(numbers, norm.weight, norm.bias) * cos + others * sin).to(x.dtype)


def _swapped(x: torch.Tensor) -> torch.Tensor:
    """The two of each pair in the last dim exchanged."""
    return x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)


def _rotated(x: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """x float32, overwritten."""
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))).mul_(rotation)).flatten(-2)
