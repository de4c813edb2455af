"""What a network has: parameters, and operations of a call. Needs no weights."""

from __future__ import annotations

import functools
import math

from sat_sr.config import InfDiTConfig
from sat_sr.model.layout import parameter_shapes


@functools.cache
def parameter_count(config: InfDiTConfig) -> int:
    """How many numbers the network's parameters are, without the CLIP tower."""
    return sum(map(math.prod, parameter_shapes(config).values()))


def layer_parameter_count(config: InfDiTConfig) -> int:
    """How many of them are in the Linears of one layer: attention, MLP, adaLN."""
    c = config.hidden_size
    return 16 * c * c + 13 * c


def flops(config: InfDiTConfig, grid: tuple[int, int]) -> int:
    """Floating-point operations of a network call on one picture of grid (I, J) blocks.

    A multiply-add is two; matrix products only; blocks on the picture's edge in full.
    """
    c, tokens = config.hidden_size, config.tokens_per_block
    lr_keys = (3 * config.lr_features_per_side) ** 2
    layer = tokens * (2 * 12 * c * c + 4 * 4 * tokens * c)
    cross = tokens * (4 * c * c + 4 * lr_keys * c) + config.lr_features_per_side**2 * 2 * c * (12 + 2 * c)
    ends = tokens * 2 * c * 9 * config.patch_size**2
    return grid[0] * grid[1] * (config.num_layers * layer + cross + ends)
