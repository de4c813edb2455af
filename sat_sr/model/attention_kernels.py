"""The one seam for kernels: ways to compute block attention, all the same function.

Every kernel has the signature `kernel(q, extended, relation_embed, fuse=unfused) -> out`:

q               (B, i, j, h, L, d)  queries of a group, normalised and rotated
extended        Extended            keys and values of the group and its halo
relation_embed  (4, h, d)
fuse            `fusion.fused` compiles what a kernel does beside attention, where it pays
returns         (B, i, j, h, L, d)

sdpa   the reference: the keys of the neighbours side by side, one stock attention. Everywhere, with gradients.
merge  attention on each distinct neighbour alone, merged by log-sum-exp; nothing is copied four times. Inference.
flash  the same over the flash-attn package.
flex   FlexAttention: one fused call, the relation bias in the score, pairs that are not neighbours masked out. CUDA.
cudnn  `merge` over cuDNN's attention. CUDA.

At the picture's border a neighbour stands for several relations: every kernel computes it once.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F

from sat_sr.model.block_attention import RELATIONS, Border, Extended, neighbour, relation_bias
from sat_sr.model.flex_attention import FLEX_TILE, flex
from sat_sr.model.fusion import Fuse, unfused
from sat_sr.model.stock import attend, attend_with_lse, before_ampere

# Dimensions that carry the bias in `sdpa`: one would do, so many leave the head as aligned as it was.
MARK = 8

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def sdpa(q: torch.Tensor, extended: Extended, relation_embed: torch.Tensor, fuse: Fuse = unfused) -> torch.Tensor:
    """softmax(q (k_r + e_r)ᵀ / sqrt(d)) v over the keys of all four relations r.

    The first row or column of blocks on the picture's edge has fewer distinct neighbours than the others: it is a strip
    of its own.
    """
    k, v, border = extended
    for dim, side in enumerate(border._fields, start=1):
        if getattr(border, side) and (blocks := q.shape[dim]) > 1:
            inner = border._replace(**{side: False})
            edge = Extended(k.narrow(dim, 0, 2), v.narrow(dim, 0, 2), border)
            rest = Extended(k.narrow(dim, 1, blocks), v.narrow(dim, 1, blocks), inner)
            parts = (
                sdpa(q.narrow(dim, 0, 1), edge, relation_embed),
                sdpa(q.narrow(dim, 1, blocks - 1), rest, relation_embed),
            )
            # In memory as the next Linear wants it.
            return torch.cat([part.transpose(3, 4) for part in parts], dim).transpose(3, 4)
    return _strip(q, extended, relation_embed)


def _strip(q: torch.Tensor, extended: Extended, relation_embed: torch.Tensor) -> torch.Tensor:
    """Blocks that are all on the same edges: the keys of their distinct neighbours side by side, one stock attention.

    Inside the picture e_r is added to the keys. On its edge the relations R that share a neighbour give it one weight,
    Σ_R exp(q·(k + e_r)/sqrt(d)) = exp(q·k/sqrt(d) + b_R) with b_R = log Σ_R exp(q·e_r/sqrt(d)). In the corner block the
    single b_R cancels in the softmax. On an edge there are two, and only their difference matters: extra dimensions of
    q carry it, against 1 in the second neighbour's keys and 0 in the first's.
    """
    k, v, border = extended
    distinct, (*blocks, L, d) = distinct_neighbours(border), q.shape
    if len(distinct) == 2:
        bias = relation_bias(q, relation_embed)
        first, second = (_joined(bias, relations) for relations in distinct.values())
        share = ((second - first) * d**0.5 / MARK).to(q.dtype)
        q = torch.cat([q, share[..., None].expand(*blocks, L, MARK)], -1)
        k = torch.stack([F.pad(neighbour(k, at), (0, MARK), value=n) for n, at in enumerate(distinct)], dim=-3)
        # Stock attention's fast paths want v as wide as k.
        v = torch.stack([F.pad(neighbour(v, at), (0, MARK)) for at in distinct], dim=-3)
    else:
        k, v = (torch.stack([neighbour(x, at) for at in distinct], dim=-3) for x in (k, v))  # (B, i, j, h, n, L, d)
    if len(distinct) == len(RELATIONS):
        k = k.add_(relation_embed.transpose(0, 1)[:, :, None])
    k, v = k.flatten(-3, -2), v.flatten(-3, -2)
    # 4-D: stock attention takes much slower paths for more dimensions.
    out = attend(*(x.flatten(0, 2) for x in (q, k, v)), scale=d**-0.5)
    return out[..., :d].unflatten(0, blocks[:3])


def flash_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The flash-attn package's attention, shapes as in `attend_with_lse`."""
    from flash_attn import flash_attn_func

    out, lse, _ = flash_attn_func(*(x.transpose(1, 2) for x in (q, k, v)), return_attn_probs=True)
    return out.transpose(1, 2), lse.float()


