"""What is asked of devices that no test machine has."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sat_sr.config import InfDiTConfig
from sat_sr.inference.budget import Budget
from sat_sr.inference.devices import default_dtype, resolve_device, share_cores
from sat_sr.inference.job import make_job
from sat_sr.inference.upscaler import Upscaler
from sat_sr.sampling import SamplingSettings


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_auto_is_cuda_else_mps_else_the_cpu(monkeypatch, cuda, mps, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert resolve_device("auto") == torch.device(expected)


def test_a_device_beyond_the_last_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cuda:1") == torch.device("cuda:1") and resolve_device("cuda") == torch.device("cuda")
    with pytest.raises(ValueError, match=r"device 'cuda:2' is not available on this machine: it has cuda:0 to cuda:1$"):
        resolve_device("cuda:2")


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), torch.float32), ((8, 0), torch.bfloat16)])
def test_a_gpu_without_bfloat16_computes_in_float32(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert default_dtype(torch.device("cuda")) == expected
    assert default_dtype(torch.device("cpu")) == torch.float32


@pytest.mark.parametrize("mode", ["auto", "full", "ar2", "ar"])
def test_a_picture_is_planned_for_mps(mode):
    job = make_job(InfDiTConfig.preset("mini"), (64, 96), scale=4, mode=mode, device="mps", budget=Budget(4 << 30))
    assert job.plan.device == "mps" and job.plan.kernel == "sdpa"


class NoDouble(TorchDispatchMode):
    """MPS has no float64: no operation may give one."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        double = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor) and t.dtype == torch.float64]
        assert not double, f"{function} gave float64"
        return result


@pytest.mark.parametrize("mode", ["full", "ar"])
def test_network_calls_need_no_float64(make_model, monkeypatch, mode):
    from sat_sr.inference.denoiser import Denoiser

    config = InfDiTConfig(
        num_layers=2, hidden_size=32, num_attention_heads=2, image_block_size=16, image_size=64, vector_dim=0
    )
    original, calls = Denoiser.__call__, []

    def watched(self, x, sigma):
        calls.append(sigma)
        with NoDouble():
            return original(self, x, sigma)

    monkeypatch.setattr(Denoiser, "__call__", watched)
    upscaler = Upscaler(make_model(config), defaults=SamplingSettings(sampler="euler", num_steps=2))
    assert upscaler(torch.zeros(3, 7, 9), 4, mode=mode).isfinite().all()
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("processes", "cores", "environment", "threads"),
    [
        (1, 8, {}, []), (2, 8, {}, [4]), (16, 8, {}, [1]), (2, 8, {"OMP_NUM_THREADS": "8"}, []),
        (2, 8, {"OMP_NUM_THREADS": "1"}, []), (2, 8, {"OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "none"}, [4]),
        (4, 8, {"SLURM_CPUS_ON_NODE": "8"}, [2]), (4, 2, {"SLURM_CPUS_ON_NODE": "8"}, [2]),  # bound to its two
    ],
)  # fmt: skip
def test_processes_share_the_cores(monkeypatch, processes, cores, environment, threads):
    chosen = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(cores), raising=False)
    for name in ("OMP_NUM_THREADS", "TORCHELASTIC_RUN_ID", "SLURM_CPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    share_cores(processes)
    assert chosen == threads
