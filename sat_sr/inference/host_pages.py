"""Host memory in pages of its own, which can be page-locked without touching what others have."""

from __future__ import annotations

import contextlib
import math
import mmap

import torch

# Not shared with children, as mmap's default is: only such memory gets large pages, which are locked much faster.
PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_ANONYMOUS") else {}


def page_memory(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A tensor in memory pages that it shares with nothing, of zeros. Raises MemoryError."""
    size = math.prod(shape) * dtype.itemsize
    try:
        pages = mmap.mmap(-1, size, **PRIVATE)
    except OSError as error:
        raise MemoryError(f"{size >> 20} MiB of the host's memory cannot be allocated: {error}") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(shape)
