"""All schedules compute the function of the whole canvas, in bounded memory; and what is said when memory runs out."""

from __future__ import annotations

import dataclasses
import logging
import shutil

import pytest
import torch

from sat_sr.diffusion.edm import denoise
from sat_sr.diffusion.samplers import heun
from sat_sr.inference import denoiser as denoiser_module
from sat_sr.inference.denoiser import Denoiser
from sat_sr.inference.out_of_memory import is_out_of_memory
from sat_sr.inference.planner import Plan, make_plan
from sat_sr.inference.schedule import Schedule
from sat_sr.inference.workload import Workload
from sat_sr.model import adaln

SIGMA = 1.7


@pytest.fixture(scope="module")
def model(make_model):
    return make_model()


def plan_of(grid, group, order, kernel="merge", **changes) -> Plan:
    return Plan(Schedule(grid, group, order), kernel, "cpu", "none", 0, 0, **changes)


def whole(model, x, lr, lr_upsampled, clip):
    with torch.no_grad():
        return denoise(model, x, torch.tensor([SIGMA]), lr, lr_upsampled, clip)


@pytest.mark.parametrize("kernel", ["merge", "sdpa"])
@pytest.mark.parametrize("order", ["layer", "block"])
@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (5, 1), (3, 4), (4, 3)], ids=str)
def test_every_schedule_computes_the_whole_canvas(model, make_inputs, grid, order, kernel):
    x, *conditions = make_inputs(model.config, grid)
    expected = whole(model, x, *conditions)
    for group in [(1, 1), (2, 2), (1, 3)]:
        denoiser = Denoiser(model, plan_of(grid, group, order, kernel), *conditions)
        for _ in range(2):  # what is kept from the first call must not leak into the second
            torch.testing.assert_close(denoiser(x, SIGMA), expected, rtol=0, atol=5e-6)


def test_blocks_do_matter_to_each_other(model, make_inputs):
    """The test above could not fail if the network ignored its neighbours."""
    x, *conditions = make_inputs(model.config, (3, 4))
    changed = x.clone()
    changed[..., :16, :16] += 1
    difference = (whole(model, changed, *conditions) - whole(model, x, *conditions)).abs()
    assert difference[..., 16:32, 16:32].max() > 1e-3


@pytest.mark.parametrize("tall", [True, False])
def test_block_major_memory_does_not_grow_with_the_longer_side(model, make_inputs, live_bytes, tall):
    def peak_beside_canvas(length, order):
        grid = (length, 2) if tall else (2, length)
        x, *conditions = make_inputs(model.config, grid)
        denoiser = Denoiser(model, plan_of(grid, (1, 1), order), *conditions)
        with live_bytes() as live:
            denoised = denoiser(x, SIGMA)
        return live.peak - denoised.nbytes

    assert peak_beside_canvas(6, "block") == peak_beside_canvas(3, "block")
    hidden = 3 * 2 * model.config.tokens_per_block * model.config.hidden_size * 4
    assert peak_beside_canvas(6, "layer") == peak_beside_canvas(3, "layer") + hidden


@pytest.mark.parametrize("order", ["layer", "block"])
def test_nan_names_blocks_and_call(model, make_inputs, order):
    x, *conditions = make_inputs(model.config, (3, 4))
    denoiser = Denoiser(model, plan_of((3, 4), (1, 1), order), *conditions)
    denoiser(x, SIGMA)
    x[..., 16 + 3, 2 * 16 + 5] = float("nan")
    with pytest.raises(FloatingPointError, match=r"blocks \(1,2\)\.\.\(1,2\) at network call 2, sigma 1\.7"):
        denoiser(x, SIGMA)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "3e38"])
def test_one_number_that_is_not_finite_is_found(value):
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    pixels[1, 2, 33, 57] = float(value)
    assert bool(denoiser_module._is_finite(pixels)) == (value == "3e38")


def test_conditions_that_do_not_fit_are_refused(model, make_inputs):
    _, lr, lr_upsampled, clip = make_inputs(model.config, (3, 4))
    plan = plan_of((3, 4), (1, 1), "block")
    with pytest.raises(ValueError, match=r"lr has shape \(1, 3, 12, 12\)"):
        Denoiser(model, plan, lr[..., :12], lr_upsampled, clip)
    with pytest.raises(ValueError, match=r"lr_upsampled has shape \(1, 3, 48, 48\)"):
        Denoiser(model, plan, lr, lr_upsampled[..., :48], clip)
    with pytest.raises(ValueError, match="CLIP embedding must be given"):
        Denoiser(model, plan, lr, lr_upsampled)


