"""What a run may take, and what a plan makes of it."""

from __future__ import annotations

import re

import pytest
import torch

from sat_sr.byte_sizes import parse_bytes
from sat_sr.config import InfDiTConfig
from sat_sr.inference import budget as budget_module
from sat_sr.inference.budget import PROGRAM_BYTES, Budget, measure_budget
from sat_sr.inference.job import make_job
from sat_sr.inference.planner import make_plan
from sat_sr.inference.workload import Workload

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
GIB = 1 << 30
OFFICIAL = InfDiTConfig()


@pytest.fixture
def machine(monkeypatch):
    """10 GiB are free on the host, and the program and 3 GiB more resident; 20 are free on the GPU, where PyTorch has
    taken 7 more, 4 of them for tensors."""
    monkeypatch.setattr(budget_module, "resident_bytes", lambda: PROGRAM_BYTES + 3 * GIB)
    monkeypatch.setattr(budget_module, "free_bytes", lambda device: (20 if device.type == "cuda" else 10) * GIB)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 7 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 4 * GIB)


def of_host(free: int) -> int:
    return PROGRAM_BYTES + int(free * 0.9)


def test_the_program_and_nine_tenths_of_what_is_free_and_of_what_is_ours(machine):
    assert measure_budget(CPU) == Budget(host=of_host(10 * GIB))
    assert measure_budget(CPU, held=GIB, on_host=2) == Budget(host=of_host(6 * GIB))
    assert measure_budget(CUDA, held=GIB) == Budget(host=of_host(10 * GIB), device=int(24 * GIB * 0.9))
    assert measure_budget(CUDA, held_on_host=GIB) == Budget(host=of_host(11 * GIB), device=int(23 * GIB * 0.9))
    assert measure_budget(CUDA, on_host=5, on_device=4) == Budget(of_host(2 * GIB), int(8 * GIB * 0.9))


def test_weights_that_are_not_read_yet_and_the_program_that_is_not_loaded_are_still_to_come(machine, monkeypatch):
    assert measure_budget(CPU, held=5 * GIB) == Budget(host=of_host(13 * GIB))  # 3 GiB of them are there
    monkeypatch.setattr(budget_module, "resident_bytes", lambda: PROGRAM_BYTES - GIB // 4)
    assert measure_budget(CPU) == Budget(host=of_host(10 * GIB - GIB // 4))
    monkeypatch.setattr(budget_module, "free_bytes", lambda device: GIB // 8)  # not even enough for the program
    assert measure_budget(CPU).host < PROGRAM_BYTES


def test_a_limit_is_that_of_the_device_or_where_it_has_no_memory_of_its_own_of_the_process(machine):
    assert measure_budget(CUDA, memory=GIB) == Budget(host=of_host(10 * GIB), device=GIB)
    assert measure_budget(CPU, memory=GIB) == Budget(host=GIB)
    Budget(host=PROGRAM_BYTES + 5, device=3).check_pictures(5, "16x16")
    Budget(host=PROGRAM_BYTES).check_pictures(5, "16x16")  # the plan is made for all together
    with pytest.raises(MemoryError, match=r"^16x16 needs about .* for the program and pictures alone, .* programs$"):
        Budget(host=PROGRAM_BYTES + 5, device=3).check_pictures(6, "16x16")


def test_the_least_that_is_named_is_enough_and_less_is_not():
    def refusal(memory):
        with pytest.raises(MemoryError) as error:
            make_job(InfDiTConfig.preset("mini"), (64, 64), scale=4, budget=Budget(memory))
        return re.search(
            r"needs about (.*), the program and pictures included, (.*) may be used: ask for", str(error.value)
        )

    least = parse_bytes(refusal(PROGRAM_BYTES)[1])
    assert PROGRAM_BYTES + 3 * 4 * 256**2 * 4 < least < PROGRAM_BYTES + GIB // 8
    make_job(InfDiTConfig.preset("mini"), (64, 64), scale=4, budget=Budget(least))
    refusal(least - GIB // 8192)  # more than what is shown is rounded by


@pytest.mark.parametrize("device", [CPU, CUDA])
@pytest.mark.parametrize("memory", [0, -1])
def test_no_memory_is_no_limit_that_can_be_kept(machine, device, memory):
    with pytest.raises(ValueError, match=rf"^memory={memory}: must be at least 1 byte; None is most of what is free$"):
        measure_budget(device, memory=memory)


def test_nothing_is_offloaded_into_memory_that_the_host_has_not():
    """4096 x 4096 on a card of 4.3 GiB: the fastest plan leaves the hidden state, 2.5 GiB, to the host."""
    work, budget = Workload(OFFICIAL, (4096, 4096), device="cuda", dtype=torch.bfloat16), int(4.3 * GIB)
    free = make_plan(work, budget=budget)
    assert free.offload == "state" and free.host_bytes > 3 * GIB
    tight = make_plan(work, budget=budget, host_budget=2 * GIB)
    assert tight.host_bytes <= 2 * GIB and tight.device_bytes <= 4.3 * GIB
    assert tight.fallbacks and all(plan.host_bytes <= 2 * GIB for plan in tight.fallbacks)
    message = r"needs about .* of the host's memory with its state there, 2\.0 GiB may be used: ask for a smaller size"
    with pytest.raises(MemoryError, match=message):
        make_plan(work, offload="state", budget=budget, host_budget=2 * GIB)


def test_a_job_hands_both_on():
    job = {"target": (4096, 4096), "device": "cuda", "dtype": torch.bfloat16}
    with pytest.raises(
        MemoryError, match=r"^4096x4096 needs about .* for the program and pictures alone, 512\.0 MiB may be used"
    ):
        make_job(OFFICIAL, (1024, 1024), **job, budget=Budget(host=GIB // 2, device=80 * GIB))
    with pytest.raises(
        MemoryError, match=r"mode auto needs about 3\d\d\.\d MiB, 256\.0 MiB may be used: raise --memory"
    ):
        make_job(OFFICIAL, (1024, 1024), **job, budget=Budget(host=80 * GIB, device=GIB // 4))
