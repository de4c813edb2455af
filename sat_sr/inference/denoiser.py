"""Runs the network over a canvas by a schedule, in bounded memory: D(x; sigma) for the samplers.

The canvas, the conditions and the sampler's state stay on the host in float32; the network sees one group of blocks at
a time, in its own dtype on its own device. Both orders share every line but the loops:

    block-major                               layer-major
    for group in groups:                      hidden[group] = embed(canvas[group])     for group in groups
        hidden = embed(canvas[group])         hidden[group] = layer(l, hidden[group])  for l in layers for group
        hidden = layer(l, hidden)  for l      canvas[group] = decode(hidden[group])    for group in groups
        canvas[group] = decode(hidden)
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from sat_sr.diffusion.edm import precondition
from sat_sr.inference.frontier import Frontier
from sat_sr.inference.memory import Plan
from sat_sr.inference.schedule import Group
from sat_sr.model.adaln import GroupContext
from sat_sr.model.inf_dit import InfDiT
from sat_sr.model.lr_cross_attention import group_lr


class Denoiser:
    """D(x; sigma) over a canvas.

    model           the network, on its device
    plan            schedule, kernel and places
    lr              (B, 3, H/4, W/4) float32 on the host
    lr_upsampled    (B, 3, H, W) float32 on the host, in [-1, 1]
    clip_embedding  (B, V), when the model has a CLIP input
    on_progress     called with (work done, work of one call) after each piece of a call

    Raises FloatingPointError, naming the blocks, when the network gives NaN or infinity.
    """

    def __init__(
        self,
        model: InfDiT,
        plan: Plan,
        lr: torch.Tensor,
        lr_upsampled: torch.Tensor,
        clip_embedding: torch.Tensor | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ):
        model.check_inputs(lr_upsampled, lr, clip_embedding)
        self.model, self.plan, self.lr, self.lr_upsampled = model, plan, lr, lr_upsampled
        self.clip_embedding = None if clip_embedding is None else clip_embedding.to(model.device, model.dtype)
        self.on_progress = on_progress
        self.calls = 0
        self._allocate()

    def _allocate(self) -> None:
        """Everything that is kept during a call, once: frontiers, halo workspace, hidden state."""
        model, config, schedule = self.model, self.model.config, self.plan.schedule
        batch, kept = len(self.lr), torch.device(self.plan.kept_on)
        block = (batch, config.num_attention_heads, config.tokens_per_block, config.head_dim)
        lines = config.num_layers if schedule.order == "block" else 1
        self._frontiers = [Frontier(schedule, block, device=kept, dtype=model.dtype) for _ in range(lines)]
        i, j = schedule.group
        self._halo_buffer = torch.empty(
            2, batch, i + 1, j + 1, *block[1:], device=model.device, dtype=model.dtype
        )
        if schedule.order == "layer":
            shape = (batch, *schedule.grid, config.tokens_per_block, config.hidden_size)
            self._hidden = torch.empty(shape, device=kept, dtype=model.dtype)

    @torch.inference_mode()
    def __call__(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        """One network call. x (B, 3, H, W) float32 on the host, sigma > 0; returns the denoised canvas, a new one."""
        self.calls += 1
        scale = precondition(torch.full((len(x),), sigma, dtype=torch.float32))
        emb = self.model.condition(scale.c_noise.to(self.model.device), self.clip_embedding)
        c_in, c_skip, c_out = float(scale.c_in[0]), float(scale.c_skip[0]), float(scale.c_out[0])
        denoised = torch.empty_like(x)

        def embed(group: Group) -> torch.Tensor:
            at = self._pixels(group)
            images = torch.cat([x[at], self.lr_upsampled[at]], dim=1).mul_(c_in)
            return self.model.mixins["patch_embed"].embed(images.to(self.model.device, self.model.dtype))

        def decode(group: Group, hidden: torch.Tensor) -> None:
            at = self._pixels(group)
            output = self.model.mixins["final_layer"].decode(hidden, emb).to(x.device, torch.float32)
            if not bool(torch.isfinite(output).all()):
                raise FloatingPointError(
                    f"the network gave NaN or infinity in {group} at network call {self.calls}, sigma {sigma:.4g}"
                )
            torch.add(output.mul_(c_out), x[at], alpha=c_skip, out=denoised[at])

        run = self._block_major if self.plan.schedule.order == "block" else self._layer_major
        run(emb, embed, decode)
        return denoised

    def _block_major(self, emb, embed, decode) -> None:
        adaln, layers = self.model.mixins["adaln_layer"], range(self.model.config.num_layers)
        modulations = [adaln.modulation(layer, emb) for layer in layers]
        for done, group in enumerate(self.plan.schedule.groups(), 1):
            context, hidden = self._context(group), embed(group)
            for layer in layers:
                hidden = adaln.layer(layer, hidden, modulations[layer], self._extend(layer, group), context)
            decode(group, hidden)
            self._progress(done, self.plan.schedule.num_groups)

    def _layer_major(self, emb, embed, decode) -> None:
        adaln, layers = self.model.mixins["adaln_layer"], range(self.model.config.num_layers)
        groups = list(self.plan.schedule.groups())
        device = self.model.device
        for group in groups:
            self._hidden[self._blocks(group)] = embed(group)
        for layer in layers:
            modulation = adaln.modulation(layer, emb)
            for done, group in enumerate(groups, 1):
                at = self._blocks(group)
                hidden = self._hidden[at].to(device, non_blocking=True)
                self._hidden[at] = adaln.layer(
                    layer, hidden, modulation, self._extend(0, group), self._context(group, with_lr=layer == 0)
                )
                self._progress(layer * len(groups) + done, len(layers) * len(groups))
        for group in groups:
            decode(group, self._hidden[self._blocks(group)].to(device))

    def _extend(self, line: int, group: Group):
        """The callable that a layer uses to give its keys and values their halo."""
        return lambda k, v: self._frontiers[line].extend(k, v, group, self._halo_buffer)

    def _context(self, group: Group, with_lr: bool = True) -> GroupContext:
        lr = None
        if with_lr:
            lr = group_lr(self.lr, group.rows, group.cols, self.plan.schedule.grid)
            lr = lr.to(self.model.device, self.model.dtype)
        return GroupContext(self.model.rotary(group.rows, group.cols), lr, self.plan.kernel)

    def _pixels(self, group: Group) -> tuple:
        """Index of the group's pixels in a canvas (B, 3, H, W)."""
        b = self.model.config.image_block_size
        rows = slice(group.rows.start * b, group.rows.stop * b)
        return ..., rows, slice(group.cols.start * b, group.cols.stop * b)

    @staticmethod
    def _blocks(group: Group) -> tuple:
        """Index of the group's blocks in a hidden state (B, I, J, L, C)."""
        return slice(None), slice(group.rows.start, group.rows.stop), slice(group.cols.start, group.cols.stop)

    def _progress(self, done: int, total: int) -> None:
        if self.on_progress:
            self.on_progress(done, total)
