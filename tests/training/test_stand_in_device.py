"""Training's own computing on a stand-in for a GPU: host and device never mix, and the CPU's numbers come out."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from sat_sr.config import InfDiTConfig
from sat_sr.data import degradation
from sat_sr.data.conditions import make_conditions
from sat_sr.data.degradation_law import parse_degradation
from sat_sr.data.jpeg import jpeg_tensor
from sat_sr.diffusion.edm import edm_loss
from sat_sr.training import validation
from sat_sr.training.error_norm import ErrorNorm
from sat_sr.training.noise import TrainingNoise

CONFIG = InfDiTConfig(
    num_layers=2, hidden_size=32, num_attention_heads=2, image_block_size=16, image_size=64, vector_dim=8
)


class DeviceGenerator(torch.Generator):
    """Draws on the CPU, and says that it is the device's."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls, "cpu")

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", 0)


def pictures(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(3)) * 2 - 1


@pytest.mark.parametrize("mixture", ["strong", "clean", "mild:0.5,clean:0.5"])
def test_a_batch_is_degraded(stand_in_device, monkeypatch, mixture):
    monkeypatch.setattr(degradation, "jpeg", jpeg_tensor)  # on the CPU it is libjpeg that does it
    target, law = pictures(4, 3, 64, 64), parse_degradation(mixture)
    expected = make_conditions(target, law, torch.Generator().manual_seed(7), lr_dropout=0.3)
    with stand_in_device:
        found = make_conditions(target.to("cuda"), law, DeviceGenerator().manual_seed(7), lr_dropout=0.3)
        assert all(map(stand_in_device.has, found))
        found = [tensor.cpu() for tensor in found]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("stratified", [True, False])
def test_a_loss_and_its_gradients(make_model, stand_in_device, monkeypatch, stratified):
    norm = ErrorNorm(CONFIG.patch_size, gradient_weight=0.5, seam_weight=2.0)
    batch = {
        "target": pictures(2, 3, 32, 32), "lr": pictures(2, 3, 8, 8), "lr_upsampled": pictures(2, 3, 32, 32),
        "clip_embedding": pictures(2, 8),
    }  # fmt: skip

    def learn(device):
        model = make_model(CONFIG).requires_grad_(True).to(device)
        noise = TrainingNoise(5, 0, torch.device(device), -1.0, 1.4, stratified)
        noise.start_step(3)
        inputs = {name: tensor.to(device) for name, tensor in batch.items()}
        offset = noise.position_offset(CONFIG)
        drawn = noise.noise(inputs["target"].shape), noise.sigmas(2)
        loss = edm_loss(model, noise=drawn[0], sigma=drawn[1], position_offset=offset, norm=norm, **inputs)
        loss.mean().backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        return loss.detach().cpu(), {name: gradient.cpu() for name, gradient in gradients.items()}

    loss, gradients = learn("cpu")
    monkeypatch.setattr(torch, "Generator", DeviceGenerator)
    with stand_in_device:
        found_loss, found_gradients = learn("cuda:0")
    torch.testing.assert_close(found_loss, loss, atol=0, rtol=1e-4)
    assert found_gradients.keys() == gradients.keys() and len(gradients) > 20
    scale = max(gradient.abs().max().item() for gradient in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(found_gradients[name], gradient, atol=1e-4 * scale, rtol=1e-3, msg=name)


def test_a_validation_of_batches_on_the_host(make_model, stand_in_device, monkeypatch):
    monkeypatch.setattr(validation.dist, "all_reduce", lambda numbers, op=None: None)  # alone
    config = dataclasses.replace(CONFIG, vector_dim=0)
    sizes = {"target": 32, "lr": 8, "lr_upsampled": 32}
    batches = [{name: pictures(2, 3, side, side) for name, side in sizes.items()} for _ in range(3)]

    def run(device):
        return validation.validate(make_model(config).to(device), batches, steps=2, seed=1, device=torch.device(device))

    expected = run("cpu")
    monkeypatch.setattr(torch, "Generator", DeviceGenerator)
    with stand_in_device:
        found = run("cuda:0")
        assert not any(stand_in_device.has(tensor) for batch in batches for tensor in batch.values())
        assert not stand_in_device.has(found.grid)
    assert found.by_sigma == pytest.approx(expected.by_sigma, rel=1e-4)
    assert found.psnr == pytest.approx(expected.psnr, abs=1e-3)
    assert (found.grid.int() - expected.grid.int()).abs().max() <= 1
