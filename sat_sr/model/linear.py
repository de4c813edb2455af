"""The network's Linears, alone or with the GELU behind them.

On a CPU PyTorch's Linear writes the bias all over the output before it adds the product, and GELU takes the output
from memory once more. oneDNN, which PyTorch has on board, does both to what it has just computed, still in the cache.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.backends import mkldnn


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """x (..., n), weight (m, n), bias (m,) -> (..., m)."""
    if _has_fused(x):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def linear_gelu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """tanh-GELU of a Linear: x (..., n), weight (m, n), bias (m,) -> (..., m)."""
    if _has_fused(x):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu", [], "tanh")
    x = F.linear(x, weight, bias)
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return F.gelu(x, approximate="tanh")
    return torch.ops.aten.gelu_(x, approximate="tanh")  # in place: nothing in the network is wider


def _has_fused(x: torch.Tensor) -> bool:
    """Whether oneDNN's Linear computes this. It has no gradient, and a compiler fuses by itself."""
    eager = not (torch.is_grad_enabled() or torch.compiler.is_compiling())
    return eager and x.device.type == "cpu" and x.dtype == torch.float32 and mkldnn.is_available() and mkldnn.enabled
