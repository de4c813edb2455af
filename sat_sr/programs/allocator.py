"""glibc's allocator, for programs whose tensors of a few MiB come and go all the time."""

from __future__ import annotations

import ctypes
import sys

# Of <malloc.h>.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> bool:
    """Let the process keep up to 64 MiB of what it has freed for what it allocates next; whether it does so now.

    At first glibc gives every block of 128 KiB back when it is freed; as larger ones are freed it grows slower to do
    so, up to these very thresholds. Until then the pages of the same tensors are asked for, faulted in and cleared
    again and again. Blocks of 32 MiB, pictures, still go back at once.

    For programs, at their start: the allocator is that of the whole process. Other C libraries have no such setting.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, 32 << 20) and mallopt(M_TRIM_THRESHOLD, 64 << 20))
