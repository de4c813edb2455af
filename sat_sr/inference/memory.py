"""How much memory a schedule takes, and which one to take: the planner behind `auto` and `--estimate`.

device peak = weights + kept + group
    weights   parameters x bytes
    kept      K and V of the frontier: 2 x (line + thickness) x L x C a layer, in all layers (block-major) or in one
              (layer-major), and layer-major the hidden state: I x J x L x C
    group     the halo workspace 2 x (i+1) x (j+1) x L x C and the activations of one group in its widest layer
host peak   = canvases: the picture, its conditions, the noise, the sampler's state, all float32
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch

from sat_sr.config import LR_FACTOR, MAX_SEQUENCE_LENGTH, TIME_FREQUENCIES, InfDiTConfig
from sat_sr.inference.schedule import Order, Schedule

MODES = ("auto", "full", "ar2", "ar")

# Activations of one group, in units of tokens x C, at the widest moment of a layer: x, the modulated input, q, k, v and
# their rotated float32 copies in attention; x, m and the two 4C activations in the MLP. Measured, see docs/memory.md.
ACTIVATIONS = 14
# Tokens that keep a device busy: larger groups gain nothing.
BUSY_TOKENS = {"cuda": 16384, "mps": 4096, "cpu": 1024}
# Canvas-sized float32 pictures alive at once: the condition, x, noise or slope, denoised, and one more in Heun.
CANVASES = {"heun": 6, "euler": 5, "dpmpp_2m": 6}


@dataclass(frozen=True)
class Plan:
    """How a canvas will be computed.

    schedule      which blocks when
    kernel        attention kernel
    kept_on       "cuda", "cpu", ...: where frontier and hidden state live
    device_bytes  predicted peak on the device, weights included
    host_bytes    predicted peak of canvases on the host
    """

    schedule: Schedule
    kernel: str
    kept_on: str
    device_bytes: int
    host_bytes: int


def parameter_count(config: InfDiTConfig) -> int:
    """Parameters of the network without the CLIP tower, in closed form."""
    c, d, heads = config.hidden_size, config.head_dim, config.num_attention_heads

    def linear(n_in: int, n_out: int) -> int:
        return n_in * n_out + n_out

    layer = linear(c, 3 * c) + linear(c, c) + linear(c, 4 * c) + linear(4 * c, c)  # attention, MLP
    layer += linear(c, 4 * c) + 4 * d + 4 * heads * d  # adaLN, q and k norms, relation embeddings
    positions = (config.tokens_per_block + (3 * config.lr_features_per_side) ** 2) * heads * d
    cross = linear(12, c) + linear(c, c) + linear(c, 2 * c) + linear(c, c) + 4 * d + 2 * c + positions
    ends = linear(6 * config.patch_size**2, c) + linear(c, 2 * c) + linear(c, 3 * config.patch_size**2)
    time = linear(2 * TIME_FREQUENCIES, c) + linear(c, c)
    vector = linear(config.vector_dim, c) + linear(c, c) if config.vector_dim else 0
    return config.num_layers * layer + cross + ends + time + vector + MAX_SEQUENCE_LENGTH * c


def flops(config: InfDiTConfig, grid: tuple[int, int]) -> int:
    """Floating-point operations of a network call: two a multiply-add, matrix products only, border blocks in full."""
    c, tokens = config.hidden_size, config.tokens_per_block
    lr_keys = (3 * config.lr_features_per_side) ** 2
    layer = tokens * (2 * 12 * c * c + 4 * 4 * tokens * c)
    cross = tokens * (4 * c * c + 4 * lr_keys * c) + config.lr_features_per_side**2 * 2 * c * (12 + 2 * c)
    ends = tokens * 2 * c * 9 * config.patch_size**2
    return grid[0] * grid[1] * (config.num_layers * layer + cross + ends)


def kept_bytes(config: InfDiTConfig, schedule: Schedule, batch: int, itemsize: int) -> int:
    """Frontier and, layer-major, the hidden state."""
    block = batch * config.tokens_per_block * config.hidden_size * itemsize
    lines = config.num_layers if schedule.order == "block" else 1
    hidden = schedule.grid[0] * schedule.grid[1] * block if schedule.order == "layer" else 0
    return 2 * (schedule.line + schedule.thickness) * block * lines + hidden


def group_bytes(config: InfDiTConfig, schedule: Schedule, batch: int, itemsize: int, kernel: str) -> int:
    """Halo workspace and activations of one group."""
    i, j = schedule.group
    block = batch * config.tokens_per_block * config.hidden_size * itemsize
    halo = 2 * (i + 1) * (j + 1) * block
    copies = 16 * i * j * block if kernel == "sdpa" else 0  # K and V of four neighbours, and the concatenation
    return halo + copies + ACTIVATIONS * i * j * block


def make_plan(
    config: InfDiTConfig,
    canvas: tuple[int, int],
    *,
    mode: str = "auto",
    block_batch: int = 1,
    budget: int | None = None,
    batch: int = 1,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    kernel: str = "merge",
    sampler: str = "heun",
) -> Plan:
    """Choose the schedule of a canvas.

    canvas       (H, W) pixels, multiples of the block side
    mode         "full", "ar" (one block at a time), "ar2" (block_batch² blocks), "auto" (whatever fits, fastest first)
    budget       bytes of device memory that may be used, weights included; None: no limit

    Raises ValueError for an unknown mode or a block_batch below 1, MemoryError when nothing fits the budget.
    """
    if mode not in MODES:
        raise ValueError(f"unknown inference type {mode!r}: choose one of {', '.join(MODES)}")
    if block_batch < 1:
        raise ValueError(f"block_batch={block_batch}: must be at least 1")
    grid = (canvas[0] // config.image_block_size, canvas[1] // config.image_block_size)
    itemsize = dtype.itemsize
    weights = parameter_count(config) * itemsize
    host = canvas_bytes(canvas, batch, sampler)

    def plan(order: Order, side: int, kept_on: str = device) -> Plan:
        schedule = Schedule(grid, (side, side), order)
        on_device = weights + group_bytes(config, schedule, batch, itemsize, kernel)
        kept = kept_bytes(config, schedule, batch, itemsize)
        on_host = host + (kept if kept_on != device else 0)
        return Plan(schedule, kernel, kept_on, on_device + (kept if kept_on == device else 0), on_host)

    busy = busy_group(config, device, batch)
    if mode == "ar":
        candidates = [plan("block", 1)]
    elif mode == "ar2":
        candidates = [plan("block", block_batch)]
    else:
        orders: tuple[Order, ...] = ("layer",) if mode == "full" else ("layer", "block")
        sides = range(busy, 0, -1)
        places = [device] if device == "cpu" else [device, "cpu"]
        candidates = [plan(order, side, place) for place in places for side in sides for order in orders]
        if mode == "auto":  # for one place and group, the order that keeps less
            candidates.sort(key=lambda p: (places.index(p.kept_on), -p.schedule.group[0], p.device_bytes))
    if budget is None:
        return candidates[0]
    for candidate in candidates:
        if candidate.device_bytes <= budget:
            return candidate
    least = min(candidates, key=lambda p: p.device_bytes)
    way_out = "raise --memory" if mode == "auto" else "use --inference_type auto, or raise --memory"
    raise MemoryError(
        f"canvas {canvas[1]}x{canvas[0]} in mode {mode} needs about {format_bytes(least.device_bytes)}, "
        f"{format_bytes(budget)} may be used: {way_out}"
    )


def busy_group(config: InfDiTConfig, device: str, batch: int) -> int:
    """Side, in blocks, of the smallest square group that keeps the device busy."""
    tokens = BUSY_TOKENS.get(device, BUSY_TOKENS["cuda"])
    return max(1, math.isqrt(tokens // (config.tokens_per_block * batch)))


def canvas_bytes(canvas: tuple[int, int], batch: int, sampler: str) -> int:
    """Float32 pictures of the canvas' size on the host during a run."""
    return CANVASES[sampler] * batch * 3 * canvas[0] * canvas[1] * 4 * (1 + 1 // LR_FACTOR**2)


def parse_bytes(text: str) -> int:
    """'8GiB', '500M', '1.5 GB', '1073741824' -> bytes (units of 1024). Raises ValueError that shows the forms."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?\s*", text, re.IGNORECASE)
    if not match or float(match[1]) <= 0:
        raise ValueError(f"memory {text!r}: write it like 8GiB, 500MiB, 1.5G or a number of bytes")
    return int(float(match[1]) * 1024 ** " kmgt".index(match[2].lower() or " "))


def format_bytes(count: int) -> str:
    """1234567890 -> '1.1 GiB'."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def free_bytes(device: torch.device) -> int:
    """Memory that is free on the device now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available
