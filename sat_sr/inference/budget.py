"""What memory there is for a picture, on the device and on the host."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sat_sr.inference.byte_sizes import format_bytes

# What is free is not all ours: other programs breathe, allocators waste.
USABLE = 0.9


@dataclass(frozen=True)
class Budget:
    """Bytes that a run may take, what it holds already included.

    host    for pictures and what is offloaded; where the device has no memory of its own, for everything
    device  for weights and network calls; None: the device's memory is the host's
    """

    host: int
    device: int | None = None

    def for_network(self, pictures: int, what: str) -> int:
        """What is left on the device when the host holds the pictures.

        pictures  bytes on the host
        what      they are for, named in the message

        Raises MemoryError when not even the pictures fit.
        """
        if pictures > self.host:
            # --memory is that of the device, where it has its own.
            more = "raise --memory if there is more" if self.device is None else "close other programs"
            raise MemoryError(
                f"{what} needs about {format_bytes(pictures)} of the host's memory for pictures alone, "
                f"{format_bytes(self.host)} may be used: ask for a smaller size, upscale parts, or {more}"
            )
        return self.host - pictures if self.device is None else self.device


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

    memory        bytes, instead of that: on the device, or in all where the device's memory is the host's
    held          bytes of the device that this process has already taken for its network
    held_on_host  bytes of the host likewise, where the device has memory of its own
    on_host       processes that share the host
    on_device     processes that share the device, where it has memory of its own

    Raises ValueError for a `memory` of nothing or less.
    """
    if memory is not None and memory < 1:
        raise ValueError(f"memory={memory}: must be at least 1 byte; None is most of what is free")
    host = free_bytes(torch.device("cpu")) / on_host
    if device.type != "cuda":
        return Budget(memory or int((host + held) * USABLE))
    # What PyTorch's allocator keeps for later is free for this process, though not for others.
    spare = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    host = int((host + held_on_host) * USABLE)
    return Budget(host, memory or int((free_bytes(device) / on_device + spare + held) * USABLE))


def free_bytes(device: torch.device) -> int:
    """Bytes that are free on the device now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available
