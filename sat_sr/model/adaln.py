"""One transformer layer, as the paper draws it: adaLN around block attention, LR cross-attention (layer 0) and MLP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import nn
from torch.utils.checkpoint import checkpoint

from sat_sr.config import LAYERNORM_EPS, LR_PATCH, OUT_CHANNELS, InfDiTConfig
from sat_sr.model.attention_kernels import KERNELS
from sat_sr.model.block_attention import RELATIONS, Extended
from sat_sr.model.embeddings import adaptive_norm, layer_norm
from sat_sr.model.fusion import Fuse, fused, unfused
from sat_sr.model.linear import linear, linear_gelu
from sat_sr.model.lr_cross_attention import attend_windows, lr_features
from sat_sr.model.rope import norm_and_rotate, rotate_
from sat_sr.model.sat_import import BaseMixin

Extend = Callable[[torch.Tensor, torch.Tensor], Extended]


@dataclass
class GroupContext:
    """What a layer must know about the group of blocks that it works on.

    rotary    positions of the group's tokens, as `rope.rotary` gives them
    lr        (B, 3, y, x) LR condition of the group and the ring of blocks around it (`group_lr`); used by layer 0 only
    kernel    name in KERNELS
    compiled  run what is between the matrix products compiled, one graph per shape of group
    """

    rotary: torch.Tensor
    lr: torch.Tensor | None
    kernel: str = "sdpa"
    compiled: bool = False

    @property
    def fuse(self) -> Fuse:
        return fused if self.compiled else unfused


class LRCrossAttentionProjections(nn.Module):
    """The Linears of the LR cross-attention, under the names that checkpoints have."""

    def __init__(self, width: int):
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.dense = nn.Linear(width, width)


class AdaLNMixin(BaseMixin):
    """The layers of the network, around the attention and MLP Linears that SAT's transformer holds."""

    def __init__(self, config: InfDiTConfig):
        super().__init__()
        layers, width = config.num_layers, config.hidden_size
        heads, dim = config.num_attention_heads, config.head_dim
        self.heads, self.lr_side = heads, config.lr_features_per_side
        self.checkpoint_activations = False

        def head_norm():
            return nn.LayerNorm(dim, eps=LAYERNORM_EPS)

        self.adaLN_modulations = nn.ModuleList(
            nn.Sequential(nn.SiLU(), nn.Linear(width, 4 * width)) for _ in range(layers)
        )
        self.q_layer_norm = nn.ModuleList(head_norm() for _ in range(layers))
        # In every checkpoint, never used: the released weights were trained with q_layer_norm on the keys as well.
        self.k_layer_norm = nn.ModuleList(head_norm() for _ in range(layers))
        self.re_pos_embed = nn.Parameter(torch.zeros(layers, len(RELATIONS), heads, dim))

        self.proj_lr = nn.Conv2d(OUT_CHANNELS, width, kernel_size=LR_PATCH, stride=LR_PATCH)
        self.cross_attention = LRCrossAttentionProjections(width)
        self.cross_q_ln, self.cross_k_ln = head_norm(), head_norm()
        self.lr_query_position_embedding = nn.Parameter(torch.zeros(1, config.tokens_per_block, heads, dim))
        self.lr_key_position_embedding = nn.Parameter(torch.zeros(1, (3 * self.lr_side) ** 2, heads, dim))
        self.post_cross_attention_layernorm = nn.LayerNorm(width, eps=LAYERNORM_EPS)

    def modulation(self, layer: int, emb: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(shift1, scale1, shift2, scale2), each (B, C). SiLU a second time on emb: the release trained so."""
        return self.adaLN_modulations[layer](emb).chunk(4, dim=-1)

    def layer(
        self, layer: int, x: torch.Tensor, modulation: tuple[torch.Tensor, ...], extend: Extend, context: GroupContext
    ) -> torch.Tensor:
        """One layer on one group of blocks.

        x           (B, i, j, L, C)
        modulation  of this layer
        extend      gives keys and values (B, i, j, h, L, d) their halo, and keeps what later groups need
        returns     (B, i, j, L, C): with gradients a new tensor, else x itself, updated
        """
        shift1, scale1, shift2, scale2 = modulation
        update = self.self_attention(layer, x, shift1, scale1, extend, context)
        norm = None
        if layer == 0:
            x = add(x, update)
            update = self.lr_cross_attention(layer_norm(x), context.lr)
            norm = self.post_cross_attention_layernorm
        x, normed = context.fuse(add_and_norm)(x, update, shift2, scale2, norm)
        del update
        return add(x, mlp(normed, self.transformer.layers[layer].mlp))

    def self_attention(
        self,
        layer: int,
        x: torch.Tensor,
        shift: torch.Tensor,
        scale: torch.Tensor,
        extend: Extend,
        context: GroupContext,
    ) -> torch.Tensor:
        """Unidirectional block attention: (B, i, j, L, C) -> the same shape."""
        linears = self.transformer.layers[layer].attention
        # This norm for the keys as well, see __init__.
        q, k, v = queries_keys_values(
            x, shift, scale, linears.query_key_value, self.q_layer_norm[layer], self.heads, context
        )
        extended = extend(k, v)
        del k, v  # in `extended` now, if not with gradients
        out = KERNELS[context.kernel](q, extended, self.re_pos_embed[layer], context.fuse)
        return linear(rearrange(out, "B i j h L d -> B i j L (h d)"), *weights(linears.dense))

    def lr_cross_attention(self, x: torch.Tensor, lr: torch.Tensor) -> torch.Tensor:
        """Attention to the LR features around each block: (B, i, j, L, C) -> the same shape."""
        linears = self.cross_attention
        q = linear(x, *weights(linears.query)).unflatten(-1, (self.heads, -1))
        q = (self.cross_q_ln(q) + self.lr_query_position_embedding).transpose(-3, -2)
        k, v = self.lr_keys_values(lr)
        out = attend_windows(q, k, v, self.lr_key_position_embedding)
        return linear(rearrange(out, "B i j h L d -> B i j L (h d)"), *weights(linears.dense))

    def lr_keys_values(self, lr: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 3, y, x), as `group_lr` gives it -> k (normalised) and v of its features, (B, y/2, x/2, h, d) each.

        Windows overlap: each feature is projected and normalised once, before they are cut.
        """
        features = lr_features(lr, self.proj_lr.weight, self.proj_lr.bias)
        linears = self.cross_attention.key_value
        (weight_k, weight_v), (bias_k, bias_v) = linears.weight.chunk(2), linears.bias.chunk(2)
        k = self.cross_k_ln(linear(features, weight_k, bias_k).unflatten(-1, (self.heads, -1)))
        return k, linear(features, weight_v, bias_v).unflatten(-1, (self.heads, -1))

    def layer_forward(self, hidden_states, mask, *, layer_id, emb, extend, context, **kwargs):
        """SAT's hook: the whole canvas as one group."""
        layer = int(layer_id)

        def run(x, emb):
            return self.layer(layer, x, self.modulation(layer, emb), extend, context)

        if self.checkpoint_activations and torch.is_grad_enabled():
            # Nothing in a layer is random.
            return checkpoint(run, hidden_states, emb, use_reentrant=False, preserve_rng_state=False)
        return run(hidden_states, emb)


def queries_keys_values(
    x: torch.Tensor,
    shift: torch.Tensor,
    scale: torch.Tensor,
    projection: nn.Module,
    norm: nn.LayerNorm,
    heads: int,
    context: GroupContext,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x (B, i, j, L, C) -> q, k (normalised, rotated) and v, (B, i, j, h, L, d) each."""
    normed = context.fuse(adaptive_norm)(x, shift, scale)
    q, k, v = linear(normed, *weights(projection)).unflatten(-1, (3, heads, -1)).unbind(-3)
    del normed
    if context.compiled:
        rotary, turn = torch.view_as_real(context.rotary), fused(norm_and_rotate)
        q, k = (turn(t, norm, rotary) for t in (q, k))
    else:
        q, k = (rotate_(norm(t), context.rotary) for t in (q, k))
    return q.transpose(-3, -2), k.transpose(-3, -2), v.transpose(-3, -2)


def add_and_norm(
    x: torch.Tensor, update: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, norm: nn.LayerNorm | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """x + update, as `add` has it, and its `adaptive_norm`; (B, i, j, L, C) all."""
    x = add(x, update)
    return x, adaptive_norm(x, shift, scale, norm)


def mlp(x: torch.Tensor, linears: nn.Module) -> torch.Tensor:
    """(B, i, j, L, C) -> the same shape."""
    return linear(linear_gelu(x, *weights(linears.dense_h_to_4h)), *weights(linears.dense_4h_to_h))


def weights(module: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Those of a Linear. SAT's own forward is passed by: it asks for the group of ranks, of which a model has one."""
    return module.weight, module.bias


def add(x: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
    """x + update. Without gradients x itself is updated: the hidden state of a canvas exists once."""
    return x + update if torch.is_grad_enabled() else x.add_(update)
