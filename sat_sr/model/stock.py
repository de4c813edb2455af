"""PyTorch's own attention, and which of its kernels a device has."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

# Not cuDNN's, which PyTorch may prefer: it makes a plan for every shape, and windows that overlap are not for it.
CUDA_BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None = None) -> torch.Tensor:
    """softmax(q kᵀ scale) v: q (N, h, L, d), k and v (N, h, M, d) -> (N, h, L, d). scale: None for 1/sqrt(d)."""
    if not q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
    with sdpa_kernel(CUDA_BACKENDS):
        return F.scaled_dot_product_attention(q, k, v, scale=scale)


def attend_with_lse(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same by a fused kernel that also gives the log-sum-exp: out, lse (N, h, L) float32."""
    aten = torch.ops.aten
    if q.device.type == "cpu":
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    elif q.dtype in (torch.bfloat16, torch.float16) and not before_ampere(q.device):
        out, lse, *_ = aten._scaled_dot_product_flash_attention(q, k, v)
    else:
        out, lse, *_ = aten._scaled_dot_product_efficient_attention(q, k, v, None, True)
    return out, lse[..., : q.shape[-2]].float()


def before_ampere(device: torch.device) -> bool:
    """Whether this is a CUDA device of compute capability below 8.0: these have no bfloat16 and no flash attention."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return False
    return torch.cuda.get_device_capability(device) < (8, 0)
