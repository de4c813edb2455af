"""What the programs set in glibc at their start."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from sat_sr.programs.allocator import keep_freed_memory
if "keep" in sys.argv:
    assert keep_freed_memory()
for _ in range(10):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    memory = [bytearray(1 << 20) for _ in range(16)]
    del memory
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*arguments: str) -> int:
    """Page faults of a program that takes 16 x 1 MiB and gives them back, the tenth time."""
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
def test_freed_memory_is_not_faulted_in_again():
    assert faults("keep") < 100 < 2000 < faults()
