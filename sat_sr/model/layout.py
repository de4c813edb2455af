"""Names and shapes of an Inf-DiT state dict: the layout of the published checkpoints.

Everything that reads or writes weights agrees on this table, so that a file can be recognised, checked and converted
without building a network. `InfDiT.state_dict()` has exactly these names.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from sat_sr.config import (
    IN_CHANNELS,
    LR_PATCH,
    MAX_SEQUENCE_LENGTH,
    OUT_CHANNELS,
    TIME_FREQUENCIES,
    InfDiTConfig,
)

# Rotary tables (period, period, d): the release stores them, but they follow from the configuration.
ROPE_TABLES = ("mixins.adaln_layer.rope.freqs_cos", "mixins.adaln_layer.rope.freqs_sin")
# The release keeps the CLIP tower in the same state dict, in OpenCLIP's names after this prefix.
CLIP_PREFIX = "image_encoder.model."

# The five names that give away all sizes but image_size.
_RELATIONS = "mixins.adaln_layer.re_pos_embed"
_LR_QUERY_POSITION = "mixins.adaln_layer.lr_query_position_embedding"
_PATCH_EMBED = "mixins.patch_embed.proj.weight"
_VECTOR = "cond_embed.map_vector.0.weight"

Shape = tuple[int, ...]


def parameter_shapes(config: InfDiTConfig) -> dict[str, Shape]:
    """Every name in the network's state dict with its shape, without the derived rotary tables and without CLIP."""
    C, h, d, p = config.hidden_size, config.num_attention_heads, config.head_dim, config.patch_size
    L, window = config.tokens_per_block, (3 * config.lr_features_per_side) ** 2
    shapes: dict[str, Shape] = {}

    def linear(name: str, *weight: int) -> None:
        shapes[f"{name}.weight"] = weight
        shapes[f"{name}.bias"] = weight[:1]

    def norm(name: str, width: int) -> None:
        linear(name, width)

    mixin = "mixins.adaln_layer"
    shapes[_RELATIONS] = (config.num_layers, 4, h, d)
    shapes[_LR_QUERY_POSITION] = (1, L, h, d)
    shapes[f"{mixin}.lr_key_position_embedding"] = (1, window, h, d)
    for layer in range(config.num_layers):
        norm(f"{mixin}.q_layer_norm.{layer}", d)
        norm(f"{mixin}.k_layer_norm.{layer}", d)
        linear(f"{mixin}.adaLN_modulations.{layer}.1", 4 * C, C)
    linear(f"{mixin}.proj_lr", C, 3, LR_PATCH, LR_PATCH)
    linear(f"{mixin}.cross_attention.query", C, C)
    linear(f"{mixin}.cross_attention.key_value", 2 * C, C)
    linear(f"{mixin}.cross_attention.dense", C, C)
    norm(f"{mixin}.post_cross_attention_layernorm", C)
    norm(f"{mixin}.cross_q_ln", d)
    norm(f"{mixin}.cross_k_ln", d)
    linear("mixins.final_layer.linear", p * p * OUT_CHANNELS, C)
    linear("mixins.final_layer.adaLN_modulation.1", 2 * C, C)
    linear("mixins.patch_embed.proj", C, IN_CHANNELS, p, p)
    shapes["transformer.position_embeddings.weight"] = (MAX_SEQUENCE_LENGTH, C)
    for layer in range(config.num_layers):
        linear(f"transformer.layers.{layer}.attention.query_key_value", 3 * C, C)
        linear(f"transformer.layers.{layer}.attention.dense", C, C)
        linear(f"transformer.layers.{layer}.mlp.dense_h_to_4h", 4 * C, C)
        linear(f"transformer.layers.{layer}.mlp.dense_4h_to_h", C, 4 * C)
    linear("time_embed.mlp.0", C, 2 * TIME_FREQUENCIES)
    linear("time_embed.mlp.2", C, C)
    if config.vector_dim:
        linear("cond_embed.map_vector.0", C, config.vector_dim)
        linear("cond_embed.map_vector.2", C, C)
    return shapes


def infer_config(shapes: Mapping[str, Shape], *, default_image_size: int = 512) -> InfDiTConfig:
    """The configuration of a state dict, from its shapes alone.

    shapes              name -> shape of the network, rotary tables included where the file has them
    default_image_size  pixels, used without them: nothing else in a state dict depends on image_size

    Raises ValueError when the names that the sizes follow from are missing, or when their shapes contradict each other.
    """
    for name, rank in ((_RELATIONS, 4), (_LR_QUERY_POSITION, 4), (_PATCH_EMBED, 4)):
        if name not in shapes:
            raise ValueError(f"there is no {name}: the weights are {_describe(shapes)}")
        if len(shapes[name]) != rank:
            raise ValueError(f"{name} has the shape {format_shape(shapes[name])}: {rank} dimensions are wanted")
    num_layers, _, heads, head_dim = shapes[_RELATIONS]
    side, patch = math.isqrt(shapes[_LR_QUERY_POSITION][1]), shapes[_PATCH_EMBED][2]
    tables = [shapes[name] for name in ROPE_TABLES if name in shapes]
    return InfDiTConfig(
        num_layers=num_layers,
        hidden_size=heads * head_dim,
        num_attention_heads=heads,
        patch_size=patch,
        image_block_size=side * patch,
        image_size=tables[0][0] * patch // 8 if tables else default_image_size,
        vector_dim=shapes[_VECTOR][-1] if _VECTOR in shapes else 0,
    )


def mismatch(shapes: Mapping[str, Shape], wanted: Mapping[str, Shape], *, show: int = 4) -> str | None:
    """What is missing, unexpected and misshapen in one clause (the first few, and how many), or None if all agrees."""
    missing = [name for name in wanted if name not in shapes]
    unexpected = [name for name in shapes if name not in wanted]
    misshapen = [
        f"{name} {format_shape(shapes[name])} instead of {format_shape(wanted[name])}"
        for name in wanted
        if name in shapes and tuple(shapes[name]) != tuple(wanted[name])
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
    return "; ".join(f"{len(names)} {kind}: {_first(names, show)}" for kind, names in kinds if names) or None


def format_shape(shape: Iterable[int]) -> str:
    """(3, 4) -> "3x4"; () -> "scalar"."""
    return "x".join(map(str, shape)) or "scalar"


def _first(names: list[str], show: int) -> str:
    return ", ".join(names[:show]) + (", …" if len(names) > show else "")


def _describe(shapes: Mapping[str, Shape]) -> str:
    return f"{len(shapes)} tensors named {_first(list(shapes), 3)}" if shapes else "empty"
