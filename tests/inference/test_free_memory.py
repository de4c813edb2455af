"""What a container or a Slurm job leaves of the host's memory, from trees of files like those of Linux."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

from sat_sr.inference import free_memory
from sat_sr.inference.budget import free_bytes

MIB = 1 << 20
AVAILABLE = 10000 * MIB
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
V2 = ("memory.max", "memory.current", "")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """group(folder, names, limit, use, cache) makes a control group; belong(lines) says in which this process is."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=AVAILABLE))

    def group(folder, names, limit, use, cache=0):
        path = tmp_path / "sys/fs/cgroup" / folder
        path.mkdir(parents=True, exist_ok=True)
        (path / names[0]).write_text(f"{limit if isinstance(limit, str) else limit * MIB}\n")
        (path / names[1]).write_text(f"{use * MIB}\n")
        # Version 1 tells the group's own cache, too, which is not all that counts against its limit.
        parts = {"inactive_file": 7, "active_file": 7} if names is V1 else {}
        parts |= {f"{names[2]}inactive_file": cache * MIB // 4, f"{names[2]}active_file": cache * MIB * 3 // 4}
        (path / "memory.stat").write_text("".join(f"{name} {value}\n" for name, value in parts.items()))

    def belong(*lines):
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text("".join(f"{line}\n" for line in lines))

    return SimpleNamespace(
        group=group, belong=belong, left=lambda: free_memory.free_host_bytes(tmp_path) // MIB, root=tmp_path
    )


def test_without_limits_it_is_what_the_machine_has(machine):
    assert machine.left() == 10000  # no /proc at all
    machine.belong("0::/job")
    machine.group("job", V2, "max", 900)
    (machine.root / "sys/fs/cgroup/memory").mkdir()
    assert machine.left() == 10000


def test_version_2_the_least_of_a_group_and_those_above(machine):
    machine.belong("0::/slice/job/step")
    machine.group("slice", V2, 4000, 1000)
    machine.group("slice/job", V2, 2000, 900, cache=300)
    machine.group("slice/job/step", V2, "max", 800)
    assert machine.left() == 2000 - 900 + 300
    machine.group("slice", V2, 4000, 3000)
    assert machine.left() == 1000
    machine.group("slice/job/step", V2, 500, 800)  # lowered since: nothing is left, not less
    assert machine.left() == 0
    machine.group("slice/other", V2, 1, 1)  # not ours
    assert machine.left() == 0


def test_version_1_beside_an_empty_version_2(machine):
    machine.belong("4:cpu,cpuacct:/elsewhere", "3:memory:/slurm/job_1", "0::/")
    machine.group("memory", V1, str(0x7FFFFFFFFFFFF000), 9000)
    machine.group("memory/slurm/job_1", V1, 1024, 100, cache=50)
    machine.group("memory/elsewhere", V1, 1, 1)
    assert machine.left() == 1024 - 100 + 50


def test_a_container_whose_group_is_named_as_on_the_machine(machine):
    machine.belong("3:memory:/docker/0123")
    machine.group("memory", V1, 1024, 24)
    assert machine.left() == 1000
    (machine.root / "proc/self/cgroup").write_text("0::/../../docker/0123\n")
    machine.group(".", V2, 512, 12)
    assert machine.left() == 500


def test_what_cannot_be_read_is_no_limit(machine):
    machine.belong("0::/job")
    machine.group("job", V2, "a lot", 10)
    assert machine.left() == 10000
    (machine.root / "sys/fs/cgroup/job/memory.max").unlink()
    assert machine.left() == 10000


def test_the_budget_asks_here(monkeypatch):
    monkeypatch.setattr(free_memory, "_left_by_limits", lambda root: [7])
    assert free_bytes(torch.device("cpu")) == 7


def test_pages_of_mapped_files_are_not_taken_but_free(tmp_path):
    """So are the weights of a file that has the network's type: they would be counted twice."""
    np.ones(64 * MIB, np.uint8).tofile(tmp_path / "weights")
    before = free_memory.resident_bytes()
    mapped = np.memmap(tmp_path / "weights", np.uint8, "c")
    assert mapped.sum(dtype=np.int64) == 64 * MIB  # all of it is resident now
    assert free_memory.resident_bytes() - before < 8 * MIB
    copied = mapped.copy()
    assert free_memory.resident_bytes() - before > 56 * MIB and len(copied) == len(mapped)
