"""Two-dimensional rotary positions (RoPE, arXiv 2104.09864): rows in the first half of the head, columns in the second.

The table is separable: the angles of a token depend on its row in one half and on its column in the other, so two
short tables replace the 1024 x 1024 x d one of the release.
"""

from __future__ import annotations

import functools

import torch


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
    returns  (i, j, L, 1, d/2) complex64, L = n² tokens a block, row-major, the 1 for the heads
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

    x (..., i, j, L, h, d), overwritten if it is float32 or there are no gradients; rotation of `rotary`, or
    `torch.view_as_real` of it for Inductor, which has no complex numbers: then nothing is overwritten. Returns the
    shape and dtype of x.
    """
    if not rotation.is_complex():
        (cos, sin), (a, b) = rotation.unbind(-1), x.float().unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2).to(x.dtype)
    if x.dtype == torch.float32 or torch.is_grad_enabled():
        return _rotated(x.float(), rotation).to(x.dtype)
    # One row of blocks at a time: its copy in float32 is small, and of the official model stays in a GPU's cache.
    for row, turn in zip(x.unbind(-5), rotation, strict=True):
        row.copy_(_rotated(row.float(), turn))
    return x


def _rotated(x: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """x float32, overwritten."""
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))).mul_(rotation)).flatten(-2)
