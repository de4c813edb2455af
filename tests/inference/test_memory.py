"""The planner's closed forms against what a run really does: live tensors, counted operations, recorded names."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from torch.backends import mkldnn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sat_sr.config import PRESETS, InfDiTConfig
from sat_sr.inference.memory import WORKSPACE, weight_bytes
from sat_sr.inference.planner import make_plan
from sat_sr.inference.transfer import Done, Transfer
from sat_sr.inference.workload import Workload
from sat_sr.model.counts import flops, layer_parameter_count, parameter_count

SMALL = InfDiTConfig(
    num_layers=2, hidden_size=64, num_attention_heads=4, image_block_size=32, image_size=64, vector_dim=0
)
SHAPES = {
    "small": SMALL,
    "wide": dataclasses.replace(SMALL, hidden_size=160, num_attention_heads=2),
    "large blocks": dataclasses.replace(SMALL, hidden_size=32, image_block_size=64),
    "deep": dataclasses.replace(SMALL, num_layers=5),
}
MODES = [("full", 1), ("ar", 1), ("ar2", 2), ("ar2", 3), ("auto", 1)]
GRIDS = [(3, 3), (1, 4)]


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [*((shape, torch.float32) for shape in SHAPES), ("small", torch.bfloat16), ("mini", torch.float32)],
)
def test_predicted_peak_of_a_network_call(make_model, live_bytes, shape, dtype):
    from sat_sr.inference.denoiser import Denoiser

    config = {**PRESETS, **SHAPES}[shape]
    model = make_model(config).to(dtype)
    weights = parameter_count(config) * dtype.itemsize
    batches = itertools.cycle([1, 1, 2])
    for grid, (mode, block_batch), kernel in itertools.product(GRIDS, MODES, ["merge", "sdpa"]):
        batch, size = next(batches), tuple(side * config.image_block_size for side in grid)
        plan = make_plan(Workload(config, size, batch, dtype=dtype, kernel=kernel), mode=mode, block_batch=block_batch)
        x, lr = torch.randn(batch, 3, *size), torch.randn(batch, 3, *(side // 4 for side in size))
        denoiser = Denoiser(model, plan, lr, x)
        with live_bytes() as live:
            denoised = denoiser(x, 1.0)
        measured = live.peak - denoised.nbytes
        assert plan.device_bytes - weights == pytest.approx(measured, rel=0.15), (grid, batch, kernel, str(plan))


class MetaTransfer(Transfer):
    """Host memory without memory, which is not counted as the device's."""

    def __init__(self, live):
        super().__init__(torch.device("meta"))
        self.live = live

    def to_host(self, picture):
        return picture, Done()

    def host_memory(self, shape, dtype):
        memory = torch.empty(shape, dtype=dtype, device="meta")
        self.live.forget(memory.untyped_storage())
        return memory