def test_out_of_memory_steps_down_to_the_same_picture(model, make_inputs, live_bytes, caplog):
    """On a machine with room for groups of 2 x 2 but not of 3 x 3, found out in the middle of the second call."""
    grid = (6, 6)
    x, *conditions = make_inputs(model.config, grid)
    expected = whole(model, x, *conditions)
    peaks = {}
    for side in (1, 2, 3):
        with live_bytes() as live:
            Denoiser(model, plan_of(grid, (side, side), "block"), *conditions)(x, SIGMA)
        peaks[side] = live.peak
    assert peaks[1] < peaks[2] < peaks[3]

    smaller = tuple(plan_of(grid, (side, side), "block") for side in (2, 1))
    denoiser = Denoiser(model, plan_of(grid, (3, 3), "block", fallbacks=smaller), *conditions)
    with live_bytes() as live, caplog.at_level(logging.WARNING):
        first = denoiser(x, SIGMA)
        live.limit = (peaks[2] + peaks[3]) / 2  # another process came: the first result takes its share too
        live.limit += first.nbytes
        second = denoiser(x, SIGMA)
    assert denoiser.plan.schedule.group == (2, 2)
    torch.testing.assert_close(first, expected, rtol=0, atol=5e-6)
    torch.testing.assert_close(second, expected, rtol=0, atol=5e-6)
    (warning,) = caplog.messages
    assert "network call 2" in warning and "groups of 2x2" in warning and "groups of 3x3" in warning
    assert denoiser.calls == 2


@pytest.mark.parametrize("order", ["layer", "block"])
def test_out_of_memory_in_the_middle_of_a_picture(model, make_inputs, monkeypatch, caplog, order):
    """Once, in the middle of the third of five calls: what a sampler makes of them is the same picture."""
    start, *conditions = make_inputs(model.config, (3, 4))
    sigmas, large = torch.tensor([3.0, 1.0, 0.3, 0.0]), plan_of((3, 4), (2, 2), order)
    expected = heun(Denoiser(model, large, *conditions), start, sigmas)

    pieces, compute = 2 * large.schedule.num_groups * model.config.num_layers + 5, adaln.mlp

    def runs_out(*arguments):
        nonlocal pieces
        pieces -= 1
        if pieces == 0:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: not enough memory")
        return compute(*arguments)

    monkeypatch.setattr(adaln, "mlp", runs_out)
    small = plan_of((3, 4), (1, 1), order)
    denoiser = Denoiser(model, dataclasses.replace(large, fallbacks=(small,)), *conditions)
    with caplog.at_level(logging.WARNING):
        picture = heun(denoiser, start, sigmas)
    assert pieces < 0 and denoiser.plan == small and denoiser.calls == 5
    torch.testing.assert_close(picture, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))
    (warning,) = caplog.messages
    assert "network call 3" in warning and "groups of 1x1" in warning


def test_out_of_memory_with_no_smaller_plan(model, make_inputs, live_bytes):
    x, *conditions = make_inputs(model.config, (2, 2))
    denoiser = Denoiser(model, plan_of((2, 2), (1, 1), "block"), *conditions)
    with live_bytes(limit=x.nbytes * 2), pytest.raises(MemoryError, match=r"network call 1 .* no smaller plan"):
        denoiser(x, SIGMA)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB, max allowed: 9.07 GB)"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (4x3 and 4x3)"), False),
    ],
    ids=str,
)
def test_errors_that_say_that_memory_ran_out(error, expected):
    assert is_out_of_memory(error) == expected


def test_other_errors_are_not_taken_for_memory(model, make_inputs, monkeypatch):
    x, *conditions = make_inputs(model.config, (2, 2))
    other = plan_of((2, 2), (1, 1), "layer")
    denoiser = Denoiser(model, plan_of((2, 2), (1, 1), "block", fallbacks=(other,)), *conditions)

    def broken(*_):
        raise RuntimeError("a kernel is broken")

    monkeypatch.setattr("sat_sr.model.adaln.mlp", broken)
    with pytest.raises(RuntimeError, match="a kernel is broken"):
        denoiser(x, SIGMA)


def test_fallbacks_of_a_plan_are_ever_smaller(model):
    for mode in ("auto", "full", "ar", "ar2"):
        work = Workload(model.config, (512, 768), device="cuda", dtype=torch.bfloat16)
        plan = make_plan(work, mode=mode, block_batch=4)
        sizes = [p.device_bytes for p in (plan, *plan.fallbacks)]
        assert sizes == sorted(set(sizes), reverse=True) and len(sizes) > 1
        assert plan.offload == "none" and plan.fallbacks[-1].offload == "all"
        if mode != "auto":
            assert {p.schedule.order for p in plan.fallbacks} == {plan.schedule.order}


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler for CPUs")
def test_compiled_layers_share_their_graphs(make_model, make_inputs):
    """Two canvases, three layers, groups cut off at the end: one graph of the first norm, one of the norm and rotation
    of queries and keys, two of the second norm (another in the first layer); of the merging one for the blocks that
    have four neighbours in groups of two columns, one where the group's first column is the picture's."""
    from torch._dynamo.utils import counters

    model, before = make_model(), counters["stats"]["unique_graphs"]
    for grid in [(3, 2), (2, 4)]:
        x, *conditions = make_inputs(model.config, grid)
        plan = plan_of(grid, (2, 2), "layer")
        expected = Denoiser(model, plan, *conditions)(x, SIGMA)
        compiled = Denoiser(model, plan, *conditions, compiled=True)
        torch.testing.assert_close(compiled(x, SIGMA), expected, rtol=0, atol=5e-6)
    assert counters["stats"]["unique_graphs"] - before == 6
