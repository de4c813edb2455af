"""Which schedule a canvas gets: the fastest that fits the memory.

What an accelerator cannot hold moves to the host in two steps, `offload`:
    "state"   what grows with the picture: the hidden state (layer-major) or the frontier (block-major). The device has
              three groups of it: one arriving, one in use, one leaving
    "all"     the weights as well: the device has two layers of them, one in use and one arriving
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from sat_sr.byte_sizes import format_bytes
from sat_sr.config import InfDiTConfig
from sat_sr.inference.choices import BLOCK_BATCH, MODES, OFFLOADS
from sat_sr.inference.memory import WORKSPACE, canvas_bytes, group_bytes, kept_bytes, traffic_bytes, weight_bytes
from sat_sr.inference.schedule import Order, Schedule
from sat_sr.inference.workload import Workload
from sat_sr.model.attention_kernels import LARGE_BLOCK
from sat_sr.model.counts import flops

# Tokens that keep a device busy: larger groups gain nothing. Large blocks are taken one by one on a CPU, and by `ar`.
BUSY_TOKENS = {"cuda": 16384, "mps": 4096, "cpu": 4096}
# A GPU's arithmetic over its link to the host, FLOP per byte: 500 TFLOP/s against 25 GB/s.
FLOPS_PER_BYTE = 20_000
# Copies beside the computation are not free: they share the memory, and the first and last of a call are waited for.
OFFLOAD_SLOWDOWN = {"none": 1.0, "state": 1.1, "all": 1.15}


@dataclass(frozen=True)
class Plan:
    """How a canvas will be computed.

    schedule      which blocks when
    kernel        attention kernel
    device        where the network computes
    offload       what lives on the host instead: "none", "state" or "all"
    device_bytes  predicted peak on the device, weights included
    host_bytes    predicted peak on the host: canvases and what is offloaded
    fallbacks     smaller plans for the same canvas, the next one first: for when the prediction was wrong
    """

    schedule: Schedule
    kernel: str
    device: str
    offload: str
    device_bytes: int
    host_bytes: int
    fallbacks: tuple[Plan, ...] = ()

    def __str__(self) -> str:
        host = {"none": "", "state": ", state on the host", "all": ", state and weights on the host"}
        return f"{self.schedule}{host[self.offload]}, about {format_bytes(self.device_bytes)}"


def make_plan(
    work: Workload,
    *,
    mode: str = "auto",
    block_batch: int = BLOCK_BATCH,
    offload: str = "auto",
    budget: int | None = None,
    besides: int = 0,
    host_budget: int | None = None,
    part: range | None = None,
    deciding: range | None = None,
) -> Plan:
    """Choose the schedule of a canvas: the fastest that fits.

    mode         "full", "ar" (one block at a time, or a square of 4096 tokens where blocks are small), "ar2" (up to
                 block_batch² blocks), "auto" (whatever fits)
    offload      what lives on the host: "none", "state", "all", or "auto" (as little as fits)
    budget       bytes of device memory that may be used, weights included; None: no limit
    besides      bytes of that for other things, where the device takes the host's memory: the program, pictures
    host_budget  bytes of the host's that pictures and what is offloaded may take; None: no limit
    part         block rows or columns computed by this process, see `Schedule`
    deciding     the largest part of all processes that share the canvas: what is chosen for it all of them do, as lines
                 of keys and values on the host cannot be handed to a device. There are no fallbacks then

    Raises ValueError for an unknown mode or offload, a block_batch below 1, or an offload from a device without memory
    of its own; MemoryError when nothing fits.
    """
    kind = torch.device(work.device).type
    if kind not in BUSY_TOKENS:
        raise ValueError(f"device {work.device}: there are plans for {', '.join(BUSY_TOKENS)}")
    own_memory = kind == "cuda"
    _check(mode, block_batch, offload, work.device if not own_memory else None)

    def plan(order: Order, group: tuple[int, int], offload: str, part: range | None) -> Plan:
        return _planned(work, Schedule(work.grid, group, order, part), offload)

    orders: tuple[Order, ...] = {"auto": ("layer", "block"), "full": ("layer",)}.get(mode, ("block",))
    largest = block_batch if mode == "ar2" else busy_side(work.config, work.batch, "cpu" if mode == "ar" else kind)
    offloads = ("none",) if not own_memory else OFFLOADS if offload == "auto" else (offload,)
    groups = [(side, side) for side in range(1, largest + 1)]
    decides = deciding or part
    plans = [plan(order, group, place, decides) for order in orders for group in groups for place in offloads]
    plans.sort(key=_cost(work))
    # `ar2` asks for its group: smaller ones are for emergencies only.
    wanted = Schedule(work.grid, (largest, largest), "block", decides)
    candidates = [p for p in plans if p.schedule == wanted] if mode == "ar2" else plans

    on_device = [p for p in candidates if budget is None or besides + p.device_bytes <= budget]
    fitting = [p for p in on_device if host_budget is None or p.host_bytes <= host_budget]
    if not fitting:
        raise MemoryError(_what_is_missing(work.canvas, mode, on_device, candidates, budget, besides, host_budget))
    chosen, fallbacks = fitting[0], []
    if deciding:
        return plan(chosen.schedule.order, chosen.schedule.group, chosen.offload, part)
    for smaller in (p for p in plans if host_budget is None or p.host_bytes <= host_budget):
        if smaller.device_bytes < (fallbacks[-1] if fallbacks else chosen).device_bytes:
            fallbacks.append(smaller)
    return replace(chosen, fallbacks=tuple(fallbacks))


def busy_side(config: InfDiTConfig, batch: int, device: str) -> int:
    """Side, in blocks, of the smallest square group that keeps a device busy; on a CPU one large block does."""
    kind = torch.device(device).type
    if kind == "cpu" and config.tokens_per_block >= LARGE_BLOCK:
        return 1
    return max(1, math.isqrt(BUSY_TOKENS[kind] // (config.tokens_per_block * batch)))


def _planned(work: Workload, schedule: Schedule, offload: str) -> Plan:
    """A schedule with what it takes, on the device and on the host."""
    weights, weights_on_host = weight_bytes(work, offload)
    kept, kept_on_host = kept_bytes(work, schedule, offload)
    workspace = WORKSPACE.get(torch.device(work.device).type, 0)
    on_device = weights + kept + group_bytes(work, schedule) + workspace
    on_host = canvas_bytes(work, schedule.part) + kept_on_host + weights_on_host
    return Plan(schedule, work.kernel, work.device, offload, on_device, on_host)


def _cost(work: Workload) -> Callable[[Plan], tuple[float, int, int, int]]:
    """Fastest first; of equally fast ones that with less on the host, then with less to copy, then the smaller."""

    def cost(plan: Plan) -> tuple[float, int, int, int]:
        schedule = plan.schedule
        operations = work.batch * schedule.blocks * flops(work.config, (1, 1)) * (1 + 1 / math.prod(schedule.group))
        moved = traffic_bytes(work, schedule, plan.offload)
        time = max(operations * OFFLOAD_SLOWDOWN[plan.offload], moved * FLOPS_PER_BYTE)
        return time, OFFLOADS.index(plan.offload), moved, plan.device_bytes

    return cost


def _check(mode: str, block_batch: int, offload: str, without_memory: str | None) -> None:
    """without_memory: the device, when it has no memory of its own."""
    if mode not in MODES:
        raise ValueError(f"unknown inference type {mode!r}: choose one of {', '.join(MODES)}")
    if block_batch < 1:
        raise ValueError(f"block_batch={block_batch}: must be at least 1")
    if offload not in ("auto", *OFFLOADS):
        raise ValueError(f"unknown offload {offload!r}: choose one of auto, {', '.join(OFFLOADS)}")
    if offload in ("state", "all") and without_memory:
        raise ValueError(
            f"offload {offload} needs a CUDA device: {without_memory} shares the host's memory; use auto or none"
        )


def _what_is_missing(
    canvas: tuple[int, int],
    mode: str,
    on_device: list[Plan],
    candidates: list[Plan],
    budget: int | None,
    besides: int,
    host_budget: int | None,
) -> str:
    """Why no candidate fits, not even those that fit the device, and the way out."""
    name = f"canvas {canvas[1]}x{canvas[0]} in mode {mode}"
    if on_device:
        least = min(on_device, key=lambda plan: plan.host_bytes)
        moved = {"none": "", "state": " with its state there", "all": " with state and weights there"}[least.offload]
        return (
            f"{name} needs about {format_bytes(least.host_bytes)} of the host's memory{moved}, "
            f"{format_bytes(host_budget)} may be used: ask for a smaller size, upscale parts, or close other programs"
        )
    least = besides + min(plan.device_bytes for plan in candidates)
    shared = ", the program and pictures included" if besides else ""
    smaller = "use --inference_type auto, " if mode != "auto" else "ask for a smaller size, " if besides else ""
    return (
        f"{name} needs about {format_bytes(least, up=True)}{shared}, {format_bytes(budget)} may be used: "
        f"{smaller}raise --memory, or close other programs"
    )
