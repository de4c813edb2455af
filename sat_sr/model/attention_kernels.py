"""The one seam for kernels: ways to compute block attention, all the same function.

Every kernel has the signature `kernel(q, extended, relation_embed) -> out`:

q               (B, i, j, h, L, d)  queries of a group, normalised and rotated
extended        Extended            keys and values of the group and its halo
relation_embed  (4, h, d)
returns         (B, i, j, h, L, d)

sdpa   the reference: the keys of the four neighbours side by side, one stock attention. Everywhere, with gradients.
merge  attention on each distinct neighbour alone, merged by log-sum-exp: nothing is copied four times, and a border
       block computes a neighbour that stands for several relations once. Inference only.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from sat_sr.model.block_attention import RELATIONS, Border, Extended, neighbour, relation_bias


def sdpa(q: torch.Tensor, extended: Extended, relation_embed: torch.Tensor) -> torch.Tensor:
    """softmax(q (k_r + e_r)ᵀ / sqrt(d)) v over the keys of all four relations r."""
    k = torch.cat(
        [neighbour(extended.k, at) + relation_embed[r][:, None] for r, at in enumerate(RELATIONS.values())], dim=-2
    )
    v = torch.cat([neighbour(extended.v, at) for at in RELATIONS.values()], dim=-2)
    # 4-D: stock attention takes much slower paths for more dimensions.
    out = F.scaled_dot_product_attention(q.flatten(0, 2), k.flatten(0, 2), v.flatten(0, 2))
    return out.unflatten(0, q.shape[:3])


def merge(q: torch.Tensor, extended: Extended, relation_embed: torch.Tensor) -> torch.Tensor:
    """out = Σ_u w_u o_u over the distinct neighbours u, w = softmax(lse_u + log Σ_r exp(q·e_r/sqrt(d))).

    The inner sum is over the relations r that u stands for: one inside the picture, two or four at its border.
    """
    k, v, border = extended
    # Blocks on the picture's edge have fewer distinct neighbours than the others: split them off.
    if border.top and q.shape[1] > 1:
        first = merge(q[:, :1], Extended(k[:, :2], v[:, :2], border), relation_embed)
        rest = merge(q[:, 1:], Extended(k[:, 1:], v[:, 1:], Border(False, border.left)), relation_embed)
        return torch.cat([first, rest], dim=1)
    if border.left and q.shape[2] > 1:
        first = merge(q[:, :, :1], Extended(k[:, :, :2], v[:, :, :2], border), relation_embed)
        rest = merge(q[:, :, 1:], Extended(k[:, :, 1:], v[:, :, 1:], Border(border.top, False)), relation_embed)
        return torch.cat([first, rest], dim=2)

    neighbours = distinct_neighbours(border)
    flat = q.flatten(0, 2)
    if len(neighbours) == 1:  # the corner attends to itself alone: the relations change nothing
        ((at, _),) = neighbours.items()
        return plain_attention(flat, neighbour(k, at).flatten(0, 2), neighbour(v, at).flatten(0, 2))[0].unflatten(
            0, q.shape[:3]
        )

    bias = relation_bias(flat, relation_embed)
    out, logit = None, None
    for at, relations in neighbours.items():
        o, lse = plain_attention(flat, neighbour(k, at).flatten(0, 2), neighbour(v, at).flatten(0, 2))
        lse = lse + bias[..., relations].logsumexp(-1)
        if out is None:
            out, logit = o, lse
            continue
        total = torch.logaddexp(logit, lse)
        out = out.mul_((logit - total).exp_()[..., None].to(o.dtype))
        out.addcmul_(o, (lse - total).exp_()[..., None].to(o.dtype))
        logit = total
    return out.unflatten(0, q.shape[:3])


def distinct_neighbours(border: Border) -> dict[tuple[int, int], list[int]]:
    """Distinct neighbours of blocks that all lie on the same edges: position in the extended grid -> its relations."""
    found: dict[tuple[int, int], list[int]] = {}
    for relation, (row, col) in enumerate(RELATIONS.values()):
        at = (1 if border.top else row, 1 if border.left else col)
        found.setdefault(at, []).append(relation)
    return found


def plain_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Stock attention with its log-sum-exp. q, k, v (N, h, L, d) -> out (N, h, L, d), lse (N, h, L) float32."""
    aten = torch.ops.aten
    if q.device.type == "cpu":
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    elif q.dtype in (torch.bfloat16, torch.float16):
        out, lse, *_ = aten._scaled_dot_product_flash_attention(q, k, v)
    else:
        out, lse, *_ = aten._scaled_dot_product_efficient_attention(q, k, v, None, True)
    return out, lse[..., : q.shape[-2]].float()


KERNELS = {"sdpa": sdpa, "merge": merge}


def choose_kernel(name: str, device: torch.device) -> tuple[str, str]:
    """Resolve `auto`: (kernel name, reason). Raises ValueError for a kernel that is unknown or not available."""
    if name == "auto":
        if device.type in ("cpu", "cuda"):
            return "merge", f"stock attention on {device.type} gives the log-sum-exp"
        return "sdpa", f"the reference kernel: stock attention on {device.type} gives no log-sum-exp"
    if name not in KERNELS:
        raise ValueError(f"unknown attention kernel {name!r}: choose one of auto, {', '.join(KERNELS)}")
    if name == "merge" and device.type not in ("cpu", "cuda"):
        raise ValueError(f"kernel 'merge' needs a CPU or CUDA device, this is {device.type}: use auto or sdpa")
    return name, "asked for"
