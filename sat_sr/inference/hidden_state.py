"""The hidden state of a canvas between layers, group by group: on the device, or on the host and brought in ahead."""

from __future__ import annotations

import torch

from sat_sr.inference.fetch_ahead import FetchAhead
from sat_sr.inference.schedule import Group, Schedule
from sat_sr.inference.transfer import Copy, Transfer


class HiddenState:
    """Kept on the device, updated in place.

    schedule  the walk
    block     (batch, tokens, width) of one block

    Uninitialised: every group must be stored before it is loaded.
    """

    def __init__(self, schedule: Schedule, block: tuple[int, int, int], *, device: torch.device, dtype: torch.dtype):
        self._groups = _cut(torch.empty(_elements(schedule, block), device=device, dtype=dtype), schedule, block)

    def load(self, group: Group) -> torch.Tensor:
        """(B, i, j, L, C) of a group, to be updated in place and stored; valid until the next `load`."""
        return self._groups[group]

    def store(self, group: Group, hidden: torch.Tensor) -> None:
        """Keep (B, i, j, L, C) of a group; what `load` returned for it is copied onto itself."""
        self._groups[group].copy_(hidden)


class HostHiddenState:
    """Kept on the host; while a group is computed the next one of the walk comes in and the one before goes out.

    schedule, block  as in `HiddenState`
    transfer         makes the host's memory and the copies
    device, dtype    of what `load` returns, one of three buffers as large as the largest group

    Groups must be loaded in the order of the walk, again and again: the next one is fetched ahead.
    """

    def __init__(
        self,
        schedule: Schedule,
        block: tuple[int, int, int],
        transfer: Transfer,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ):
        self._groups = _cut(transfer.host_memory((_elements(schedule, block),), dtype), schedule, block)
        order = list(self._groups)
        self._following = dict(zip(order, order[1:] + order[:1], strict=True))
        self._transfer = transfer
        self._stored: dict[Group, Copy] = {}
        self._leaving: tuple[Copy, torch.Tensor] | None = None  # what was stored since the last load
        self._left: tuple[Copy, torch.Tensor] | None = None  # what was stored before it
        size = max(part.numel() for part in self._groups.values())
        self._ahead = FetchAhead(size, device=device, dtype=dtype, buffers=3)

    def load(self, group: Group) -> torch.Tensor:
        """(B, i, j, L, C) of a group on the device, to be updated in place and stored; valid until the next `load`."""
        if self._left:
            self._left[0].wait()  # the group to come is fetched into its buffer
        self._left, self._leaving = self._leaving, None
        return self._ahead.take(group, self._following[group], self._fetch)

    def store(self, group: Group, hidden: torch.Tensor) -> None:
        """Start to copy (B, i, j, L, C) of a group to the host; it must not be changed until the next `store`."""
        if self._leaving:
            self._leaving[0].wait()  # before its tensor is given back
        hidden = hidden.contiguous()
        copy = self._transfer.copy(self._groups[group], hidden)
        self._stored[group], self._leaving = copy, (copy, hidden)
        self._ahead.forget(group)

    def _fetch(self, group: Group, buffer: torch.Tensor) -> tuple[torch.Tensor, Copy]:
        kept = self._groups[group]
        arriving = buffer[: kept.numel()].view(kept.shape)
        return arriving, self._transfer.copy(arriving, kept, after=self._stored.get(group))


def _elements(schedule: Schedule, block: tuple[int, int, int]) -> int:
    batch, tokens, width = block
    return schedule.blocks * batch * tokens * width


def _cut(memory: torch.Tensor, schedule: Schedule, block: tuple[int, int, int]) -> dict[Group, torch.Tensor]:
    """Lay the groups out one after the other in flat memory: (B, i, j, L, C) each, contiguous."""
    batch, tokens, width = block
    shapes = {g: (batch, len(g.rows), len(g.cols), tokens, width) for g in schedule.groups()}
    parts = memory.split([g.blocks * batch * tokens * width for g in shapes])
    return {g: part.view(shape) for (g, shape), part in zip(shapes.items(), parts, strict=True)}
