"""Runs the network over a canvas by a schedule, in bounded memory: D(x; sigma) for the samplers.

The canvas, the conditions and the sampler's state stay on the host in float32; the network sees one group of blocks at
a time, in its own dtype on its own device. Both orders share every line but the loops:

    block-major                               layer-major
    for group in groups:                      for l in layers for group in groups:
        hidden = embed(canvas[group])             hidden = kept[group], in the first layer embed(canvas[group])
        hidden = layer(l, hidden)  for l          hidden = layer(l, hidden)
        canvas[group] = decode(hidden)            kept[group] = hidden, in the last layer canvas[group] = decode(hidden)

Where hidden state, frontiers and weights live is decided in `hidden_state`, `frontier` and `weights`.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import torch

from sat_sr.config import LR_FACTOR
from sat_sr.diffusion.edm import precondition
from sat_sr.inference.frontier import Frontiers, HostFrontiers, Neighbours
from sat_sr.inference.hidden_state import HiddenState, HostHiddenState
from sat_sr.inference.moving_grid import enlarged
from sat_sr.inference.out_of_memory import is_out_of_memory
from sat_sr.inference.placement import Placement
from sat_sr.inference.planner import Plan
from sat_sr.inference.schedule import Group
from sat_sr.inference.transfer import Copy, make_transfer
from sat_sr.inference.weights import Weights
from sat_sr.model.adaln import GroupContext
from sat_sr.model.inf_dit import InfDiT
from sat_sr.model.lr_cross_attention import group_lr

logger = logging.getLogger(__name__)


class Denoiser:
    """D(x; sigma) over a canvas, or over the part of it that the plan's schedule names.

    model           the network
    plan            schedule, kernel and places
    lr              (B, 3, H/4, W/4) float32, of the whole canvas
    lr_upsampled    (B, 3, H, W) float32 in [-1, 1], of the part and what it shares
    clip_embedding  (B, V), when the model has a CLIP input
    on_progress     called with (work done, work of one call) after each piece of a call
    neighbours      the processes that compute the other parts
    compiled        run what is between the matrix products compiled (torch.compile), in groups of full size: graphs
                    for all canvases; smaller groups at the end of a band run uncompiled
    offsets         pixels, less than a block: where the picture begins on the grid, down and right, in each call in
                    turn (`placement`); the canvas has as large a margin as the largest
    overlap         pixel rows and columns of the part before that x, lr_upsampled and what is returned begin with:
                    the largest offset across the walk where neighbours compute a part before, else none
    weights         of the model, which are moved to where the plan wants them; whoever gives them releases them

    Before a call whose offset is not a multiple of LR_FACTOR it must be given its LR condition (`set_condition`).

    When memory runs out in a call it is computed again by the next of the plan's fallbacks, with a warning: the groups
    do not change the picture. `plan` is the plan in use.

    Raises FloatingPointError, naming the blocks, when the network gives NaN or infinity; MemoryError when memory ran
    out and there is no smaller plan.
    """

    def __init__(
        self,
        model: InfDiT,
        plan: Plan,
        lr: torch.Tensor,
        lr_upsampled: torch.Tensor,
        clip_embedding: torch.Tensor | None = None,
        on_progress: Callable[[int, int], None] | None = None,
        *,
        neighbours: Neighbours | None = None,
        compiled: bool = False,
        offsets: Sequence[int] = (0,),
        overlap: tuple[int, int] = (0, 0),
        weights: Weights | None = None,
    ):
        b, schedule = model.config.image_block_size, plan.schedule
        canvas = lr.new_empty(len(lr), 3, schedule.grid[0] * b, schedule.grid[1] * b, device="meta")
        model.check_inputs(canvas, lr, clip_embedding)
        part = (len(lr), 3, *(blocks * b + more for blocks, more in zip(schedule.extent, overlap, strict=True)))
        if tuple(lr_upsampled.shape) != part:
            raise ValueError(f"lr_upsampled has shape {tuple(lr_upsampled.shape)}: the plan is made for {part}")
        self.model, self.plan, self.lr, self.lr_upsampled = model, plan, lr, lr_upsampled
        self.offsets, self.overlap = offsets, overlap
        self.device = torch.device(plan.device)
        self.clip_embedding = None if clip_embedding is None else clip_embedding.to(self.device, model.dtype)
        self.on_progress, self.neighbours, self.compiled = on_progress, neighbours, compiled
        self.calls = 0
        self._lr = lr  # of the call that runs, on its grid
        self._next_lr: torch.Tensor | None = None  # of the next call, by `set_condition`
        self._ready = False
        self._weights = weights or Weights(model, self.device)
        self._transfer = self._frontiers = self._hidden = None

    @property
    def next_offset(self) -> int:
        """The offset of the next call; after the last of `offsets` it is 0."""
        return self.offsets[self.calls] if self.calls < len(self.offsets) else 0

    def set_condition(self, lr: torch.Tensor | None) -> None:
        """The LR condition on the grid of the next call, (B, 3, H/4, W/4) float32 of the whole canvas.

        None where the offset is a multiple of LR_FACTOR: there it is the input's. `moving_grid` has the reason.
        """
        assert lr is None or lr.shape == self.lr.shape, f"{tuple(lr.shape)} given, {tuple(self.lr.shape)} wanted"
        self._next_lr = lr

    @torch.no_grad()  # not inference_mode: samplers change what it returns in place
    def __call__(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        """One network call. x (B, 3, H, W) float32, sigma > 0; returns the denoised canvas, a new one."""
        offset = self.next_offset
        self.calls += 1
        while True:
            try:
                if not self._ready:
                    self._prepare()
                return self._call(x, sigma, offset)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = str(error).partition("\n")[0]
            # Only here: what the traceback held has been given back.
            self._step_down(reason)

    def _prepare(self) -> None:
        """Allocate, once, all that is kept during a call, and move the weights to their place."""
        plan, schedule, config = self.plan, self.plan.schedule, self.model.config
        on_device = {"device": self.device, "dtype": self.model.dtype}
        transfer = self._transfer = make_transfer(self.device)
        self._weights.place(plan.offload)

        batch, tokens = len(self.lr_upsampled), config.tokens_per_block
        keys = (config.num_layers, (batch, config.num_attention_heads, tokens, config.head_dim))
        # On the host goes what grows with the picture: the hidden state, or the frontiers.
        if schedule.order == "block" and plan.offload != "none":
            self._frontiers = HostFrontiers(schedule, *keys, transfer, **on_device, neighbours=self.neighbours)
        else:
            self._frontiers = Frontiers(schedule, *keys, **on_device, neighbours=self.neighbours)
        if schedule.order == "layer":
            block = (batch, tokens, config.hidden_size)
            if plan.offload == "none":
                self._hidden = HiddenState(schedule, block, **on_device)
            else:
                self._hidden = HostHiddenState(schedule, block, transfer, **on_device)
        self._ready = True

    def _call(self, x: torch.Tensor, sigma: float, offset: int) -> torch.Tensor:
        """One network call with the picture at that offset on the grid."""
        scale = precondition(torch.full((len(x),), sigma, dtype=torch.float32))
        emb = self.model.condition(scale.c_noise.to(self.device), self.clip_embedding)
        c_in, c_skip, c_out = float(scale.c_in[0]), float(scale.c_skip[0]), float(scale.c_out[0])
        denoised = torch.empty_like(x)
        placement = Placement(offset - self.overlap[0], offset - self.overlap[1])
        upsampled = self._conditions(offset, placement)

        def embed(group: Group) -> torch.Tensor:
            at = self._pixels(group)
            images = self._transfer.to_device(torch.cat([placement.read(x, *at), upsampled(group)], dim=1)).mul_(c_in)
            return self.model.mixins["patch_embed"].embed(images.to(self.model.dtype))

        leaving: deque[tuple[Group, torch.Tensor, torch.Tensor, Copy]] = deque()

        def decode(group: Group, hidden: torch.Tensor) -> None:
            output = self.model.mixins["final_layer"].decode(hidden, emb).float()
            finite, _ = self._transfer.to_host(_is_finite(output))  # there when the pixels are
            leaving.append((group, finite, *self._transfer.to_host(output)))
            if len(leaving) > self._transfer.in_flight:
                finish(*leaving.popleft())

        def finish(group: Group, finite: torch.Tensor, output: torch.Tensor, copy: Copy) -> None:
            copy.synchronize()
            if not bool(finite):
                raise FloatingPointError(
                    f"the network gave NaN or infinity in {group} at network call {self.calls}, sigma {sigma:.4g}"
                )
            at = self._pixels(group)
            placement.write(denoised, *at, output.mul_(c_out).add_(placement.read(x, *at), alpha=c_skip))

        run = self._block_major if self.plan.schedule.order == "block" else self._layer_major
        run(emb, embed, decode)
        while leaving:
            finish(*leaving.popleft())
        if offset:  # the grid ends before the margin does
            denoised[..., -offset:, :] = self.lr_upsampled[..., -offset:, :]
            denoised[..., -offset:] = self.lr_upsampled[..., -offset:]
        if self.neighbours and (overlap := max(self.offsets)):
            across = -1 if self.plan.schedule.by_columns else -2
            self.neighbours.exchange_overlap(denoised, across, overlap, offset)
        return denoised

    def _conditions(self, offset: int, placement: Placement) -> Callable[[Group], torch.Tensor]:
        """The conditions of a call (`moving_grid`): keeps the LR condition, returns the enlarged one group by group."""
        if offset % LR_FACTOR:
            assert self._next_lr is not None, f"a call at offset {offset} needs `set_condition` before"
            self._lr = self._next_lr
            return lambda group: enlarged(self._lr, *self._pixels(group, origin=(0, 0)))
        moved = Placement(offset // LR_FACTOR, offset // LR_FACTOR)
        self._lr = moved.read(self.lr, *(slice(0, side) for side in self.lr.shape[-2:]))
        return lambda group: placement.read(self.lr_upsampled, *self._pixels(group))

    def _block_major(self, emb: torch.Tensor, embed: Callable, decode: Callable) -> None:
        adaln, layers = self.model.mixins["adaln_layer"], range(self.model.config.num_layers)
        modulation = cache(lambda layer: adaln.modulation(layer, emb))
        done = 0
        for group in self.plan.schedule.groups():
            context, hidden = self._context(group), embed(group)
            for layer in layers:
                self._weights.use(layer)
                extend = self._frontiers.extend(layer, group)
                hidden = adaln.layer(layer, hidden, modulation(layer), extend, context)
            decode(group, hidden)
            done += group.blocks  # not groups: the last of a band is smaller
            self._progress(done, self.plan.schedule.blocks)

    def _layer_major(self, emb: torch.Tensor, embed: Callable, decode: Callable) -> None:
        adaln, layers = self.model.mixins["adaln_layer"], range(self.model.config.num_layers)
        groups, done = list(self.plan.schedule.groups()), 0
        for layer in layers:
            self._weights.use(layer)
            modulation = adaln.modulation(layer, emb)
            for group in groups:
                hidden = self._hidden.load(group) if layer else self._hidden.put(group, embed(group))
                context, extend = self._context(group, with_lr=layer == 0), self._frontiers.extend(layer, group)
                hidden = adaln.layer(layer, hidden, modulation, extend, context)
                if layer + 1 < len(layers):
                    self._hidden.store(group, hidden)
                else:
                    decode(group, hidden)
                done += group.blocks
                self._progress(done, len(layers) * self.plan.schedule.blocks)

    def _context(self, group: Group, with_lr: bool = True) -> GroupContext:
        lr = None
        if with_lr:
            lr = group_lr(self._lr, group.rows, group.cols, self.plan.schedule.grid)
            lr = self._transfer.to_device(lr).to(self.model.dtype)
        full_size = (len(group.rows), len(group.cols)) == self.plan.schedule.group
        rotary = self.model.rotary(group.rows, group.cols)
        return GroupContext(rotary, lr, self.plan.kernel, compiled=self.compiled and full_size)

    def _pixels(self, group: Group, origin: tuple[int, int] | None = None) -> tuple[slice, slice]:
        """Pixel rows and columns of a group, counted from a block: by default the first of the part."""
        b, (top, left) = self.model.config.image_block_size, origin or self.plan.schedule.origin
        rows = slice((group.rows.start - top) * b, (group.rows.stop - top) * b)
        return rows, slice((group.cols.start - left) * b, (group.cols.stop - left) * b)

    def _step_down(self, reason: str) -> None:
        """Take the next smaller plan."""
        failed = self.plan
        self._ready = False
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # copies still run from and to what is given back
        self._weights.release()
        self._transfer = self._frontiers = self._hidden = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if self.neighbours:  # they have sent and received parts of this call
            way_out = "ranks cannot step down in the middle of a picture: give --memory, or start more ranks"
        elif not failed.fallbacks:
            way_out = "there is no smaller plan: close other programs, or use --inference_type auto or more --offload"
        else:
            self.plan = replace(failed.fallbacks[0], fallbacks=failed.fallbacks[1:])
            logger.warning(
                "out of memory at network call %d (%s): continues with %s instead of %s",
                self.calls, reason, self.plan, failed,
            )  # fmt: skip
            return
        raise MemoryError(f"out of memory at network call {self.calls} with {failed} ({reason}): {way_out}")

    def _progress(self, done: int, total: int) -> None:
        if self.on_progress:
            self.on_progress(done, total)


def _is_finite(pixels: torch.Tensor) -> torch.Tensor:
    """One bool, where the pixels are, and no second tensor as large as they: NaN is both the least and the largest."""
    return torch.stack([pixels.amin(), pixels.amax()]).isfinite().all()
