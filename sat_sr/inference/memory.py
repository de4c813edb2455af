"""How much memory a schedule takes, and which one to take: the planner behind `auto` and `--estimate`.

device peak = weights + kept + group + workspace
    weights   parameters x bytes
    kept      K and V of the frontier: 2 x (line + thickness) x L x C a layer, in all layers (block-major) or in one
              (layer-major), and layer-major the hidden state: I x J x L x C
    group     the halo workspace 2 x (i+1) x (j+1) x L x C and the activations of one group in its widest layer
    workspace   of the libraries, on CUDA
host peak   = canvases: the picture, its conditions, the noise, the sampler's state, all float32

What an accelerator cannot hold moves to the host in two steps, `offload`:
    "state"   what grows with the picture: the hidden state (layer-major) or the frontier (block-major). The device has
              three groups of it: one arriving, one in use, one leaving
    "all"     the weights as well: the device has two layers of them, one in use and one arriving
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from sat_sr.config import LR_FACTOR, MAX_SEQUENCE_LENGTH, TIME_FREQUENCIES, InfDiTConfig
from sat_sr.inference.byte_sizes import format_bytes
from sat_sr.inference.schedule import Order, Schedule
from sat_sr.model.attention_kernels import LARGE_BLOCK, MARK

MODES = ("auto", "full", "ar2", "ar")
OFFLOADS = ("none", "state", "all")
BLOCK_BATCH = 4  # the release's default for ar2

# Tokens that keep a device busy: larger groups gain nothing. Large blocks are taken one by one on a CPU, and by `ar`.
BUSY_TOKENS = {"cuda": 16384, "mps": 4096, "cpu": 4096}
# A GPU's arithmetic over its link to the host, FLOP a byte: 500 TFLOP/s against 25 GB/s.
FLOPS_PER_BYTE = 20_000
# Copies beside the computation are not free: they share the memory, and the first and last of a call are waited for.
OFFLOAD_SLOWDOWN = {"none": 1.0, "state": 1.1, "all": 1.15}
# What libraries keep for themselves: cuBLAS and cuBLASLt, 32 MiB each on large GPUs, and rounding by the allocator.
WORKSPACE = {"cuda": 100 << 20}
# What is free is not all ours: other programs breathe, allocators waste.
USABLE = 0.9
# Canvas-sized float32 pictures alive at once: the upsampled condition, and what `diffusion.samplers` keeps.
CANVASES = {"heun": 4, "euler": 4, "dpmpp_2m": 5, "unipc": 6}


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


def parameter_count(config: InfDiTConfig) -> int:
    """Parameters of the network without the CLIP tower, in closed form."""
    c, d, heads = config.hidden_size, config.head_dim, config.num_attention_heads

    def linear(n_in: int, n_out: int) -> int:
        return n_in * n_out + n_out

    layer = layer_parameter_count(config) + 4 * d + 4 * heads * d  # q and k norms, relation embeddings
    positions = (config.tokens_per_block + (3 * config.lr_features_per_side) ** 2) * heads * d
    cross = linear(12, c) + linear(c, c) + linear(c, 2 * c) + linear(c, c) + 4 * d + 2 * c + positions
    ends = linear(6 * config.patch_size**2, c) + linear(c, 2 * c) + linear(c, 3 * config.patch_size**2)
    time = linear(2 * TIME_FREQUENCIES, c) + linear(c, c)
    vector = linear(config.vector_dim, c) + linear(c, c) if config.vector_dim else 0
    return config.num_layers * layer + cross + ends + time + vector + MAX_SEQUENCE_LENGTH * c


def layer_parameter_count(config: InfDiTConfig) -> int:
    """Parameters of the Linears of one layer: attention, MLP, adaLN."""
    c = config.hidden_size
    return 16 * c * c + 13 * c


def flops(config: InfDiTConfig, grid: tuple[int, int]) -> int:
    """Floating-point operations of a network call: two a multiply-add, matrix products only, border blocks in full."""
    c, tokens = config.hidden_size, config.tokens_per_block
    lr_keys = (3 * config.lr_features_per_side) ** 2
    layer = tokens * (2 * 12 * c * c + 4 * 4 * tokens * c)
    cross = tokens * (4 * c * c + 4 * lr_keys * c) + config.lr_features_per_side**2 * 2 * c * (12 + 2 * c)
    ends = tokens * 2 * c * 9 * config.patch_size**2
    return grid[0] * grid[1] * (config.num_layers * layer + cross + ends)


def weight_bytes(config: InfDiTConfig, itemsize: int, offload: str) -> int:
    """Weights on the device."""
    parameters = parameter_count(config)
    if offload == "all":
        parameters -= (config.num_layers - 2) * layer_parameter_count(config)
    return parameters * itemsize


def hidden_bytes(config: InfDiTConfig, schedule: Schedule, batch: int, itemsize: int) -> int:
    """The hidden state that layer-major keeps."""
    return schedule.blocks * _block_bytes(config, batch, itemsize) if schedule.order == "layer" else 0


def frontier_bytes(config: InfDiTConfig, schedule: Schedule, batch: int, itemsize: int) -> int:
    """K and V that wait for later groups."""
    lines = config.num_layers if schedule.order == "block" else 1
    return 2 * (schedule.line + schedule.thickness) * _block_bytes(config, batch, itemsize) * lines


def kept_bytes(config: InfDiTConfig, schedule: Schedule, batch: int, itemsize: int, offload: str) -> tuple[int, int]:
    """What is kept during a call, on the device and on the host."""
    hidden = hidden_bytes(config, schedule, batch, itemsize)
    frontier = frontier_bytes(config, schedule, batch, itemsize)
    if offload == "none":
        return hidden + frontier, 0
    (i, j), block = schedule.group, _block_bytes(config, batch, itemsize)
    if schedule.order == "layer":
        return 3 * i * j * block + frontier, hidden
    return 3 * 2 * (i + j + 1) * block, frontier


def traffic_bytes(config: InfDiTConfig, schedule: Schedule, batch: int, itemsize: int, offload: str) -> int:
    """What moves from the host to the device in a network call; about as much moves back, beside it."""
    if offload == "none":
        return 0
    (i, j), layers = schedule.group, config.num_layers
    if schedule.order == "layer":
        moved = layers * hidden_bytes(config, schedule, batch, itemsize)
    else:
        moved = layers * schedule.num_groups * 2 * (i + j + 1) * _block_bytes(config, batch, itemsize)
    if offload == "all":
        passes = schedule.num_groups if schedule.order == "block" else 1
        moved += passes * layers * layer_parameter_count(config) * itemsize
    return moved


def _block_bytes(config: InfDiTConfig, batch: int, itemsize: int) -> int:
    """Hidden state, or keys, or values, of one block of the grid."""
    return batch * config.tokens_per_block * config.hidden_size * itemsize


def group_bytes(config: InfDiTConfig, schedule: Schedule, batch: int, itemsize: int, kernel: str) -> int:
    """Halo workspace and activations of one group, at the widest moment of a network call: docs/memory.md, "A group".

    `unit` is the hidden state of the group, `features` what its LR condition gives, `cut` what a row of blocks sees.
    """
    i, j = schedule.group
    block = _block_bytes(config, batch, itemsize)
    unit = i * j * block
    pixels = batch * i * j * config.image_block_size**2
    feature = block * config.lr_features_per_side**2 // config.tokens_per_block
    features = (i + 2) * (j + 2) * feature
    # The windows of K, and the three rows of blocks that they or those of V are views of; a batch copies those of V.
    cut = (9 * j * (1 + (batch > 1)) + 3 * (j + 2)) * feature
    exact = itemsize == 4

    # qkv, q, then a copy of k and the normalised one; in half precision one row of blocks is rotated in float32.
    project = 6 * unit if exact else max(6 * unit, 5 * unit + 3 * j * block)
    if kernel == "sdpa":
        # K and V of four neighbours of the blocks inside the picture, or of two, and all in wider heads, of a strip on
        # its edge. Some rows and columns of a group are inside: all but the first in the first group, all in others.
        inside = rows, cols = [max(n - 1, min(n, of - n)) for n, of in zip((i, j), schedule.grid, strict=True)]
        attend = 2 * unit + int(max(8 * rows * cols, 6 * (1 + MARK / config.head_dim) * max(inside), 2)) * block
    else:
        attend = 2 * unit + 4 * j * block  # the outputs of four neighbours of a row
    cross = 2 * unit + max(3 * features, 2 * features + unit + max(cut, unit))
    mlp = 5 * unit  # 4C inside, and the input or the output
    embed = unit + 6 * pixels * 8  # the pixels in float32, in the network's type and cut into patches, and the tokens
    decode = 3 * unit

    # Layer-major updates the kept hidden state in place; block-major has the group's own.
    hidden = unit if schedule.order == "block" else 0
    halo = 2 * (i + 1) * (j + 1) * block
    rotary = 4 * config.head_dim * i * j * config.tokens_per_block
    return halo + rotary + max(hidden + max(project, attend, cross, mlp, decode), embed)


def make_plan(
    config: InfDiTConfig,
    canvas: tuple[int, int],
    *,
    mode: str = "auto",
    block_batch: int = BLOCK_BATCH,
    offload: str = "auto",
    budget: int | None = None,
    batch: int = 1,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    kernel: str = "merge",
    sampler: str = "heun",
    part: range | None = None,
    deciding: range | None = None,
) -> Plan:
    """Choose the schedule of a canvas: the fastest that fits.

    canvas       (H, W) pixels, multiples of the block side
    mode         "full", "ar" (a block at a time, of small blocks a square of 4096 tokens), "ar2" (up to
                 block_batch² blocks), "auto" (whatever fits)
    offload      what lives on the host: "none", "state", "all", or "auto" (as little as fits)
    budget       bytes of device memory that may be used, weights included; None: no limit
    device       "cpu", "cuda", "cuda:1", "mps"
    part         block rows or columns computed by this process, see `Schedule`
    deciding     the largest part of all processes that share the canvas: what is chosen for it all of them do, as lines
                 of keys and values on the host cannot be handed to a device. There are no fallbacks then

    Raises ValueError for an unknown mode or offload, a block_batch below 1, or an offload from a device without memory
    of its own; MemoryError when nothing fits the budget.
    """
    if mode not in MODES:
        raise ValueError(f"unknown inference type {mode!r}: choose one of {', '.join(MODES)}")
    if block_batch < 1:
        raise ValueError(f"block_batch={block_batch}: must be at least 1")
    if offload not in ("auto", *OFFLOADS):
        raise ValueError(f"unknown offload {offload!r}: choose one of auto, {', '.join(OFFLOADS)}")
    kind = torch.device(device).type
    own_memory = kind == "cuda"
    if offload in ("state", "all") and not own_memory:
        raise ValueError(f"offload {offload!r}: device {device} has no memory of its own, use auto or none")
    grid = (canvas[0] // config.image_block_size, canvas[1] // config.image_block_size)
    itemsize = dtype.itemsize

    def plan(order: Order, group: tuple[int, int], offload: str, part: range | None) -> Plan:
        schedule = Schedule(grid, group, order, part)
        kept, kept_on_host = kept_bytes(config, schedule, batch, itemsize, offload)
        weights = weight_bytes(config, itemsize, offload)
        group_takes = group_bytes(config, schedule, batch, itemsize, kernel)
        on_device = weights + kept + group_takes + WORKSPACE.get(kind, 0)
        share = schedule.blocks / math.prod(grid)
        canvases = canvas_bytes(canvas, batch, sampler, share, gathers=schedule.part.start == 0)
        on_host = canvases + kept_on_host + (parameter_count(config) * itemsize - weights)
        return Plan(schedule, kernel, device, offload, on_device, on_host)

    def cost(plan: Plan) -> tuple[float, int, int, int]:
        """Fastest first; of equally fast ones that with less on the host, then with less to copy, then the smaller."""
        schedule = plan.schedule
        work = batch * schedule.blocks * flops(config, (1, 1)) * (1 + 1 / math.prod(schedule.group))
        moved = traffic_bytes(config, schedule, batch, itemsize, plan.offload)
        time = max(work * OFFLOAD_SLOWDOWN[plan.offload], moved * FLOPS_PER_BYTE)
        return time, OFFLOADS.index(plan.offload), moved, plan.device_bytes

    orders: tuple[Order, ...] = {"auto": ("layer", "block"), "full": ("layer",)}.get(mode, ("block",))
    largest = block_batch if mode == "ar2" else busy_side(config, batch, "cpu" if mode == "ar" else device)
    offloads = ("none",) if not own_memory else OFFLOADS if offload == "auto" else (offload,)
    groups = [(side, side) for side in range(1, largest + 1)]
    decides = deciding or part
    plans = sorted((plan(o, group, place, decides) for o in orders for group in groups for place in offloads), key=cost)
    # `ar2` asks for its group: smaller ones are for emergencies only.
    wanted = Schedule(grid, (largest, largest), "block", decides)
    candidates = [p for p in plans if p.schedule == wanted] if mode == "ar2" else plans
    fitting = [p for p in candidates if budget is None or p.device_bytes <= budget]
    if not fitting:
        least = min(candidates, key=lambda p: p.device_bytes)
        way_out = "raise --memory" if mode == "auto" else "use --inference_type auto, or raise --memory"
        raise MemoryError(
            f"canvas {canvas[1]}x{canvas[0]} in mode {mode} needs about {format_bytes(least.device_bytes)}, "
            f"{format_bytes(budget)} may be used: {way_out}"
        )
    chosen, fallbacks = fitting[0], []
    if deciding:
        return plan(chosen.schedule.order, chosen.schedule.group, chosen.offload, part)
    for smaller in plans:
        if smaller.device_bytes < (fallbacks[-1] if fallbacks else chosen).device_bytes:
            fallbacks.append(smaller)
    return replace(chosen, fallbacks=tuple(fallbacks))


def busy_side(config: InfDiTConfig, batch: int, device: str) -> int:
    """Side, in blocks, of the smallest square group that keeps a device busy; on a CPU one large block does."""
    kind = torch.device(device).type
    if kind == "cpu" and config.tokens_per_block >= LARGE_BLOCK:
        return 1
    return max(1, math.isqrt(BUSY_TOKENS[kind] // (config.tokens_per_block * batch)))


def canvas_bytes(canvas: tuple[int, int], batch: int, sampler: str, share: float = 1.0, *, gathers: bool = True) -> int:
    """Float32 pictures on the host during a run: those of the canvas' size, and the LR condition.

    share    of the canvas that is computed here, when several processes do it
    gathers  whether this process gets the whole canvas in the end
    """
    picture = batch * 3 * canvas[0] * canvas[1] * 4
    part = int(picture * share)
    return max(CANVASES[sampler] * part, gathers * (picture + part)) + picture // LR_FACTOR**2


def free_bytes(device: torch.device) -> int:
    """Memory that is free on the device now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available
