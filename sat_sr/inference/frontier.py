"""The keys and values that later groups need: in each layer a line of blocks along the walk, and nothing else.

Walking a band from left to right, a group needs the line of blocks above it (from the band before) and the column to
its left (from the group before):

      line:  . . L L L L L        L   kept in `line`, one block per position along the band
      side:    S|g g|             S   kept in `side`, one block per position across the band
               S|g g|             g   the group

The last block of `line` that the group's column has passed is still wanted as the *corner* of the next group, so a
group's own right-most bottom block waits in `side` and enters `line` only with the next group, whose left halo it is.
That saves a slot: `line + thickness` blocks are kept, all allocated once. Everything here is written for a walk along
rows; a walk along columns is the same with the two grid axes exchanged.

Block-major keeps such a frontier in every layer, layer-major uses one again and again.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple, Protocol

import torch

from sat_sr.inference.fetch_ahead import FetchAhead
from sat_sr.inference.schedule import Group, Schedule
from sat_sr.inference.transfer import Copy, Transfer
from sat_sr.model.adaln import Extend
from sat_sr.model.block_attention import Border, Extended

# Lines that layers use in turn when other processes compute parts: one in use, one arriving, one still being sent.
LINES_SHARED = 3


def kept_lines(schedule: Schedule, layers: int) -> int:
    """How many lines and sides of keys and values are kept: one per layer, or some that layers use in turn."""
    if schedule.order == "block":
        return layers
    return min(layers, LINES_SHARED if schedule.is_shared else 1)


class Neighbours(Protocol):
    """The processes that compute the parts of the picture before and after this one."""

    def receive(self, layer: int, layers: int, lines: list[torch.Tensor]) -> None:
        """Fill the line of this layer with the bottom line of the part before, if there is one.

        Layers use `lines` in turn. On return this layer's may be overwritten: what it held has been sent.
        """

    def send(self, layer: int, lines: list[torch.Tensor]) -> None:
        """Send the line of this layer to the next part, if there is one."""

    def exchange_overlap(self, picture: torch.Tensor, dim: int, overlap: int, of_next: int) -> None:
        """Make the overlaps equal: the last `overlap` rows (columns) of a part are the first of the next.

        of_next  how many of them, the last ones, the next part has computed; the others come from the part before it
        """


class Halo(NamedTuple):
    """What is kept for a group, (blocks, 2, B, h, L, d) each, 2 for keys and values; no blocks at the border.

    above  the line over the group, and before it the corner unless the group is the first of its band
    side   the column to the left
    """

    above: torch.Tensor
    side: torch.Tensor


class Frontiers:
    """Kept on the device.

    schedule    the walk
    layers      of the network
    block       (batch, heads, tokens, head dim) of one block's keys
    neighbours  the processes that compute the parts of the picture before and after this one
    """

    def __init__(
        self,
        schedule: Schedule,
        layers: int,
        block: tuple[int, int, int, int],
        *,
        device: torch.device,
        dtype: torch.dtype,
        neighbours: Neighbours | None = None,
    ):
        self.schedule, self.layers, self.block = schedule, layers, block
        self.neighbours = neighbours
        i, j = schedule.group
        batch, *head = block
        self._workspace = torch.empty(2, batch, i + 1, j + 1, *head, device=device, dtype=dtype)
        count = kept_lines(schedule, layers)
        self.lines = [self._memory(schedule.line, device, dtype) for _ in range(count)]
        self.sides = [self._memory(schedule.thickness, device, dtype) for _ in range(count)]

    def _memory(self, blocks: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(blocks, 2, *self.block, device=device, dtype=dtype)

    def extend(self, layer: int, group: Group) -> Extend:
        """The callable that gives a group's keys and values in a layer their halo, and keeps what later groups need.

        It takes k and v (B, i, j, h, L, d), any strides; what it returns is valid until the next call.
        """
        _, along = self._walk(group)
        halo = self._load(layer, group)

        def extended(k: torch.Tensor, v: torch.Tensor) -> Extended:
            both = self._workspace[:, :, : len(group.rows) + 1, : len(group.cols) + 1]
            both[0, :, 1:, 1:] = k
            both[1, :, 1:, 1:] = v
            walked = both.transpose(2, 3) if self.schedule.by_columns else both
            _fill(walked, halo)
            # The left halo of the bottom row is the block that waited in `side`; the last of a band need not wait.
            first, last = along.start == 0, along.stop == self.schedule.line
            columns = slice(1 if first else 0, None if last else -1)
            bottom, side = walked[:, :, -1, columns], walked[:, :, 1:, -1]
            self._store(layer, group, along.start - 1 + columns.start, bottom.movedim(2, 0), side.movedim(2, 0))
            return Extended(both[0], both[1], Border(top=group.rows.start == 0, left=group.cols.start == 0))

        return extended

    def _load(self, layer: int, group: Group) -> Halo:
        self._begin(layer, group)
        return self._needed(layer, group)

    def _store(self, layer: int, group: Group, start: int, bottom: torch.Tensor, side: torch.Tensor) -> None:
        """Keep the group's bottom row in the line from `start` on, and its last column in `side`."""
        line, kept_side = self._kept(layer)
        line[start : start + len(bottom)] = bottom
        kept_side[: len(side)] = side
        self._end(layer, group)

    def _kept(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.lines[layer % len(self.lines)], self.sides[layer % len(self.sides)]

    def _needed(self, layer: int, group: Group) -> Halo:
        """The part of what is kept that a group needs."""
        across, along = self._walk(group)
        line, side = self._kept(layer)
        above = slice(max(along.start - 1, 0), along.stop if across.start else 0)
        return Halo(line[above], side[: len(across) if along.start else 0])

    def _begin(self, layer: int, group: Group) -> None:
        """Before the first group of a layer: its line above is computed by the part before."""
        across, along = self._walk(group)
        if self.neighbours and across.start == self.schedule.part.start and along.start == 0:
            self.neighbours.receive(layer, self.layers, self.lines)

    def _end(self, layer: int, group: Group) -> None:
        """After the last group of a layer: its bottom line is wanted by the next part."""
        if self.neighbours and self._is_last(group):
            self.neighbours.send(layer, self.lines)

    def _is_last(self, group: Group) -> bool:
        across, along = self._walk(group)
        return across.stop == self.schedule.part.stop and along.stop == self.schedule.line

    def _walk(self, group: Group) -> tuple[range, range]:
        """The group's blocks across and along its band."""
        return (group.cols, group.rows) if self.schedule.by_columns else (group.rows, group.cols)


class HostFrontiers(Frontiers):
    """Kept on the host, for block-major: while a group is in one layer, its halo in the next layer comes in."""

    def __init__(
        self,
        schedule: Schedule,
        layers: int,
        block: tuple[int, int, int, int],
        transfer: Transfer,
        *,
        device: torch.device,
        dtype: torch.dtype,
        neighbours: Neighbours | None = None,
    ):
        self._transfer = transfer
        super().__init__(schedule, layers, block, device=device, dtype=dtype, neighbours=neighbours)
        visits = [(layer, group) for group in schedule.groups() for layer in range(layers)]
        self._following = dict(itertools.pairwise([*visits, None]))
        self._stored: dict[int, Copy] = {}
        self._leaving: tuple[Copy, torch.Tensor] | None = None
        size = (sum(schedule.group) + 1) * 2 * math.prod(block)
        self._ahead = FetchAhead(size, device=device, dtype=dtype)

    def _memory(self, blocks: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        return self._transfer.host_memory((blocks, 2, *self.block), dtype)

    def _load(self, layer: int, group: Group) -> Halo:
        arrived = self._ahead.take((layer, group), self._following[layer, group], self._fetch)
        kept = self._needed(layer, group)
        parts = arrived.split([part.numel() for part in kept])
        return Halo(*(part.view(like.shape) for part, like in zip(parts, kept, strict=True)))

    def _fetch(self, visit: tuple[int, Group], buffer: torch.Tensor) -> tuple[torch.Tensor, Copy]:
        layer, group = visit
        self._begin(layer, group)
        kept = self._needed(layer, group)
        arriving = buffer[: sum(part.numel() for part in kept)]
        for part, place in zip(kept, arriving.split([part.numel() for part in kept]), strict=True):
            copy = self._transfer.copy(place.view(part.shape), part, after=self._stored.get(layer))
        return arriving, copy

    def _store(self, layer: int, group: Group, start: int, bottom: torch.Tensor, side: torch.Tensor) -> None:
        if self._leaving:
            self._leaving[0].wait()  # before its tensor is given back
        leaving = torch.cat([bottom, side])
        line, kept_side = self._kept(layer)
        self._transfer.copy(line[start : start + len(bottom)], leaving[: len(bottom)])
        copy = self._transfer.copy(kept_side[: len(side)], leaving[len(bottom) :])
        self._stored[layer], self._leaving = copy, (copy, leaving)
        following = self._following[layer, group]
        if following and following[0] == layer:  # a network of one layer
            self._ahead.forget(following)
        if self.neighbours and self._is_last(group):
            copy.synchronize()  # copies of a direction run in their order: the whole line is there
        self._end(layer, group)


def _fill(extended: torch.Tensor, halo: Halo) -> None:
    """Fill the halo of `extended` (2, B, across + 1, along + 1, h, L, d); at the border it is the clamped neighbour."""
    above, side = halo
    if len(above):
        extended[:, :, 0, extended.shape[3] - len(above) :] = above.movedim(0, 2)
    if len(side):
        extended[:, :, 1:, 0] = side.movedim(0, 2)
    else:
        extended[:, :, :, 0] = extended[:, :, :, 1]
    if not len(above):
        extended[:, :, 0] = extended[:, :, 1]