def cudnn_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """cuDNN's attention, shapes as in `attend_with_lse`."""
    out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True)
    return out, lse.float().reshape(q.shape[:-1])


def merge(
    q: torch.Tensor,
    extended: Extended,
    relation_embed: torch.Tensor,
    fuse: Fuse = unfused,
    attention: Attention = attend_with_lse,
) -> torch.Tensor:
    """out = Σ_u w_u o_u over the distinct neighbours u, w = softmax_u(lse_u + log Σ_r exp(q·e_r/sqrt(d))).

    The inner sum is over the relations r that u stands for: one inside the picture, two or four at its border. The
    group is taken row by row: there keys and values are views of the extended ones, nothing is copied.
    """
    k, v, border = extended
    B, i, j, h, L, d = q.shape
    bias = relation_bias(q, relation_embed)
    out = q.new_empty(B, i, j, L, h, d).transpose(3, 4)  # in memory as the next Linear wants it
    # The first block of a row at the picture's left edge has fewer distinct neighbours than the others.
    stretches = [range(0, 1), range(1, j)] if border.left and j > 1 else [range(j)]
    for row, columns in itertools.product(range(i), stretches):
        here = slice(None), row, slice(columns.start, columns.stop)
        edges = Border(border.top and row == 0, border.left and columns.start == 0)
        distinct = distinct_neighbours(edges)
        parts, lses = [], []
        for down, right in distinct:
            there = slice(None), row + down, slice(columns.start + right, columns.stop + right)
            o, lse = attention(*(x.flatten(0, 1) for x in (q[here], k[there], v[there])))
            parts.append(o.unflatten(0, (B, -1)))
            lses.append(lse.unflatten(0, (B, -1)))
        # On the picture's edge there are few blocks: no graphs for those.
        combine = fuse(_combine) if len(parts) == len(RELATIONS) else _combine
        combine(out[here], parts, lses, bias[here], list(distinct.values()))
    return out


def _combine(
    out: torch.Tensor,
    parts: list[torch.Tensor],
    lses: list[torch.Tensor],
    bias: torch.Tensor,
    relations: list[list[int]],
) -> None:
    """Overwrites out with Σ_u w_u o_u: out, parts o_u (B, j, h, L, d), lses (B, j, h, L), bias (B, j, h, L, 4)."""
    logits = [lse + _joined(bias, of_one) for lse, of_one in zip(lses, relations, strict=True)]
    if torch.compiler.is_compiling():
        # One pass: Inductor would make softmax of a stack several, and takes no `out=` that is not contiguous.
        highest = functools.reduce(torch.maximum, logits)
        shares = [(logit - highest).exp() for logit in logits]
        total = sum(shares)
        out.copy_(sum(part * (share / total)[..., None] for part, share in zip(parts, shares, strict=True)))
        return
    weights = torch.stack(logits).softmax(0).to(out.dtype)[..., None]
    torch.mul(parts[0], weights[0], out=out)
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        out.addcmul_(part, weight)


def _joined(bias: torch.Tensor, relations: list[int]) -> torch.Tensor:
    """The shift of a neighbour that stands for some relations: (..., 4) -> (...), log Σ_r exp(bias_r)."""
    # One by one: to index by a list would make a GPU wait for the list to arrive.
    return functools.reduce(torch.logaddexp, (bias[..., relation] for relation in relations))


