"""State and weights on the host: the same numbers as on the device, however late the copies run, in bounded memory.

There are no copies beside the computation on a CPU. Stand-ins take both extremes of what an accelerator may do: a copy
is done as soon as it is started, or only when somebody waits for it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import mmap
import types
from collections import deque

import pytest
import torch

from sat_sr.config import InfDiTConfig
from sat_sr.inference.denoiser import Denoiser
from sat_sr.inference.fetch_ahead import FetchAhead
from sat_sr.inference.host_pages import page_memory
from sat_sr.inference.memory import weight_bytes
from sat_sr.inference.planner import Plan, make_plan
from sat_sr.inference.schedule import Schedule
from sat_sr.inference.transfer import Transfer, _unlock
from sat_sr.inference.workload import Workload
from sat_sr.model import adaln
from sat_sr.model.counts import layer_parameter_count, parameter_count

SIGMA = 1.7
SMALL = InfDiTConfig(
    num_layers=3, hidden_size=16, num_attention_heads=2, image_block_size=8, image_size=64, vector_dim=8
)


class EarlyTransfer(Transfer):
    """Copies at once; knows which memory stands for the host."""

    def __init__(self):
        super().__init__()
        self.storages, self.copies = [], 0

    def host_memory(self, shape, dtype):
        memory = torch.full(shape, float("nan"), dtype=dtype)  # reading what was never stored would show
        self.storages.append(memory.untyped_storage())
        return memory

    def is_host(self, tensor):
        return any(tensor.untyped_storage()._cdata == storage._cdata for storage in self.storages)

    def copy(self, destination, source, after=None):
        assert destination.is_contiguous() and source.is_contiguous()
        assert self.is_host(destination) != self.is_host(source)
        self.copies += 1
        return super().copy(destination, source, after)


class LateTransfer(EarlyTransfer):
    """Copies of a direction run in order, but not before somebody waits; only then is the source looked at."""

    in_flight = 1

    def __init__(self):
        super().__init__()
        self.queues, self.pictures = {True: deque(), False: deque()}, deque()

    def to_host(self, picture):
        place = torch.full_like(picture, float("nan"))
        copy = LateCopy(self.pictures, place, picture, None)
        self.pictures.append(copy)
        assert len(self.pictures) <= 4, "one, and whether it is finite, are on their way while the next is computed"
        return place, copy

    def copy(self, destination, source, after=None):
        assert self.is_host(destination) != self.is_host(source)
        self.copies += 1
        copy = LateCopy(self.queues[self.is_host(destination)], destination, source, after)
        copy.queue.append(copy)
        return copy


class LateCopy:
    def __init__(self, queue, destination, source, after):
        self.queue, self.destination, self.source, self.after = queue, destination, source, after

    def wait(self):
        while self in self.queue:
            first = self.queue.popleft()
            if first.after:
                first.after.wait()
            first.destination.copy_(first.source)
            first.destination = first.source = first.after = None

    synchronize = wait


@pytest.fixture(params=[EarlyTransfer, LateTransfer])
def transfer(request, use_transfer):
    made = request.param()
    use_transfer(lambda device: made)
    return made


def plan_of(grid, group, order, offload) -> Plan:
    return Plan(Schedule(grid, group, order), "merge", "cpu", offload, 0, 0)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("order", ["layer", "block"])
@pytest.mark.parametrize("offload", ["state", "all"])
def test_the_same_bits_as_on_the_device(make_model, make_inputs, transfer, order, offload, layers):
    config = dataclasses.replace(SMALL, num_layers=layers)
    model = make_model(config)
    for grid in [(1, 1), (1, 4), (5, 3)]:
        x, *conditions = make_inputs(config, grid)
        for group in [(1, 1), (2, 2)]:
            expected = Denoiser(model, plan_of(grid, group, order, "none"), *conditions)(x, SIGMA)
            streamed = Denoiser(model, plan_of(grid, group, order, offload), *conditions)
            for _ in range(2):
                assert torch.equal(streamed(x, SIGMA), expected), (grid, group)
    # The only layer of a network in layer-major takes its groups from the pixels and gives them back.
    assert (transfer.copies == 0) == (layers == 1 and order == "layer" and offload == "state")


def test_state_is_copied_between_layers_alone(make_model, make_inputs, transfer):
    """Layer-major: what the first layer works on comes from the pixels, and the last layer's goes there. The group that
    comes in ahead of the next one is not asked for again."""
    x, *conditions = make_inputs(SMALL, (4, 3))
    denoiser = Denoiser(make_model(SMALL), plan_of((4, 3), (2, 2), "layer", "state"), *conditions)
    groups = denoiser.plan.schedule.num_groups
    for _ in range(2):
        transfer.copies = 0
        denoiser(x, SIGMA)
        moved = (SMALL.num_layers - 1) * groups
        assert transfer.copies == moved + moved + 1  # in and out; and one that comes in ahead, after the last


@pytest.mark.parametrize("order", ["layer", "block"])
def test_device_memory_does_not_grow_with_the_canvas(make_model, make_inputs, live_bytes, use_transfer, order):
    """The device has one group of the state in use, one arriving, one leaving; and layer-major a line of one layer."""
    model = make_model(SMALL)

    def peak(grid, offload):
        class CountedTransfer(LateTransfer):
            def host_memory(self, shape, dtype):
                memory = super().host_memory(shape, dtype)
                live.forget(memory.untyped_storage())
                return memory

        use_transfer(lambda device: CountedTransfer())
        x, *conditions = make_inputs(SMALL, grid)
        with live_bytes() as live:
            denoised = Denoiser(model, plan_of(grid, (1, 1), order, offload), *conditions)(x, SIGMA)
        return live.peak - denoised.nbytes

    model.rotary(range(5), range(4))  # its table is kept from call to call
    block = SMALL.tokens_per_block * SMALL.hidden_size * 4
    small, long, wide = (peak(grid, "state") for grid in ((2, 2), (5, 2), (4, 4)))
    assert long == small
    assert wide == small + (2 * 2 * block if order == "layer" else 0)  # K and V of two more blocks in the line
    assert peak((4, 4), "none") > peak((2, 2), "none")


def test_device_has_two_layers_of_weights(make_model, make_inputs, transfer):
    config = dataclasses.replace(SMALL, num_layers=5)
    model = make_model(config)
    x, *conditions = make_inputs(config, (2, 2))
    before = {name: p.clone() for name, p in model.named_parameters()}
    denoiser = Denoiser(model, plan_of((2, 2), (1, 1), "layer", "all"), *conditions)
    seen = set()

    def on_progress(done, total):
        on_host = sum(transfer.is_host(p) * p.numel() for p in model.parameters())
        assert on_host == (config.num_layers - 1) * layer_parameter_count(config)
        seen.add(on_host)

    denoiser.on_progress = on_progress
    denoiser(x, SIGMA)
    assert seen
    resident = parameter_count(config) - config.num_layers * layer_parameter_count(config)
    layer = 4 * layer_parameter_count(config)
    assert weight_bytes(Workload(config, (16, 16)), "all") == (4 * resident + 2 * layer, config.num_layers * layer)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("order", ["layer", "block"])
def test_weights_that_are_streamed_never_fill_the_device(make_model, make_inputs, live_bytes, use_transfer, order):
    """From the first moment, when the weights still lie on the host: two layers of them, whatever the depth."""
    peaks = {}
    for layers in (3, 6):
        config = dataclasses.replace(SMALL, num_layers=layers)
        x, *conditions = make_inputs(config, (2, 2))
        for offload in ("state", "all"):

            class CountedTransfer(LateTransfer):
                def host_memory(self, shape, dtype):
                    memory = super().host_memory(shape, dtype)
                    live.forget(memory.untyped_storage())
                    return memory

            use_transfer(lambda device, made=CountedTransfer: made())
            model = make_model(config)
            with live_bytes() as live:
                Denoiser(model, plan_of((2, 2), (1, 1), order, offload), *conditions)(x, SIGMA)
            peaks[layers, offload] = live.peak
    two_layers = 2 * 4 * layer_parameter_count(SMALL)
    modulations = 3 * 4 * SMALL.hidden_size * 4 if order == "block" else 0  # a shift and a scale of each layer are kept
    assert peaks[3, "all"] - peaks[3, "state"] == two_layers
    assert peaks[6, "all"] - peaks[3, "all"] == peaks[6, "state"] - peaks[3, "state"] == modulations


@pytest.mark.parametrize("order", ["layer", "block"])
def test_what_ran_out_is_given_back_at_once(make_model, make_inputs, live_bytes, monkeypatch, use_transfer, order):
    """In the middle of a call with everything streamed: before the smaller plan takes anything, nothing is left on the
    device but what was there before the call, and no garbage collector was needed for that."""

    class CountedTransfer(EarlyTransfer):
        def host_memory(self, shape, dtype):
            memory = super().host_memory(shape, dtype)
            live.forget(memory.untyped_storage())
            return memory

    held, pieces, step_down, compute = [], 5, Denoiser._step_down, adaln.mlp

    def watched(self, reason):
        step_down(self, reason)
        held.append(live.now)

    def runs_out(*arguments):
        nonlocal pieces
        pieces -= 1
        if pieces == 0:
            held.append(live.now)
            raise torch.OutOfMemoryError("out of memory")
        return compute(*arguments)

    use_transfer(lambda device: CountedTransfer())
    monkeypatch.setattr(Denoiser, "_step_down", watched)
    monkeypatch.setattr(adaln, "mlp", runs_out)
    model = make_model(SMALL)
    x, *conditions = make_inputs(SMALL, (3, 3))
    large, small = plan_of((3, 3), (2, 2), order, "all"), plan_of((3, 3), (1, 1), order, "all")
    model.rotary(range(3), range(3))  # its table is kept from call to call
    gc.disable()
    try:
        with live_bytes() as live:
            denoiser = Denoiser(model, dataclasses.replace(large, fallbacks=(small,)), *conditions)
            before = live.now
            denoiser(x, SIGMA)
    finally:
        gc.enable()
    assert denoiser.plan == small
    failed, given_back = held
    assert failed > before + 2 * 4 * layer_parameter_count(SMALL)
    assert given_back == before


def test_memory_that_is_locked_shares_its_pages_with_nothing():
    pieces = [page_memory(shape, torch.bfloat16) for shape in ((3, 5), (1,), (2, 3000))]
    pages = [range(p.data_ptr() // mmap.PAGESIZE, (p.data_ptr() + p.nbytes - 1) // mmap.PAGESIZE + 1) for p in pieces]
    assert all(p.data_ptr() % mmap.PAGESIZE == 0 and p.is_contiguous() for p in pieces)
    assert len({page for range_ in pages for page in range_}) == sum(map(len, pages))
    assert pieces[0].fill_(1).sum() == 15


def test_memory_is_unlocked_by_the_device_it_was_locked_for(monkeypatch):
    """Whatever device is the current one: another would be made ready for use."""
    memory, current, done = torch.zeros(3), [torch.device("cuda", 0)], []

    @contextlib.contextmanager
    def device(chosen):
        current.append(chosen)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: done.append(("synchronize", current[-1])))
    cudart = types.SimpleNamespace(cudaHostUnregister=lambda pointer: done.append((pointer, current[-1])))
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cudart)
    second = torch.device("cuda", 1)
    _unlock(locked := [memory], second)
    assert done == [("synchronize", second), (memory.data_ptr(), second)] and not locked


def test_weights_come_back_and_can_be_trained(make_model, make_inputs, transfer):
    model = make_model(SMALL)
    x, *conditions = make_inputs(SMALL, (2, 2))
    expected = Denoiser(model, plan_of((2, 2), (1, 1), "layer", "none"), *conditions)(x, SIGMA)
    Denoiser(model, plan_of((2, 2), (1, 1), "layer", "all"), *conditions)(x, SIGMA)
    assert torch.equal(Denoiser(model, plan_of((2, 2), (1, 1), "layer", "none"), *conditions)(x, SIGMA), expected)
    assert not any(p.is_inference() for p in model.parameters())


def test_fetch_ahead_never_fills_the_buffer_in_use():
    """Things 0..6 in an order with a surprise and a change: each arrives as it is on the host at that time."""
    host = [torch.full((i + 1,), float(i)) for i in range(7)]
    transfer, filled = Transfer(), []

    def fetch(key, buffer):
        filled.append((key, buffer.data_ptr()))
        place = buffer[: len(host[key])]
        return place, transfer.copy(place, host[key])

    ahead = FetchAhead(7, device=torch.device("cpu"), dtype=torch.float32)
    for key, following in [(0, 1), (1, 2), (2, 3), (5, 6), (6, None), (0, None)]:
        taken = ahead.take(key, following, fetch)
        assert taken.tolist() == [float(key)] * (key + 1)
        assert all(pointer != taken.data_ptr() for k, pointer in filled[-1:] if k == following)
    assert [key for key, _ in filled] == [0, 1, 2, 3, 5, 6, 0]

    ahead.take(1, 2, fetch)
    host[2] += 10
    ahead.forget(2)
    assert ahead.take(2, None, fetch).tolist() == [12.0] * 3


def test_offload_is_chosen_as_memory_gets_short():
    """4096 x 4096 in bfloat16 on a GPU: the fastest plan that fits, and none that does not."""
    canvas = {"config": InfDiTConfig(), "canvas": (4096, 4096)}

    def plan(budget, **choices):
        return make_plan(Workload(**canvas, device="cuda", dtype=torch.bfloat16), budget=budget, **choices)

    gib = 2**30
    assert plan(None).offload == plan(int(5.5 * gib)).offload == "none"
    assert plan(3 * gib).offload == "state"
    assert plan(int(1.5 * gib)).offload == "all"
    for budget in (gib // 2, gib, 2 * gib, 3 * gib, 4 * gib):
        assert plan(budget).device_bytes <= budget
    assert plan(None, offload="all").offload == "all"
    assert plan(None, offload="none", mode="full").fallbacks[-1].offload == "none"
    with pytest.raises(MemoryError, match="mode auto needs about"):
        plan(2 * gib, offload="none")
    with pytest.raises(MemoryError, match="mode ar2 needs about"):
        plan(gib // 4, mode="ar2", block_batch=8)
    with pytest.raises(ValueError, match="unknown offload 'disk': choose one of auto, none, state, all"):
        plan(None, offload="disk")
    with pytest.raises(ValueError, match="needs a CUDA device: cpu shares the host's memory"):
        make_plan(Workload(**canvas), offload="state")
