"""Seconds and peak memory of a piece of work."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

MIB = 1 << 20


@dataclass
class Cost:
    """Filled at the end of `measured`.

    seconds    wall time
    peak_mib   on CUDA: most memory that tensors took there; else: largest resident size of the whole process
    """

    seconds: float = 0.0
    peak_mib: float = 0.0


@contextlib.contextmanager
def measured(device: str | torch.device) -> Iterator[Cost]:
    """Measure the body of a with statement; `device` is where the network runs."""
    cost, cuda = Cost(), torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    else:
        _reset_peak_rss()
    start = time.perf_counter()
    yield cost
    if cuda:
        torch.cuda.synchronize(device)
    cost.seconds = time.perf_counter() - start
    cost.peak_mib = (torch.cuda.max_memory_allocated(device) if cuda else peak_rss()) / MIB


def _reset_peak_rss() -> None:
    """Linux only; elsewhere the peak is that since the process began."""
    if Path("/proc/self/clear_refs").exists():
        with contextlib.suppress(PermissionError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_rss() -> int:
    """Bytes: the largest resident size of this process since it began, or since `_reset_peak_rss`."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
