"""Nearby-LR cross-attention (paper, section 3.3): each block looks at the low-resolution picture around it.

The LR condition (1/4 of the canvas) becomes a map of features by a 2x2 convolution of stride 2. The tokens of block
(i, j) attend to the features of the 3x3 blocks centred on it. Outside the map the features are zero vectors (padding
after the convolution), attended like any other. Only the features of a group and the blocks around it are ever made.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange

from sat_sr.config import LR_PATCH
from sat_sr.model.linear import linear
from sat_sr.model.stock import attend


def group_lr(lr: torch.Tensor, rows: range, cols: range, grid: tuple[int, int]) -> torch.Tensor:
    """The part of the LR condition that a group's blocks see: its own and the ring of blocks around it.

    lr          (B, 3, H/4, W/4), the condition of the whole canvas
    rows, cols  block rows and columns of the group
    grid        (I, J), blocks of the canvas
    returns     (B, 3, (i+2)·s, (j+2)·s) with s the LR pixels of a block side; NaN outside the picture, which
                `lr_features` turns into zero features
    """
    side = lr.shape[-2] // grid[0]
    top, bottom = max(rows.start - 1, 0), min(rows.stop + 1, grid[0])
    left, right = max(cols.start - 1, 0), min(cols.stop + 1, grid[1])
    inside = lr[..., top * side : bottom * side, left * side : right * side]
    padding = (left - cols.start + 1, cols.stop + 1 - right, top - rows.start + 1, rows.stop + 1 - bottom)
    return F.pad(inside, [side * blocks for blocks in padding], value=float("nan"))


def lr_features(lr: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """The 2x2 convolution of stride 2 as a matrix product; zero vectors where the LR condition is NaN (outside).

    lr (B, 3, y, x), weight (C, 3, 2, 2), bias (C,) -> (B, y/2, x/2, C)
    """
    patches = rearrange(lr, "B c (y p) (x q) -> B y x (c p q)", p=LR_PATCH, q=LR_PATCH)
    outside = patches[..., :1].isnan()
    features = linear(patches.nan_to_num(0.0), weight.flatten(1), bias)
    return features.masked_fill(outside, 0)


def block_windows(strip: torch.Tensor, side: int) -> torch.Tensor:
    """Cut the 3x3 neighbourhoods of one row of blocks out of a padded map, column-major within a window.

    strip     (B, 3·side, (j+2)·side, h, d)
    returns   (B, j, h, 9·side², d): windows that overlap are views of the same columns, copied once
    """
    columns = rearrange(strip, "B y x h d -> B h x y d").contiguous()
    windows = columns.unfold(2, 3 * side, side)  # (B, h, j, y, d, x)
    return rearrange(windows, "B h j y d x -> B j h (x y) d")


def attend_windows(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, k_position: torch.Tensor) -> torch.Tensor:
    """Attention of each block to its window, one row of blocks at a time: a window is larger than a block's own keys.

    q           (B, i, j, h, L, d)
    k, v        (B, (i+2)·side, (j+2)·side, h, d), of the padded map
    k_position  (1, 9·side², h, d), added to the keys of each window
    returns     (B, i, j, h, L, d)
    """
    rows, side = q.shape[1], k.shape[1] // (q.shape[1] + 2)
    k_position = rearrange(k_position, "1 (y x) h d -> h (x y) d", y=3 * side)
    attended = []
    for row in range(rows):
        near = slice(row * side, (row + 3) * side)
        out = attend(
            q[:, row].flatten(0, 1),
            (block_windows(k[:, near], side) + k_position).flatten(0, 1),
            block_windows(v[:, near], side).flatten(0, 1),
        )
        attended.append(out.unflatten(0, (-1, q.shape[2])).transpose(2, 3))
    return torch.stack(attended, dim=1).transpose(3, 4)  # in memory as the next Linear wants it
