"""Unidirectional block attention (UniBA), the idea of Inf-DiT (arXiv 2405.04312, section 3.2).

        j-1     j
      +------+------+
 i-1  |  tl  | top  |      The tokens of block (i, j) attend to the keys of four blocks: their own, the one to the
      +------+------+      left, above, and above-left. All arrows point up and left, so blocks can be computed in any
  i   | left | self |      order that respects them, as long as K and V of the needed neighbours are kept: whole,
      +------+------+      by groups, or one by one give the same numbers.

At the picture's border indices are clamped: a missing neighbour is replaced by the nearest block, with the relation
embedding of the relation it stands for, so block (0, 0) attends to itself four times with four embeddings.

A *group* is a rectangle of i x j blocks. Its keys are *extended* by one halo row above and one halo column to the left:
(B, i+1, j+1, h, L, d). Where the halo comes from is the caller's business: `clamped_halo` here when the group is the
whole picture, the frontier of kept blocks in the inference schedules.

Shapes: B batch, i j block rows and columns of the group, L tokens of a block, h heads, d head dim.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

# relation -> (row, column) of the neighbour in the extended grid, for the block at (0, 0) of the group.
# The order is that of the relation embeddings in the checkpoints.
RELATIONS = {"self": (1, 1), "top_left": (0, 0), "left": (1, 0), "top": (0, 1)}


class Border(NamedTuple):
    """Whether the group touches the picture's top or left edge: there its halo repeats its own first row or column."""

    top: bool
    left: bool


class Extended(NamedTuple):
    """Keys and values of a group with their halo, (B, i+1, j+1, h, L, d) each."""

    k: torch.Tensor
    v: torch.Tensor
    border: Border


def clamped_halo(k: torch.Tensor, v: torch.Tensor) -> Extended:
    """Extend keys and values (B, i, j, h, L, d) of a whole picture: every halo block is the clamped neighbour."""
    _, i, j, *_ = k.shape
    rows = torch.arange(-1, i, device=k.device).clamp_min(0)
    cols = torch.arange(-1, j, device=k.device).clamp_min(0)

    def extend(x):
        return x.index_select(1, rows).index_select(2, cols)

    return Extended(extend(k), extend(v), Border(top=True, left=True))


def neighbour(extended: torch.Tensor, offset: tuple[int, int]) -> torch.Tensor:
    """The neighbour of each block of the group: a view (B, i, j, h, L, d) of the extended (B, i+1, j+1, h, L, d)."""
    row, col = offset
    i, j = extended.shape[1] - 1, extended.shape[2] - 1
    return extended[:, row : row + i, col : col + j]


def relation_bias(q: torch.Tensor, relation_embed: torch.Tensor) -> torch.Tensor:
    """Logit shift of each neighbour: q·(k + e_r) = q·k + q·e_r, and q·e_r does not depend on the key.

    q               (B, i, j, h, L, d)
    relation_embed  (4, h, d), in the order of RELATIONS
    returns         (B, i, j, h, L, 4), at least float32, scaled by 1/sqrt(d)
    """
    # As one product per head over the tokens as they are in memory: `matmul` would copy q first.
    tokens = q.transpose(3, 4).flatten(0, 3).transpose(0, 1)
    bias = torch.bmm(tokens, relation_embed.permute(1, 2, 0))
    bias = bias.unflatten(1, (*q.shape[:3], q.shape[4])).permute(1, 2, 3, 0, 4, 5)
    return bias.to(torch.promote_types(bias.dtype, torch.float32)) * q.shape[-1] ** -0.5
