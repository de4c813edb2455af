"""Two-dimensional rotary positions (RoPE, arXiv 2104.09864): rows in the first half of the head, columns in the second.

The table is separable: the angles of a token depend on its row in one half and on its column in the other, so two
short tables replace the 1024 x 1024 x d one of the release.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Rotary(NamedTuple):
    """cos and sin of each pair of channels: (i, j, L, 1, d/2) float32, the 1 for the heads."""

    cos: torch.Tensor
    sin: torch.Tensor


def axis_angles(ids: torch.Tensor, half: int) -> torch.Tensor:
    """Angles along one axis: id · 10000^(-2t/D), t < D/2, D = half the head dim. ids (...,) -> (..., D/2)."""
    exponents = torch.arange(0, half, 2, dtype=torch.float32, device=ids.device) / half
    return ids[..., None].float() * (1.0 / 10000**exponents)


def rotary(rows: torch.Tensor, cols: torch.Tensor, head_dim: int) -> Rotary:
    """The rotation of every token in a group of blocks.

    rows     (i, n) position ids of the token rows of each block row
    cols     (j, n) likewise of the columns
    returns  Rotary for L = n² tokens a block, row-major
    """
    half = head_dim // 2
    i, n = rows.shape
    j = cols.shape[0]
    by_row = axis_angles(rows, half)[:, None, :, None, :].expand(i, j, n, n, half // 2)
    by_col = axis_angles(cols, half)[None, :, None, :, :].expand(i, j, n, n, half // 2)
    angles = torch.cat([by_row, by_col], dim=-1).reshape(i, j, n * n, 1, half)
    return Rotary(angles.cos(), angles.sin())


def rotate(x: torch.Tensor, table: Rotary) -> torch.Tensor:
    """Rotate adjacent pairs (a, b) -> (a cos - b sin, b cos + a sin), in float32.

    x (..., i, j, L, h, d); returns the same shape and dtype.
    """
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    rotated = torch.stack([a * table.cos - b * table.sin, b * table.cos + a * table.sin], dim=-1)
    return rotated.flatten(-2).to(x.dtype)
