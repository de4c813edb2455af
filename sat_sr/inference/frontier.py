"""The keys and values that later groups need, of one layer: a line of blocks along the walk, and nothing else.

Walking a band from left to right, a group needs the line of blocks above it (from the band before) and the column to
its left (from the group before):

      line:  . . L L L L L        L   kept in `line`, one block a position along the band
      side:    S|g g|             S   kept in `side`, one block a position across the band
               S|g g|             g   the group

The last block of `line` that the group's column has passed is still wanted as the *corner* of the next group, so a
group's own right-most bottom block waits in `side` and enters `line` only when the next group is done. That saves a
slot: `line + thickness` blocks are kept, all allocated once. Everything here is written for a walk along rows; a walk
along columns is the same with the two grid axes exchanged.
"""

from __future__ import annotations

import torch

from sat_sr.inference.schedule import Group, Schedule
from sat_sr.model.block_attention import Border, Extended


class Frontier:
    """Keeps and hands out halos.

    schedule  the walk
    block     (batch, heads, tokens, head dim) of one block's keys
    device    where the kept blocks live; the halos are made on the device of the keys
    """

    def __init__(
        self, schedule: Schedule, block: tuple[int, int, int, int], *, device: torch.device, dtype: torch.dtype
    ):
        batch, *head = block
        pin = device.type == "cpu" and torch.cuda.is_available()

        def slots(count: int) -> torch.Tensor:
            return torch.empty(2, batch, count, *head, device=device, dtype=dtype, pin_memory=pin)  # 2: keys and values

        self.schedule = schedule
        self.line, self.side = slots(schedule.line), slots(schedule.thickness)

    def extend(self, k: torch.Tensor, v: torch.Tensor, group: Group, buffer: torch.Tensor) -> Extended:
        """Give the group's keys and values their halo, and keep what later groups need.

        k, v     (B, i, j, h, L, d), any strides
        buffer   (2, B, >= i+1, >= j+1, h, L, d) workspace; the result are views of it
        """
        i, j = k.shape[1:3]
        extended = buffer[:, :, : i + 1, : j + 1]
        extended[0, :, 1:, 1:] = k
        extended[1, :, 1:, 1:] = v
        border = Border(top=group.rows.start == 0, left=group.cols.start == 0)
        if self.schedule.by_columns:
            self._exchange(extended.transpose(2, 3), group.cols, group.rows, self.schedule.grid[0])
        else:
            self._exchange(extended, group.rows, group.cols, self.schedule.grid[1])
        return Extended(extended[0], extended[1], border)

    def _exchange(self, extended: torch.Tensor, across: range, along: range, end: int) -> None:
        """Fill the halo of `extended` (2, B, across+1, along+1, h, L, d) from what is kept, then keep its far edges."""
        line, side = self.line, self.side[:, :, : len(across)]
        first_band, first_in_band = across.start == 0, along.start == 0

        if not first_band:
            extended[:, :, 0, 1:].copy_(line[:, :, along.start : along.stop], non_blocking=True)
        if not first_in_band:
            extended[:, :, 1:, 0].copy_(side, non_blocking=True)
        if not first_band and not first_in_band:
            extended[:, :, 0, 0].copy_(line[:, :, along.start - 1], non_blocking=True)
        # At the border of the picture the halo is the clamped neighbour.
        if first_in_band:
            extended[:, :, :, 0] = extended[:, :, :, 1]
        if first_band:
            extended[:, :, 0] = extended[:, :, 1]

        if not first_in_band:
            line[:, :, along.start - 1] = side[:, :, -1]
        line[:, :, along.start : along.stop - 1].copy_(extended[:, :, -1, 1:-1], non_blocking=True)
        side.copy_(extended[:, :, 1:, -1], non_blocking=True)
        if along.stop == end:
            line[:, :, -1].copy_(extended[:, :, -1, -1], non_blocking=True)
