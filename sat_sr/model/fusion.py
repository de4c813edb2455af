"""Fuses what is between the matrix products: norms, rotations, the merging of attention's parts.

On a GPU these steps are bound by memory, and unfused each takes the hidden state through it several times. The products
stay outside: cuBLAS computes them either way, and the GELU after them at once, which a compiled graph would take
apart again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

# Each shape of group is compiled. Beyond PyTorch's limit of eight shapes they would silently run uncompiled: pictures
# of many sizes, one after the other, have more.
COMPILED_SHAPES = 64

Fuse = Callable[[Callable], Callable]


def unfused(function: Callable) -> Callable:
    """The function itself: PyTorch runs its operations one by one."""
    return function


@functools.cache
def fused(function: Callable, *, fullgraph: bool = False) -> Callable:
    """The function compiled by torch.compile. Weights must be arguments: then all layers share a graph.

    fullgraph  raise an error where it would run uncompiled, beyond COMPILED_SHAPES for one
    """
    from torch.compiler import config

    compiled = torch.compile(function, dynamic=False, fullgraph=fullgraph)
    return config.patch(recompile_limit=COMPILED_SHAPES)(compiled)
