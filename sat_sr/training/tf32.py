"""Float32 matrix products on tensor cores."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Inside, CUDA's float32 matrix products may round their factors to TF32's 10 bits of mantissa, many times as fast.

    Network and optimizer bear that; JPEG's cosine transform, when a batch is degraded on the GPU, would give other
    pictures, so it stays outside.
    """
    products = torch.backends.cuda.matmul
    before, products.allow_tf32 = products.allow_tf32, allowed
    try:
        yield
    finally:
        products.allow_tf32 = before
