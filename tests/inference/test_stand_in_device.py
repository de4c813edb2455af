"""Whole pictures on a stand-in for a GPU: nothing mixes tensors of host and device, and the CPU's picture comes out."""

from __future__ import annotations

import dataclasses
import weakref

import pytest
import torch

from sat_sr.config import InfDiTConfig
from sat_sr.inference import denoiser as denoiser_module
from sat_sr.inference.denoiser import Denoiser
from sat_sr.inference.memory import weight_bytes
from sat_sr.inference.planner import make_plan
from sat_sr.inference.transfer import Transfer
from sat_sr.inference.upscaler import Upscaler
from sat_sr.inference.workload import Workload
from sat_sr.model.counts import layer_parameter_count, parameter_count

CONFIG = InfDiTConfig(
    num_layers=3, hidden_size=32, num_attention_heads=2, image_block_size=32, image_size=64, vector_dim=0
)
SAMPLING = [
    {"sampler": "heun"},
    {"sampler": "dpmpp_2m", "color_fix": "backprojection", "detail": 1.5, "grid_shift": 14},
]


@pytest.fixture
def device(stand_in_device, monkeypatch, use_transfer):
    use_transfer(Transfer)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 33, 1 << 34))
    for counter in ("memory_reserved", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, counter, lambda device: 0)
    return stand_in_device


@pytest.mark.parametrize("kernel", ["merge", "sdpa"])
@pytest.mark.parametrize("offload", ["none", "state", "all"])
@pytest.mark.parametrize("mode", ["full", "ar2"])
def test_a_picture(make_model, device, mode, offload, kernel):
    image = torch.rand(1, 3, 40, 56, generator=torch.Generator().manual_seed(2)) * 2 - 1
    for sampling in SAMPLING:
        settings = {"seed": 5, "num_steps": 3, "sigma_max": 2.0, "mode": mode, **sampling}
        expected = Upscaler(make_model(CONFIG))(image, 3.3, kernel=kernel, **settings)
        with device:
            upscaler = Upscaler(make_model(CONFIG), device="cuda:0")
            picture = upscaler(image, 3.3, offload=offload, kernel=kernel, **settings)
            assert device.has(next(upscaler.model.parameters())) and not device.has(picture)
        # Linear and GELU are other calls there than on a CPU.
        torch.testing.assert_close(picture, expected, atol=1e-4, rtol=0)


def test_the_host_keeps_the_streamed_weights_from_picture_to_picture(make_model, device, use_transfer):
    """Until a plan wants them on the device, or somebody has moved them, what the host holds is what was predicted."""
    made = []

    class CountedTransfer(Transfer):
        def host_memory(self, shape, dtype):
            made.append(super().host_memory(shape, dtype))
            return made[-1]

    use_transfer(CountedTransfer)
    image = torch.rand(1, 3, 20, 24, generator=torch.Generator().manual_seed(2)) * 2 - 1
    settings = {"num_steps": 1, "sigma_max": 2.0, "mode": "ar2"}
    expected = Upscaler(make_model(CONFIG))(image, **settings)

    def picture(offload):
        """How many layers came into new memory."""
        made.clear()
        torch.testing.assert_close(upscaler(image, offload=offload, **settings), expected, atol=1e-4, rtol=0)
        layers = [memory for memory in made if memory.dim() == 1]  # the others are of the frontiers
        _, on_host = weight_bytes(Workload(CONFIG, (96, 96), device="cuda"), offload)
        held = upscaler.weights.held()
        assert held == {"held": 4 * parameter_count(CONFIG) - on_host, "held_on_host": on_host}
        return len(layers), sum(layer.nbytes for layer in layers)

    with device:
        upscaler = Upscaler(make_model(CONFIG), device="cuda:0")
        anew = CONFIG.num_layers, 4 * CONFIG.num_layers * layer_parameter_count(CONFIG)
        assert [picture("all") for _ in range(3)] == [anew, (0, 0), (0, 0)]
        assert [picture("none"), picture("all")] == [(0, 0), anew]
        upscaler.model.to("cuda:0")
        assert [picture("all"), picture("all")] == [anew, (0, 0)]

        with pytest.raises(ZeroDivisionError):
            upscaler(image, offload="all", callback=lambda *_: 1 / 0, **settings)
        assert picture("all") == (0, 0)
        kept = [weakref.ref(layer) for layer in upscaler.weights._host]
        upscaler.close()
    assert not any(layer() for layer in kept)


def test_a_network_call_in_half_precision_with_a_clip_embedding(make_model, make_inputs, device):
    config = dataclasses.replace(CONFIG, vector_dim=8)
    x, *conditions = make_inputs(config, (3, 2))
    plan = make_plan(Workload(config, tuple(x.shape[-2:]), device="cuda", dtype=torch.bfloat16))
    expected = Denoiser(make_model(config), dataclasses.replace(plan, device="cpu"), *conditions)(x, 1.7)
    with device:
        found = Denoiser(make_model(config).bfloat16(), plan, *conditions)(x, 1.7)
    assert float((found - expected).norm() / expected.norm()) < 3e-2


def test_pixels_are_looked_at_where_they_were_computed(make_model, make_inputs, device, monkeypatch):
    """For NaN and infinity: on the host that takes longer than everything else that is done with them there."""
    x, lr, lr_upsampled, _ = make_inputs(CONFIG, (2, 2))
    plan = make_plan(Workload(CONFIG, tuple(x.shape[-2:]), device="cuda"))
    looked, is_finite = [], denoiser_module._is_finite
    monkeypatch.setattr(denoiser_module, "_is_finite", lambda x: looked.append(device.has(x)) or is_finite(x))
    with device:
        Denoiser(make_model(CONFIG), plan, lr, lr_upsampled)(x, 1.7)
    assert looked and all(looked)
