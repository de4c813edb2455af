"""What is decided about a picture before it is computed. Needs no weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sat_sr.config import InfDiTConfig
from sat_sr.inference.budget import PROGRAM_BYTES, Budget
from sat_sr.inference.canvas import Canvas
from sat_sr.inference.choices import BLOCK_BATCH
from sat_sr.inference.memory import canvas_bytes
from sat_sr.inference.planner import Plan, make_plan
from sat_sr.inference.ranks import Ranks
from sat_sr.inference.workload import Workload
from sat_sr.model.attention_kernels import choose_kernel
from sat_sr.model.counts import flops
from sat_sr.sampling import SamplingSettings


@dataclass(frozen=True)
class Job:
    """All that is decided about a picture before it is computed: what `--estimate` prints.

    canvas    geometry
    plan      schedule, kernel, predicted memory
    settings  sampler and its settings
    flops     of the whole run
    """

    canvas: Canvas
    plan: Plan
    settings: SamplingSettings
    flops: int


def make_job(
    config: InfDiTConfig,
    source: tuple[int, int],
    *,
    scale: float | None = None,
    target: tuple[int, int] | None = None,
    settings: SamplingSettings | None = None,
    mode: str = "auto",
    block_batch: int = BLOCK_BATCH,
    offload: str = "auto",
    budget: Budget | None = None,
    batch: int = 1,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    kernel: str = "auto",
    ranks: Ranks | None = None,
) -> Job:
    """Decide how a picture of source (height, width) is computed, or this rank's part of it. Needs no weights.

    scale, target  exactly one of them; target (height, width)
    settings       None: the release's
    budget         memory that may be used; None: no limit
    ranks          that share the picture: all must be given the same budget, and make the same plan

    The rest as in `planner.make_plan`; kernel may be "auto".

    Raises ValueError for settings that contradict each other, MemoryError when nothing fits the budget.
    """
    settings, device = settings or SamplingSettings(), torch.device(device)
    block = config.image_block_size
    canvas = Canvas.of(source, block, scale=scale, target=target, margin=settings.margin(block))
    kernel, _ = choose_kernel(kernel, device, dtype, config.head_dim, config.tokens_per_block)
    work = Workload(config, canvas.size, batch, str(device), dtype, kernel, settings.sampler)
    parts = ranks.parts(work.grid) if ranks else [range(max(work.grid))]
    limits = {}
    if budget:
        pictures = max(canvas_bytes(work, part) for part in parts)
        budget.check_pictures(pictures, "{1}x{0}".format(*canvas.target))
        if budget.device is None:
            limits = {"budget": budget.host, "besides": PROGRAM_BYTES + pictures}
        else:
            limits = {"budget": budget.device, "host_budget": budget.host - PROGRAM_BYTES}
    plan = make_plan(
        work,
        mode=mode,
        block_batch=block_batch,
        offload=offload,
        **limits,
        part=ranks.part(work.grid) if ranks else None,
        deciding=max(parts, key=len) if ranks else None,
    )
    return Job(canvas, plan, settings, settings.network_calls * batch * flops(config, work.grid))
