"""The ends of the network: time and CLIP embedding, patches in, pixels out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from sat_sr.config import IN_CHANNELS, LAYERNORM_EPS, OUT_CHANNELS, TIME_FREQUENCIES, InfDiTConfig
from sat_sr.model.linear import linear
from sat_sr.model.sat_import import BaseMixin


def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """x·(1 + scale) + shift, in one pass. x (B, i, j, L, C); shift, scale (B, C)."""
    return torch.addcmul(shift[:, None, None, None], x, 1 + scale[:, None, None, None])


def layer_norm(x: torch.Tensor) -> torch.Tensor:
    """LayerNorm over the last dim without affine."""
    return F.layer_norm(x, x.shape[-1:], eps=LAYERNORM_EPS)


def adaptive_norm(
    x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, norm: nn.LayerNorm | None = None
) -> torch.Tensor:
    """adaLN: LayerNorm(x)·(1 + scale) + shift. x (B, i, j, L, C); shift, scale (B, C).

    norm  a LayerNorm whose learned affine is applied before shift and scale; None: one without
    """
    if len(x) == 1:  # the affine of a LayerNorm: no second pass
        weight, bias = 1 + scale[0], shift[0]
        if norm:
            weight, bias = weight * norm.weight, torch.addcmul(bias, weight, norm.bias)
        return F.layer_norm(x, x.shape[-1:], weight, bias, LAYERNORM_EPS)
    return modulate(norm(x) if norm else layer_norm(x), shift, scale)


class TimeEmbedding(nn.Module):
    """c_noise -> C: 96 frequencies 10000^(-t/96), cosines first, then a two-layer MLP."""

    def __init__(self, config: InfDiTConfig):
        super().__init__()
        width = config.hidden_size
        self.mlp = nn.Sequential(nn.Linear(2 * TIME_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, c_noise: torch.Tensor) -> torch.Tensor:
        """(B,) -> (B, C). The angles are computed in float32 whatever the weights are."""
        steps = torch.arange(TIME_FREQUENCIES, dtype=torch.float32, device=c_noise.device) / TIME_FREQUENCIES
        angles = c_noise[:, None].float() * 10000**-steps
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.mlp[0].weight.dtype))


class VectorEmbedding(nn.Module):
    """CLIP image embedding (B, V) -> (B, C); zero at initialisation."""

    def __init__(self, config: InfDiTConfig):
        super().__init__()
        width = config.hidden_size
        self.map_vector = nn.Sequential(nn.Linear(config.vector_dim, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, vector: torch.Tensor) -> torch.Tensor:
        """(B, V) -> (B, C)"""
        return self.map_vector(vector)


class PatchEmbedMixin(BaseMixin):
    """Pixels to tokens, kept in blocks from here on."""

    def __init__(self, config: InfDiTConfig):
        super().__init__()
        p = config.patch_size
        self.proj = nn.Conv2d(IN_CHANNELS, config.hidden_size, kernel_size=p, stride=p)
        self.patch_size, self.tokens_per_side = p, config.tokens_per_side

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 6, i·b, j·b) -> (B, i, j, L, C). The convolution does not overlap: it is one matrix product."""
        patches = rearrange(
            images, "B c (i m p) (j n q) -> B i j (m n) (c p q)",
            p=self.patch_size, q=self.patch_size, m=self.tokens_per_side, n=self.tokens_per_side,
        )  # fmt: skip
        return linear(patches, self.proj.weight.flatten(1), self.proj.bias)

    def word_embedding_forward(self, input_ids, *, images, **kwargs):
        return self.embed(images)

    def position_embedding_forward(self, position_ids, **kwargs):
        return None  # positions are rotary


class FinalLayerMixin(BaseMixin):
    """Tokens to pixels: adaLN, one Linear, unpatchify."""

    def __init__(self, config: InfDiTConfig):
        super().__init__()
        width, p = config.hidden_size, config.patch_size
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.linear = nn.Linear(width, p * p * OUT_CHANNELS)
        self.patch_size, self.tokens_per_side = p, config.tokens_per_side

    def decode(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        """(B, i, j, L, C), emb (B, C) -> (B, 3, i·b, j·b). A token's vector is (row in patch, column, channel)."""
        shift, scale = self.adaLN_modulation(emb).chunk(2, dim=-1)
        # Normalised twice: once for the transformer's final norm, once for this layer's own. The second is not the
        # identity (eps), and the weights were trained with both.
        x = linear(adaptive_norm(layer_norm(x), shift, scale), self.linear.weight, self.linear.bias)
        return rearrange(
            x, "B i j (m n) (p q c) -> B c (i m p) (j n q)",
            p=self.patch_size, q=self.patch_size, m=self.tokens_per_side, n=self.tokens_per_side,
        )  # fmt: skip

    def final_forward(self, logits, *, emb, **kwargs):
        return self.decode(logits, emb)
