"""What is said of a data worker that died."""

import shutil

import pytest
import torch

from sat_sr.data import workers

PYTORCH = "DataLoader worker (pid 5) is killed by signal: "


def test_a_full_shared_memory_is_told_from_memory_that_ran_out(monkeypatch, tmp_path):
    monkeypatch.setattr(workers, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2**26, 2**26, 0))
    error = RuntimeError(PYTORCH + "Bus error. It is possible that dataloader's workers are out of shared memory.")
    assert workers.is_of_dead_worker(error)
    said = workers.why_worker_died(error)
    for words in (f"{tmp_path}, the shared memory of 0.06 GiB", "--shm-size=8g", "--num-workers 0", "remount,size=8g"):
        assert words in said, said
    assert "memory ran out" not in said and "\n" not in said
    assert workers.why_worker_died(RuntimeError(PYTORCH + "Killed.")) == workers.WORKER_DIED


class Crowded(torch.utils.data.IterableDataset):
    def __iter__(self):
        raise RuntimeError(PYTORCH + "Bus error.")


def test_the_stream_says_so_too():
    with pytest.raises(ChildProcessError, match="shared memory"):
        next(workers.load_batches(Crowded(), 1, 0, list))
