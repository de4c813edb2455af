"""The network's Linears, alone or with the GELU after them.

On a CPU PyTorch's Linear writes the bias all over the output before it adds the product, and GELU takes the output
from memory once more. oneDNN, which PyTorch has on board, does both to what it has just computed, still in the cache.
On CUDA the bias is added there anyway, and cuBLAS can apply GELU there as well.
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
    if _eager() and x.is_cuda and hasattr(torch, "_addmm_activation"):
        # What `nn.TransformerEncoder` calls. Tanh on CUDA alone: on a CPU it computes the GELU of the error function.
        product = torch._addmm_activation(bias, x.flatten(0, -2), weight.t(), use_gelu=True)
        return product.unflatten(0, x.shape[:-1])
    x = F.linear(x, weight, bias)
    if not _eager():
        return F.gelu(x, approximate="tanh")
    return torch.ops.aten.gelu_(x, approximate="tanh")  # in place: nothing in the network is wider


def _has_fused(x: torch.Tensor) -> bool:
    """Whether oneDNN's Linear computes this."""
    ours = _eager() and x.device.type == "cpu" and x.dtype == torch.float32
    return ours and mkldnn.is_available() and mkldnn.enabled


def _eager() -> bool:
    """Whether fused calls may be made: they have no gradient, and a compiler fuses by itself."""
    return not (torch.is_grad_enabled() or torch.compiler.is_compiling())
