"""How many bytes a schedule takes, before anything is computed.

device peak = weights + kept + group + workspace
    weights     parameters x bytes
    kept        K and V of the frontier: 2 x (line + thickness) x L x C per layer, in all layers (block-major) or in one
                (layer-major; three where processes share the picture), and layer-major the hidden state: I x J x L x C
    group       the halo workspace 2 x (i+1) x (j+1) x L x C and the activations of one group in its widest layer
    workspace   of the libraries, on CUDA
host peak   = canvases + what is offloaded; canvases: the picture, its conditions, the sampler's state, all float32

All results are bytes. `offload` is what lives on the host (`planner`). docs/memory.md derives the terms.
"""

from __future__ import annotations

import sys

from sat_sr.config import LR_FACTOR
from sat_sr.inference.frontier import kept_lines
from sat_sr.inference.schedule import Schedule
from sat_sr.inference.workload import Workload
from sat_sr.model.attention_kernels import MARK
from sat_sr.model.counts import layer_parameter_count, parameter_count

# What libraries keep for themselves: cuBLAS and cuBLASLt, 32 MiB each on large GPUs, and rounding by the allocator.
WORKSPACE = {"cuda": 100 << 20}
# Canvas-sized float32 pictures alive at once: the upsampled condition, and what `diffusion.samplers` keeps.
CANVASES = {"heun": 4, "euler": 4, "dpmpp_2m": 5, "unipc": 6}
# Until 3.11 Python kept what a call is given until it returns: of a sampler, the start.
CANVASES_HELD = int(sys.version_info < (3, 11))


def weight_bytes(work: Workload, offload: str) -> tuple[int, int]:
    """Weights on the device and on the host."""
    weights, layer = (count(work.config) * work.itemsize for count in (parameter_count, layer_parameter_count))
    if offload != "all":
        return weights, 0
    layers = work.config.num_layers * layer
    return weights - layers + 2 * layer, layers


def hidden_bytes(work: Workload, schedule: Schedule) -> int:
    """The hidden state that layer-major keeps."""
    return schedule.blocks * work.block_bytes if schedule.order == "layer" else 0


def frontier_bytes(work: Workload, schedule: Schedule) -> int:
    """K and V that wait for later groups, and in a part of a picture for the next part."""
    lines = kept_lines(schedule, work.config.num_layers)
    return 2 * (schedule.line + schedule.thickness) * work.block_bytes * lines


def kept_bytes(work: Workload, schedule: Schedule, offload: str) -> tuple[int, int]:
    """What is kept during a call, on the device and on the host."""
    hidden, frontier = hidden_bytes(work, schedule), frontier_bytes(work, schedule)
    if offload == "none":
        return hidden + frontier, 0
    i, j = schedule.group
    if schedule.order == "layer":
        return 3 * i * j * work.block_bytes + frontier, hidden
    return 3 * 2 * (i + j + 1) * work.block_bytes, frontier


def traffic_bytes(work: Workload, schedule: Schedule, offload: str) -> int:
    """What moves from the host to the device in a network call; about as much moves back at the same time."""
    if offload == "none":
        return 0
    (i, j), layers = schedule.group, work.config.num_layers
    if schedule.order == "layer":
        moved = (layers - 1) * hidden_bytes(work, schedule)  # the first layer's comes from the pixels
    else:
        moved = layers * schedule.num_groups * 2 * (i + j + 1) * work.block_bytes
    if offload == "all":
        passes = schedule.num_groups if schedule.order == "block" else 1
        moved += passes * layers * layer_parameter_count(work.config) * work.itemsize
    return moved


def group_bytes(work: Workload, schedule: Schedule) -> int:
    """Halo workspace and activations of one group, at the widest moment of a network call: docs/memory.md, "A group".

    `unit` is the hidden state of the group, `features` what its LR condition gives, `cut` what a row of blocks sees.
    """
    config, batch, block = work.config, work.batch, work.block_bytes
    i, j = schedule.group
    unit = i * j * block
    pixels = batch * i * j * config.image_block_size**2
    feature = block * config.lr_features_per_side**2 // config.tokens_per_block
    features = (i + 2) * (j + 2) * feature
    # The windows of K, and the three rows of blocks that they or those of V are views of; a batch copies those of V.
    cut = (9 * j * (1 + (batch > 1)) + 3 * (j + 2)) * feature
    exact = work.itemsize == 4

    # qkv, q, then a copy of k and the normalised one; in half precision one row of blocks is rotated in float32.
    project = 6 * unit if exact else max(6 * unit, 5 * unit + 3 * j * block)
    if work.kernel == "sdpa":
        # K and V of four neighbours of the blocks inside the picture, or of two, and all in wider heads, of a strip on
        # its edge. Some rows and columns of a group are inside: all but the first in the first group, all in others.
        inside = rows, cols = [max(n - 1, min(n, of - n)) for n, of in zip((i, j), schedule.grid, strict=True)]
        attend = 2 * unit + int(max(8 * rows * cols, 6 * (1 + MARK / config.head_dim) * max(inside), 2)) * block
    else:  # the others attend to neighbours one by one
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


def canvas_bytes(work: Workload, part: range) -> int:
    """Float32 pictures on the host during a run: those of the canvas' size, and the LR condition.

    part  block rows or columns that are computed here, see `Schedule`; where the first are, the whole canvas is put
          together in the end
    """
    height, width = work.canvas
    picture = work.batch * 3 * height * width * 4
    own = picture * len(part) // max(work.grid)
    gathered = picture + own if part.start == 0 else 0
    return max((CANVASES[work.sampler] + CANVASES_HELD) * own, gathered) + picture // LR_FACTOR**2
