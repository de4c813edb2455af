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

    Uninitialised: every group must be put before it is loaded.
    """

    def __init__(self, schedule: Schedule, block: tuple[int, int, int], *, device: torch.device, dtype: torch.dtype):
        self._groups = _cut(torch.empty(_elements(schedule, block), device=device, dtype=dtype), schedule, block)

    def put(self, group: Group, hidden: torch.Tensor) -> torch.Tensor:
        """What `load` will return, filled with (B, i, j, L, C) of a group that is new."""
        return self._groups[group].copy_(hidden)

    def load(self, group: Group) -> torch.Tensor:
        """(B, i, j, L, C) of a group, to be updated in place; valid until the next `load` or `put`."""
        return self._groups[group]

    def store(self, group: Group, hidden: torch.Tensor) -> None:
        """Keep (B, i, j, L, C) of a group; what `load` returned for it is copied onto itself."""
        self._groups[group].copy_(hidden)


class HostHiddenState:
    """Kept on the host; while a group is computed the next one of the walk comes in and the one before goes out.

    schedule, block  as in `HiddenState`
    transfer         makes the host's memory and the copies
    device, dtype    of what `load` and `put` return, one of three buffers as large as the largest group

    Groups must be put or loaded in the order of the walk, again and again: the next one is fetched ahead of a `load`.
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

    def put(self, group: Group, hidden: torch.Tensor) -> torch.Tensor:
        """As if `load` had brought (B, i, j, L, C) of a group that is new; what the host has of it is not looked at."""
        self._next()
        return self._part_of(self._ahead.unfilled(), group).copy_(hidden)

    def load(self, group: Group) -> torch.Tensor:
        """(B, i, j, L, C) of a group on the device, to be updated in place; valid until the next `load` or `put`."""
        self._next()
        return self._ahead.take(group, self._following[group], self._fetch)

    def store(self, group: Group, hidden: torch.Tensor) -> None:
        """Start to copy (B, i, j, L, C) of a group to the host; it must not be changed until the next `store`."""
        if self._leaving:
            self._leaving[0].wait()  # before its tensor is given back
        hidden = hidden.contiguous()
        copy = self._transfer.copy(self._groups[group], hidden)
        self._stored[group], self._leaving = copy, (copy, hidden)
        self._ahead.forget(group)

    def _next(self) -> None:
        """Before a buffer is filled: what was stored from it, before the last `load` or `put`, must have left."""
        if self._left:
            self._left[0].wait()
        self._left, self._leaving = self._leaving, None

    def _fetch(self, group: Group, buffer: torch.Tensor) -> tuple[torch.Tensor, Copy]:
        arriving = self._part_of(buffer, group)
        return arriving, self._transfer.copy(arriving, self._groups[group], after=self._stored.get(group))

    def _part_of(self, buffer: torch.Tensor, group: Group) -> torch.Tensor:
        kept = self._groups[group]
        return buffer[: kept.numel()].view(kept.shape)


def _elements(schedule: Schedule, block: tuple[int, int, int]) -> int:
    batch, tokens, width = block
    return schedule.blocks * batch * tokens * width


def _cut(memory: torch.Tensor, schedule: Schedule, block: tuple[int, int, int]) -> dict[Group, torch.Tensor]:
    """Lay the groups out one after the other in flat memory: (B, i, j, L, C) each, contiguous."""
    batch, tokens, width = block
    shapes = {g: (batch, len(g.rows), len(g.cols), tokens, width) for g in schedule.groups()}
    parts = memory.split([g.blocks * batch * tokens * width for g in shapes])
    return {g: part.view(shape) for (g, shape), part in zip(shapes.items(), parts, strict=True)}
