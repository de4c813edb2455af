"""One picture over several processes, each with a device of its own, as torchrun starts them.

The grid of blocks is cut across the walk into parts of consecutive block rows (columns for a wide picture), one a
rank. A rank needs from the one before only its lowest line of keys and values, in each layer:

    rank 0    | layer 1 | layer 2 | layer 3 | ...
    rank 1              | layer 1 | layer 2 | layer 3 | ...
    rank 2                        | layer 1 | layer 2 | ...

Layer-major, a rank is one layer later than the one before. Nothing in a sampler looks at the whole picture, so rank 0
starts the next network call without waiting for the others: the pipeline fills once per picture, not once per call.
Block-major sends the lines of all layers when a call is done: a rank is one call later, and again nobody waits for a
whole picture. The orders may be mixed: what is sent is the same. The exceptions are back-projection, which compares the
whole picture with the input in every call, and a grid that moves, where ranks compute some pixels of each other's
parts: there they wait for one another.

    ranks = join(settings, device, rank, world)                             # rendezvous.py: before the model is built
    plan = make_plan(..., part=ranks.part(grid))
    part = ranks.canvas_part(plan.schedule, block, offsets)
    lr, lr_upsampled = canvas.conditions(image, part.rows, part.columns)
    denoiser = Denoiser(model, plan, lr, lr_upsampled, neighbours=ranks.neighbours(), overlap=part.overlap, ...)
    picture = ranks.gather(part.without_overlap(sampler(denoiser, x, sigmas)), plan.schedule, block)      # on rank 0
    ranks.close()                                                           # after the last picture

With an Upscaler: `job = upscaler.prepare(..., ranks=ranks)`, then `upscaler.run(image, job, ranks=ranks)`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from sat_sr.inference.budget import Budget
from sat_sr.inference.canvas_part import CanvasPart
from sat_sr.inference.schedule import Schedule

OVERLAP_TAG = 1  # of messages with pixels; lines of keys and values have PyTorch's default, 0


@contextlib.contextmanager
def _connected(rank: int | None = None) -> Iterator[None]:
    """Turns what torch.distributed raises when this rank (None: any) is gone into a ConnectionError of one sentence."""
    try:
        yield
    except RuntimeError as error:
        who = "another rank" if rank is None else f"rank {rank}"
        raise ConnectionError(f"{who} has left in the middle of the picture: what it said is the reason") from error


@dataclass(frozen=True)
class Ranks:
    """This process among those that share a picture. All exchanges raise ConnectionError when a rank is gone."""

    rank: int
    world: int

    def part(self, grid: tuple[int, int]) -> range:
        """The block rows (columns, when the grid is wider than high) that this rank computes.

        Raises ValueError when there are more ranks than block rows.
        """
        return self.parts(grid)[self.rank]

    def parts(self, grid: tuple[int, int]) -> list[range]:
        """The parts of all ranks, in order."""
        side = max(grid)
        if side < self.world:
            raise ValueError(
                f"a canvas of {grid[1]}x{grid[0]} blocks cannot be split over {self.world} ranks: start at most {side}"
            )
        return [range(side * r // self.world, side * (r + 1) // self.world) for r in range(self.world)]

    def canvas_part(self, schedule: Schedule, block: int, offsets: Sequence[int]) -> CanvasPart:
        """What this rank computes of a canvas, with the overlap that a Denoiser with `offsets` needs.

        schedule  of this rank
        block     pixels per block side
        """
        overlap = schedule.across(max(offsets) if self.rank else 0)
        _, rows, columns = schedule.pixels(block, overlap)
        return CanvasPart(rows, columns, overlap, self.all_reduce_sum)

    def close(self) -> None:
        """Part from the others, after the last exchange: NCCL warns of a process that ends without."""
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def neighbours(self) -> LineExchange | None:
        """What a Denoiser needs to compute a part; None for a rank alone."""
        return LineExchange(self.rank, self.world) if self.world > 1 else None

    def gather(self, part: torch.Tensor, schedule: Schedule, block: int) -> torch.Tensor | None:
        """Put the parts of a canvas together on rank 0, strip by strip; the other ranks return None.

        part      (B, 3, h, w) on the host: what this rank has computed
        schedule  of this rank
        block     pixels per block side
        """
        if self.world == 1:
            return part
        axis, parts = (3 if schedule.by_columns else 2), self.parts(schedule.grid)
        canvas = None
        if self.rank:
            with _connected(0):
                for strip in part.split(block, axis):
                    dist.send(strip.contiguous(), dst=0)
        else:
            size = [*part.shape[:2], *(side * block for side in schedule.grid)]
            canvas = part.new_empty(size)
            strips = canvas.split(block, axis)
            canvas.narrow(axis, 0, part.shape[axis]).copy_(part)
            for source, positions in enumerate(parts[1:], 1):
                for position in positions:
                    strip = strips[position].new_empty(strips[position].shape)
                    with _connected(source):
                        dist.recv(strip, src=source)
                    strips[position].copy_(strip)
        with _connected():
            dist.barrier()  # a process that leaves early closes its connections
        return canvas

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over the ranks, in place and in all of them: a tensor on the host, of the same shape everywhere."""
        if self.world > 1:
            with _connected():
                dist.all_reduce(tensor)
        return tensor

    def all_reduce_min(self, budget: Budget) -> Budget:
        """The least memory that a rank has, of the host and of the device."""
        nothing = -1
        numbers = torch.tensor([budget.host, nothing if budget.device is None else budget.device])
        if self.world > 1:
            with _connected():
                dist.all_reduce(numbers, dist.ReduceOp.MIN)
        host, device = numbers.tolist()
        return Budget(host, None if device == nothing else device)

    def first_with(self, here: bool) -> int | None:
        """The lowest of the ranks for which `here` is true, in all of them; None if there is none."""
        number = torch.tensor(self.rank if here else self.world)
        if self.world > 1:
            with _connected():
                dist.all_reduce(number, dist.ReduceOp.MIN)
        return int(number) if number < self.world else None

    def broadcast(self, picture: torch.Tensor | None, size: tuple[int, int], batch: int = 1) -> torch.Tensor:
        """Give all ranks a picture (B, 3, *size) float32 on the host that only rank 0 has."""
        if picture is None:
            picture = torch.empty(batch, 3, *size)
        if self.world > 1:
            with _connected():
                dist.broadcast(picture := picture.contiguous(), src=0)
        return picture


