"""What memory there is for a picture, on the device and on the host."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sat_sr.byte_sizes import format_bytes
from sat_sr.inference.free_memory import free_host_bytes, resident_bytes

# What is free is not all ours: other programs breathe, allocators waste.
USABLE = 0.9
# Python, PyTorch, SAT and the kernels that a first network call loads, resident on the host: docs/memory.md. A PyTorch
# built for CUDA is larger, whether there is a GPU or not.
PROGRAM_BYTES = (990 if torch.version.cuda else 570) << 20


@dataclass(frozen=True)
class Budget:
    """Bytes that a run may take, what it holds already included.

    host    for the program, pictures and what is offloaded; where the device has no memory of its own, for everything
    device  for weights and network calls; None: the device's memory is the host's
    """

    host: int
    device: int | None = None

    def check_pictures(self, pictures: int, what: str) -> None:
        """Where the device has memory of its own, MemoryError when the host has not enough for `what` it computes.

        pictures  bytes of it on the host
        """
        if self.device is not None and PROGRAM_BYTES + pictures > self.host:  # --memory is that of the device
            raise MemoryError(
                f"{what} needs about {format_bytes(PROGRAM_BYTES + pictures)} of the host's memory for the program and "
                f"pictures alone, {format_bytes(self.host)} may be used: ask for a smaller size, upscale parts, or "
                "close other programs"
            )


def measure_budget(
    device: torch.device,
    *,
    memory: int | None = None,
    held: int = 0,
    held_on_host: int = 0,
    on_host: int = 1,
    on_device: int = 1,
) -> Budget:
    """Most of what is free now.

    memory        bytes, instead of that: on the device, or, where its memory is the host's, of the whole process
    held          bytes of the device that this process has already taken for its network
    held_on_host  bytes of the host likewise, where the device has memory of its own
    on_host       processes that share the host
    on_device     processes that share the device, where it has memory of its own

    Raises ValueError for a `memory` of nothing or less.
    """
    if memory is not None and memory < 1:
        raise ValueError(f"memory={memory}: must be at least 1 byte; None is most of what is free")
    free = free_bytes(torch.device("cpu")) / on_host
    if device.type != "cuda":
        return Budget(memory or _on_host(free, held))
    # What PyTorch's allocator keeps for later is free for this process, though not for others.
    spare = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    on_device = memory or int((free_bytes(device) / on_device + spare + held) * USABLE)
    return Budget(_on_host(free, held_on_host), on_device)


def _on_host(free: float, held: int) -> int:
    """The program, and most of what is free beside it; `held`, our weights, is ours as far as it is resident and no
    mapped file.

    What of the program is not loaded yet will be taken from what is free.
    """
    beside = int((free + min(held, resident_bytes() - PROGRAM_BYTES)) * USABLE)
    return max(0, PROGRAM_BYTES + beside)


def free_bytes(device: torch.device) -> int:
    """Bytes that are free on the device now."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_host_bytes()