def distinct_neighbours(border: Border) -> dict[tuple[int, int], list[int]]:
    """Distinct neighbours of blocks that are all on the same edges: position in the extended grid -> its relations."""
    found: dict[tuple[int, int], list[int]] = {}
    for relation, (row, col) in enumerate(RELATIONS.values()):
        at = (1 if border.top else row, 1 if border.left else col)
        found.setdefault(at, []).append(relation)
    return found


def flash(q: torch.Tensor, extended: Extended, relation_embed: torch.Tensor, fuse: Fuse = unfused) -> torch.Tensor:
    """`merge` over the flash-attn package."""
    return merge(q, extended, relation_embed, fuse, flash_attention)


def cudnn(q: torch.Tensor, extended: Extended, relation_embed: torch.Tensor, fuse: Fuse = unfused) -> torch.Tensor:
    """`merge` over cuDNN's attention."""
    return merge(q, extended, relation_embed, fuse, cudnn_attention)


# Tokens of a block from which nothing is lost by attending to neighbours one by one, and the copies are saved.
LARGE_BLOCK = 1024

KERNELS = {"sdpa": sdpa, "merge": merge, "flash": flash, "flex": flex, "cudnn": cudnn}


def requirement(name: str, device: torch.device, dtype: torch.dtype, head_dim: int, tokens: int) -> str | None:
    """What a kernel needs and does not find here, to follow "needs"; None when it runs."""
    half, half_only = dtype in (torch.bfloat16, torch.float16), name in ("flash", "cudnn")
    if name == "merge":
        if device.type not in ("cpu", "cuda"):
            return f"the log-sum-exp of stock attention, which {device.type} does not give"
        if device.type == "cuda" and head_dim % (8 if half else 4):
            return f"a head dim that is a multiple of {8 if half else 4}, the model's is {head_dim}"
        if before_ampere(device) and dtype == torch.bfloat16:
            return "a GPU of compute capability 8.0 or higher for bfloat16, or --dtype float32"
    if name in ("flash", "flex", "cudnn") and device.type != "cuda":
        return f"a CUDA device, this is {device.type}"
    if name == "flex" and not half:  # its kernel keeps too much for the registers: tens of kilobytes of a thread spill
        return f"bfloat16 or float16, this is {dtype}"
    if name == "flex" and tokens % FLEX_TILE:
        return f"blocks of a multiple of {FLEX_TILE} tokens, the model's have {tokens}"
    if name == "flash" and importlib.util.find_spec("flash_attn") is None:
        return "the package flash-attn, which is not installed"
    if name == "cudnn" and not torch.backends.cudnn.is_available():
        return "cuDNN, which this PyTorch is built without"
    if half_only and (not half or head_dim % 8):
        return f"bfloat16 or float16 and a head dim that is a multiple of 8, this is {dtype} and {head_dim}"
    if half_only and before_ampere(device):
        return "a GPU of compute capability 8.0 or higher"
    return None


def choose_kernel(
    name: str, device: torch.device, dtype: torch.dtype, head_dim: int, tokens_per_block: int = LARGE_BLOCK
) -> tuple[str, str]:
    """Resolve a kernel's name, `auto` included: (name, reason).

    Raises ValueError for an unknown kernel, or one that cannot run here: what it needs, and which kernels can run.
    """
    if name != "auto" and name not in KERNELS:
        raise ValueError(f"unknown attention kernel {name!r}: choose one of auto, {', '.join(KERNELS)}")
    needs = {kernel: requirement(kernel, device, dtype, head_dim, tokens_per_block) for kernel in KERNELS}
    available = [kernel for kernel, need in needs.items() if need is None]
    if name == "auto":
        # docs/log.md has the measurements behind this order.
        if tokens_per_block < LARGE_BLOCK:
            return "sdpa", f"blocks of {tokens_per_block} tokens are too small to attend to one by one"
        if "merge" in available:
            return "merge", "nothing is copied four times"
        return "sdpa", f"the reference: merge needs {needs['merge']}"
    if name not in available:
        raise ValueError(f"kernel {name!r} needs {needs[name]}; available here: {', '.join(available)}")
    return name, "asked for"