class LineExchange:
    """Sends the lowest line of keys and values of each layer to the next rank, and receives that of the rank before.

    A line is asked for one layer ahead, and sent while the next layer is computed. All methods raise ConnectionError
    when the rank before or the next one is gone. They are those of `frontier.Neighbours`.
    """

    def __init__(self, rank: int, world: int):
        self._previous = rank - 1 if rank else None
        self._next = rank + 1 if rank + 1 < world else None
        self._sending: dict[int, dist.Work] = {}  # by the line that is sent
        self._arriving: dict[int, dist.Work] = {}  # by layer

    def receive(self, layer: int, layers: int, lines: list[torch.Tensor]) -> None:
        self._free(layer, lines)
        if self._previous is None:
            return
        with _connected(self._previous):
            arriving = self._arriving.pop(layer, None) or self._ask(layer, lines)
            if len(lines) > 1 and layer + 1 < layers:
                self._free(layer + 1, lines)
                self._arriving[layer + 1] = self._ask(layer + 1, lines)
            arriving.wait()

    def send(self, layer: int, lines: list[torch.Tensor]) -> None:
        if self._next is not None:
            index = layer % len(lines)
            with _connected(self._next):
                self._sending[index] = dist.isend(lines[index], dst=self._next)

    def exchange_overlap(self, picture: torch.Tensor, dim: int, overlap: int, of_next: int) -> None:
        first, last = picture.narrow(dim, 0, overlap), picture.narrow(dim, picture.shape[dim] - overlap, overlap)
        lengths = [overlap - of_next, of_next]
        # With each neighbour: what is wanted of it, and what it wants.
        exchanges = [
            (self._previous, *first.split(lengths, dim)),
            (self._next, *reversed(last.split(lengths, dim))),
        ]
        exchanges = [exchange for exchange in exchanges if exchange[0] is not None]
        leaving = []
        for rank, _, given in exchanges:
            if given.numel():
                with _connected(rank):
                    leaving.append((rank, dist.isend(given.contiguous(), dst=rank, tag=OVERLAP_TAG)))
        for rank, wanted, _ in exchanges:
            if wanted.numel():
                arriving = torch.empty_like(wanted, memory_format=torch.contiguous_format)
                with _connected(rank):
                    dist.recv(arriving, src=rank, tag=OVERLAP_TAG)
                wanted.copy_(arriving)
        for rank, sending in leaving:
            with _connected(rank):
                sending.wait()

    def finish(self) -> None:
        """Wait until everything that was sent has left: before the lines are given back, or it never arrives."""
        with _connected(self._next):
            for sending in self._sending.values():
                sending.wait()
        self._sending.clear()

    def _free(self, layer: int, lines: list[torch.Tensor]) -> None:
        """Wait until what was sent of this line has left."""
        if sending := self._sending.pop(layer % len(lines), None):
            with _connected(self._next):
                sending.wait()

    def _ask(self, layer: int, lines: list[torch.Tensor]) -> dist.Work:
        return dist.irecv(lines[layer % len(lines)], src=self._previous)
