"""Telling errors that say that memory ran out from others."""

from __future__ import annotations

import torch


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out. PyTorch has a type of its own for its allocator of accelerators only:
    libraries that find no room for their workspace (cuBLAS, cuDNN) and the CPU say it in words."""
    signs = ("DefaultCPUAllocator", "out of memory", "STATUS_ALLOC_FAILED", "bad_alloc")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(sign in str(error) for sign in signs)