@pytest.mark.parametrize(
    ("mode", "block_batch", "grid", "offload"),
    [
        ("full", 1, (4, 8), "none"), ("full", 1, (4, 8), "state"), ("full", 1, (4, 8), "all"),
        ("ar2", 3, (4, 8), "none"), ("ar2", 4, (4, 8), "state"), ("ar2", 2, (4, 4), "all"),
        ("ar", 1, (2, 4), "none"), ("ar", 1, (4, 2), "state"),
    ],
)  # fmt: skip
def test_predicted_peak_of_the_official_model_on_a_gpu(
    live_bytes, monkeypatch, use_transfer, mode, block_batch, grid, offload
):
    """Official layers in bfloat16, as planned for CUDA, by tensors that have sizes and no memory. Three of 28 layers:
    the others add to weights and frontier what these do, and time."""
    from sat_sr.inference import denoiser as denoiser_module
    from sat_sr.model import lr_cross_attention
    from sat_sr.model.inf_dit import InfDiT
    from sat_sr.model.stock import attend_with_lse

    config, bfloat16 = dataclasses.replace(PRESETS["official"], num_layers=3), torch.bfloat16
    size = tuple(side * config.image_block_size for side in grid)
    work = Workload(config, size, device="cuda", dtype=bfloat16)
    plan = make_plan(work, mode=mode, block_batch=block_batch, offload=offload)
    x, lr = (torch.empty(1, 3, size[0] // n, size[1] // n, device="meta") for n in (1, 4))
    model = InfDiT(config, device="meta", dtype=bfloat16).requires_grad_(False)
    clip = torch.empty(1, config.vector_dim, device="meta")
    denoiser = denoiser_module.Denoiser(model, dataclasses.replace(plan, device="meta"), lr, x, clip)
    live = live_bytes(meta=True)
    use_transfer(lambda device: MetaTransfer(live))
    monkeypatch.setattr(denoiser_module, "bool", lambda finite: True, raising=False)  # nothing is there to be looked at
    # Which kernel PyTorch takes depends on the device: here it would be one that makes all scores.
    monkeypatch.setattr(lr_cross_attention, "attend", lambda *qkv: attend_with_lse(*qkv)[0])
    with live:
        denoised = denoiser(x, 1.0)
    weights, _ = weight_bytes(work, offload)
    if offload == "all":  # two layers of them are made during the call
        weights -= 2 * layer_parameter_count(config) * bfloat16.itemsize
    predicted = plan.device_bytes - WORKSPACE["cuda"] - weights
    assert predicted == pytest.approx(live.peak - denoised.nbytes, rel=0.15)


@pytest.mark.parametrize(
    ("sampler", "choices"),
    [
        ("heun", {"color_fix": "wavelet"}),
        ("euler", {"color_fix": "backprojection"}),
        ("dpmpp_2m", {"color_fix": "backprojection", "detail": 1.5, "grid_shift": 10}),
        ("unipc", {"color_fix": "mean"}),
    ],
)
def test_predicted_peak_of_a_run(make_model, live_bytes, monkeypatch, sampler, choices):
    """A thin network on a large canvas: most of the memory is pictures, and the rest is predicted as above."""
    from sat_sr.inference import backprojection, resize_in_parts
    from sat_sr.inference import color_fix as fixes
    from sat_sr.inference.upscaler import Upscaler
    from sat_sr.sampling import SamplingSettings

    config = dataclasses.replace(SMALL, num_layers=1, hidden_size=16, num_attention_heads=2)
    upscaler = Upscaler(make_model(config))
    settings = SamplingSettings(sampler=sampler, num_steps=2 if sampler == "heun" else 3, **choices)
    for module in (fixes, backprojection, resize_in_parts):  # as thin beside the canvas as it is beside a large one
        monkeypatch.setattr(module, "STRIP", 16)
    image = torch.rand(1, 3, 24, 320) * 2 - 1  # wide: fixes take strips of columns
    job = upscaler.prepare(image.shape[-2:], scale=4, mode="ar2", block_batch=4, settings=settings)
    with live_bytes() as live:
        upscaler.run(image, job)
    predicted = job.plan.host_bytes + job.plan.device_bytes - parameter_count(config) * 4
    assert predicted == pytest.approx(live.peak, rel=0.15)


def test_parameters_of_the_published_model(golden_dir):
    _, *lines = (golden_dir / "official_state_dict.tsv").read_text().splitlines()
    rows = [line.split("\t") for line in lines]
    sizes = [
        math.prod(int(side) for side in shape.split("x"))
        for name, shape, kind in rows
        if kind == "parameter" and not name.startswith("image_encoder.")
    ]
    assert sum(sizes) == parameter_count(PRESETS["official"]) == 753_762_928


@pytest.mark.parametrize("config", [*PRESETS.values(), *SHAPES.values()], ids=[*PRESETS, *SHAPES])
def test_parameters_of_a_model(config):
    from sat_sr.model.inf_dit import InfDiT

    assert parameter_count(config) == sum(p.numel() for p in InfDiT(config, device="meta").parameters())


@pytest.mark.parametrize("grid", [(1, 1), (2, 3)])
def test_operations_of_a_network_call(make_model, monkeypatch, grid):
    """Against PyTorch's count of the matrix products that really happen."""
    from sat_sr.inference.denoiser import Denoiser

    config = dataclasses.replace(SMALL, num_layers=6)
    size = tuple(side * config.image_block_size for side in grid)
    plan = make_plan(Workload(config, size, kernel="sdpa"), mode="full")
    x, lr = torch.randn(1, 3, *size), torch.randn(1, 3, *(side // 4 for side in size))
    denoiser = Denoiser(make_model(config), plan, lr, x)
    monkeypatch.setattr(mkldnn, "enabled", False)  # its products are not counted
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        denoiser(x, 1.0)
    # Not in the closed form: what does not grow with the canvas, and LR features outside of the picture.
    outside = (grid[0] + 2) * (grid[1] + 2) - grid[0] * grid[1]
    c, features = config.hidden_size, config.lr_features_per_side**2
    embedding = 2 * (192 * c + c * c) + config.num_layers * 2 * 4 * c * c + 2 * 2 * c * c
    # A neighbour on the picture's edge is computed once: the corner block has 1, others there 2 (in heads of 8 more
    # dimensions, by a bias of q·e_r), blocks inside 4.
    (i, j), tokens, wider = grid, config.tokens_per_block, 1 + 8 / config.head_dim
    fewer = 4 * i * j - (1 + 2 * wider * (i + j - 2) + 4 * (i - 1) * (j - 1))
    edges = config.num_layers * tokens * c * (4 * tokens * fewer - 8 * (i + j - 2))
    extra = outside * features * 2 * c * (12 + 2 * c) + embedding
    assert counter.get_total_flops() == flops(config, grid) + extra - edges


@pytest.mark.parametrize("size", [(256, 256), (512, 128), (128, 1024)])
def test_the_largest_groups_that_fit_are_taken(size):
    """In whatever memory some groups fit in one of the orders, `auto` takes groups that are at least as large."""
    work = Workload(PRESETS["mini"], size)
    for fixed in (
        *(make_plan(work, mode="ar2", block_batch=side) for side in (1, 2, 3, 4)),
        make_plan(work, mode="full"),
    ):
        auto = make_plan(work, budget=fixed.device_bytes)
        assert auto.device_bytes <= fixed.device_bytes
        assert math.prod(auto.schedule.group) >= math.prod(fixed.schedule.group)


@pytest.mark.parametrize("mode", ["auto", "full", "ar"])
def test_all_parts_of_a_canvas_are_planned_alike(mode):
    """In less and less memory, three ranks with 5, 5 and 6 of 16 block rows: plans fit and keep lines alike."""
    work = Workload(PRESETS["official"], (2048, 2048), device="cuda", dtype=torch.bfloat16)
    parts = [range(0, 5), range(5, 10), range(10, 16)]
    largest = make_plan(work, mode=mode, offload="none", part=parts[2]).device_bytes
    seen = set()
    for percent in range(100, 35, -2):
        budget = largest * percent // 100
        plans = [make_plan(work, mode=mode, budget=budget, part=part, deciding=parts[2]) for part in parts]
        assert [plan.schedule.part for plan in plans] == parts
        assert max(plan.device_bytes for plan in plans) <= budget
        kinds = {(plan.schedule.order, plan.offload) for plan in plans}
        assert len(kinds) == 1
        seen |= kinds
    assert len(seen) > 1


def test_what_a_gpu_is_planned_to_hold():
    """The official model in bfloat16: 16384² in 8 GiB, and one block at a time whatever the width."""
    config, cuda = PRESETS["official"], {"device": "cuda", "dtype": torch.bfloat16}
    large = make_plan(Workload(config, (16384, 16384), **cuda), budget=8 << 30)
    assert large.device_bytes <= 8 << 30 and math.prod(large.schedule.group) == 16  # groups that keep a GPU busy
    works = [Workload(config, (1024, width), **cuda) for width in (2048, 1 << 20)]
    narrow, wide = (make_plan(work, mode="ar", offload="none") for work in works)
    assert wide.device_bytes == narrow.device_bytes


def test_a_budget_is_kept_or_refused():
    """Less memory, a smaller plan; below the smallest it is said what is needed."""
    work = Workload(PRESETS["official"], (4096, 4096), device="cuda", dtype=torch.bfloat16)
    previous = math.inf
    for budget in (64 << 30, 4 << 30, 2 << 30, 1 << 30):
        plan = make_plan(work, budget=budget)
        assert plan.device_bytes <= min(budget, previous)
        previous = plan.device_bytes
    with pytest.raises(MemoryError, match=r"canvas 4096x4096 in mode auto needs about .* 128\.0 MiB may be used"):
        make_plan(work, budget=128 << 20)
