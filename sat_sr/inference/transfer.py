"""Copies between host and device that run beside the computation.

On CUDA each direction has a stream of its own and the host memory is page-locked, so that both run while the
computation does. Elsewhere host and device are one and a copy is done when it returns: the same control flow, without
the overlap.
"""

from __future__ import annotations

import contextlib
import logging
import weakref
from typing import Protocol

import torch

from sat_sr.inference.host_pages import page_memory

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")


class Copy(Protocol):
    """A copy that was started."""

    def wait(self) -> None:
        """Let everything that is computed from here on see the result; the host does not wait."""

    def synchronize(self) -> None:
        """Let the host wait for it."""


class Transfer:
    """Starts copies where none run beside the computation: host and device are one, or it is MPS. Done at once.

    device  where the network computes
    """

    # Pictures that may be on their way to the host while others are computed.
    in_flight = 0

    def __init__(self, device: torch.device = CPU):
        self._device = device

    def host_memory(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Memory on the host that copies can run from and to; valid as long as this object."""
        return torch.empty(shape, dtype=dtype)

    def copy(self, destination: torch.Tensor, source: torch.Tensor, after: Copy | None = None) -> Copy:
        """Start to copy between contiguous tensors on host and device; it begins when all that was computed is done.

        after  an earlier copy, in the other direction, that must be done first

        Both tensors must live until the copy is done. Copies of one direction run in the order of their start.
        """
        destination.copy_(source)
        return Done()

    def to_device(self, picture: torch.Tensor) -> torch.Tensor:
        """A picture on the host, or a part of one, to compute with; the host does not wait for what is computed."""
        return picture.to(self._device)

    def to_host(self, picture: torch.Tensor) -> tuple[torch.Tensor, Copy]:
        """The way back: its place on the host, and the copy that must be done before somebody looks there.

        Pictures come in the order in which they were sent.
        """
        return picture.to(CPU), Done()


class Done:
    """A copy that needs no waiting."""

    def wait(self) -> None:
        pass

    def synchronize(self) -> None:
        pass


class CudaCopy:
    """A copy on a stream of its own.

    event   recorded after it
    device  whose computation is to wait, whatever device is the current one
    """

    def __init__(self, event: torch.cuda.Event, device: torch.device):
        self.event, self._device = event, device

    def wait(self) -> None:
        torch.cuda.current_stream(self._device).wait_event(self.event)

    def synchronize(self) -> None:
        self.event.synchronize()


class CudaTransfer(Transfer):
    """Starts copies on a stream for each direction, from and to page-locked memory."""

    in_flight = 1

    def __init__(self, device: torch.device):
        super().__init__(device)
        self._inward, self._outward = torch.cuda.Stream(device), torch.cuda.Stream(device)
        self._locked: list[torch.Tensor] = []
        weakref.finalize(self, _unlock, self._locked, device)

    def host_memory(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        # Locked after the fact: PyTorch's own allocator of page-locked memory rounds sizes up to powers of two. Pages
        # of its own: a page that belongs to two such pieces of memory can be locked for one of them only.
        memory = page_memory(shape, dtype)
        with torch.cuda.device(self._device):
            error = int(torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.nbytes, 0))
        if error:
            self._forget_error()
            logger.warning("cannot page-lock %d MiB (CUDA error %d): copies will be slow", memory.nbytes >> 20, error)
        else:
            self._locked.append(memory)
        return memory

    def to_device(self, picture: torch.Tensor) -> torch.Tensor:
        # PyTorch's own page-locked memory: it is not given to others before the copy is done.
        return picture.pin_memory().to(self._device, non_blocking=True)

    def to_host(self, picture: torch.Tensor) -> tuple[torch.Tensor, Copy]:
        place = torch.empty(picture.shape, dtype=picture.dtype, pin_memory=True)
        place.copy_(picture, non_blocking=True)
        return place, CudaCopy(torch.cuda.current_stream(self._device).record_event(), self._device)

    def _forget_error(self) -> None:
        """CUDA keeps an error until somebody looks: the next kernel would be blamed for it."""
        with contextlib.suppress(RuntimeError):
            torch.ones(1, device=self._device)

    def copy(self, destination: torch.Tensor, source: torch.Tensor, after: Copy | None = None) -> Copy:
        stream = self._inward if destination.is_cuda else self._outward
        stream.wait_stream(torch.cuda.current_stream(self._device))
        if isinstance(after, CudaCopy):
            stream.wait_event(after.event)
        with torch.cuda.stream(stream):
            destination.copy_(source, non_blocking=True)
            if destination.is_cuda:
                # Given back before it is filled, it must not become another tensor until then. Not so what goes to the
                # host: its owner waits for it, and the host, which runs ahead, would find it taken for long after.
                destination.record_stream(stream)
            return CudaCopy(stream.record_event(), self._device)


def _unlock(locked: list[torch.Tensor], device: torch.device) -> None:
    with torch.cuda.device(device):  # on another it would first be made ready for use, which takes some of its memory
        torch.cuda.synchronize()
        while locked:
            memory = locked.pop()  # by name: it must not be given back before it is unlocked
            torch.cuda.cudart().cudaHostUnregister(memory.data_ptr())


def make_transfer(device: torch.device) -> Transfer:
    """What copies between the host and a device."""
    return CudaTransfer(device) if device.type == "cuda" else Transfer(device)
