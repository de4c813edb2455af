"""Block attention by FlexAttention (arXiv 2412.05496): one fused call over all blocks of a group.

The blocks of the group are one sequence, those with the halo another. The relation bias is added in the score, and a
block mask leaves out the pairs of blocks that are not neighbours. A kernel as in `attention_kernels`, for CUDA.
"""

from __future__ import annotations

import functools
import math

import torch

from sat_sr.model.block_attention import RELATIONS, Border, Extended, relation_bias
from sat_sr.model.fusion import Fuse, fused, unfused

# Tokens of a tile of FlexAttention's mask: whichever tile its CUDA kernels take for a dtype and GPU divides that.
FLEX_TILE = 128


def flex(q: torch.Tensor, extended: Extended, relation_embed: torch.Tensor, fuse: Fuse = unfused) -> torch.Tensor:
    """All blocks of the group as one sequence, FlexAttention skipping the pairs of blocks that are not neighbours."""
    B, i, j, h, L, _ = q.shape
    k, v, border = extended
    bias = _bias_of_distinct(relation_bias(q, relation_embed), border)
    # (B, h, queries) of each relation: a load for every row of a tile. Looked up by relation it would be one for every
    # pair, a float32 tile as large as the scores, which Triton pipelines through shared memory like those of k and v.
    biases = bias.permute(0, 3, 1, 2, 4, 5).reshape(B, h, i * j * L, len(RELATIONS)).unbind(-1)

    def score(score, b, head, q_index, k_index):
        row, col = _offset(q_index // L, k_index // L, j)
        own, top_left, left, top = (bias[b, head, q_index] for bias in biases)
        return score + torch.where(row == 1, torch.where(col == 1, own, left), torch.where(col == 1, top, top_left))

    sequence = [x.permute(0, 3, 1, 2, 4, 5).flatten(2, 4) for x in (q, k, v)]
    mask = _neighbour_mask((i, j), L, border, q.device)
    options = _tiles(q)
    out = _flex_attention(q.device.type)(*sequence, score_mod=score, block_mask=mask, kernel_options=options)
    return out.unflatten(2, (i, j, L)).permute(0, 2, 3, 1, 4, 5)


def _offset(q_block, k_block, j: int):
    """Position of a key block relative to a query block, rows and columns, 0 or 1 for neighbours."""
    return k_block // (j + 1) - q_block // j, k_block % (j + 1) - q_block % j


def _bias_of_distinct(bias: torch.Tensor, border: Border) -> torch.Tensor:
    """Fold the biases (B, i, j, h, L, 4) of relations that clamp to the same neighbour into one."""
    own, top_left, left, top = range(4)
    bias = bias.clone()
    if border.top:
        edge = bias[:, 0]
        edge[..., own] = torch.logaddexp(edge[..., own], edge[..., top])
        edge[..., left] = torch.logaddexp(edge[..., left], edge[..., top_left])
        edge[..., top].fill_(-torch.inf)
        edge[..., top_left].fill_(-torch.inf)
    if border.left:
        edge = bias[:, :, 0]
        edge[..., own] = torch.logaddexp(edge[..., own], edge[..., left])
        edge[..., top] = torch.logaddexp(edge[..., top], edge[..., top_left])
        edge[..., left].fill_(-torch.inf)
        edge[..., top_left].fill_(-torch.inf)
    return bias


@functools.lru_cache(maxsize=64)
def _neighbour_mask(group: tuple[int, int], tokens: int, border: Border, device: torch.device):
    """FlexAttention's block mask: which tiles of a group's (query, key) pairs belong to neighbours.

    A tile is in one block of the picture, so it counts as a whole or not at all. Made tile by tile: from pair to pair
    it would take gigabytes.
    """
    from torch.nn.attention.flex_attention import BlockMask

    (i, j), tile = group, math.gcd(tokens, FLEX_TILE)

    def is_neighbour(b, head, q_index, k_index):
        # Nothing about the border in here, or each would be compiled by itself: there the bias is minus infinity.
        row, col = _offset(q_index // tokens, k_index // tokens, j)
        return (row >= 0) & (row <= 1) & (col >= 0) & (col <= 1)

    q_index = torch.arange(0, i * j * tokens, tile, device=device)[:, None]
    k_index = torch.arange(0, (i + 1) * (j + 1) * tokens, tile, device=device)
    k_row, k_col = k_index // tokens // (j + 1), k_index // tokens % (j + 1)
    wanted = is_neighbour(0, 0, q_index, k_index) & (k_row >= border.top) & (k_col >= border.left)
    order = wanted.int().argsort(descending=True, stable=True).int()[None, None]
    count = wanted.sum(-1, dtype=torch.int32)[None, None]
    nothing = torch.zeros_like(count), torch.zeros_like(order)
    return BlockMask.from_kv_blocks(*nothing, count, order, BLOCK_SIZE=tile, mask_mod=is_neighbour)


def _tiles(q: torch.Tensor) -> dict[str, int] | None:
    """FlexAttention's tiles where PyTorch's do not suit the score, on the GPUs whose shared memory holds them.

    128 x 64 by eight warps, PyTorch's own choice for heads of 128 on the A100 and the H100, to which it rounds heads of
    more than 64 up. For those it has no entry and takes 64 x 64 by four warps: on the A100 there is room for one such
    tile in a multiprocessor. Its entries for heads of 64 are for a score without a bias: with it, registers spill.
    """
    half = q.dtype in (torch.bfloat16, torch.float16)
    if not (q.is_cuda and half and 64 <= q.shape[-1] < 128):
        return None
    if torch.cuda.get_device_capability(q.device) not in ((8, 0), (9, 0)):
        return None
    return {"BLOCK_M": 128, "BLOCK_N": 64, "num_warps": 8, "num_stages": 3}


def _flex_attention(device: str):
    from torch.nn.attention.flex_attention import flex_attention

    # Uncompiled it is correct but makes the whole score matrix, in tens of gigabytes: for tests alone.
    return fused(flex_attention, fullgraph=True) if device == "cuda" else flex_attention
