"""Upscalers made from checkpoints: settings, precision, the CLIP tower."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from tiny_upscaler import CONFIG, QUICK, SETTINGS, bicubic, tensor_picture

from sat_sr.checkpoint import save_safetensors
from sat_sr.config import InfDiTConfig
from sat_sr.diffusion.edm import denoise
from sat_sr.inference.noise import position_noise
from sat_sr.inference.upscaler import Upscaler, default_settings
from sat_sr.sampling import SamplingSettings


@pytest.fixture(scope="module")
def checkpoint(tiny_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    defaults = {"name": "euler", "num_steps": 2, "sigma_max": 2.0, "fast": {"num_steps": 1, "sigma_max": 0.5}}
    save_safetensors(path, tiny_model.state_dict(), CONFIG, sampler_defaults=defaults)
    return path


def test_from_checkpoint(checkpoint, upscaler):
    loaded = Upscaler.from_checkpoint(str(checkpoint), device="cpu")
    assert loaded.defaults == SETTINGS and loaded.fast == SETTINGS.replace(num_steps=1, sigma_max=0.5)
    assert loaded.model.dtype is torch.float32 and loaded.clip is None
    image = tensor_picture()
    assert torch.equal(loaded(image), upscaler(image))
    assert torch.equal(loaded(image, **loaded.fast.to_dict()), upscaler(image, **QUICK))
    # Weights stay on the host until a plan wants them elsewhere.
    waiting = Upscaler.from_checkpoint(checkpoint, device="meta")
    assert waiting.device.type == "meta" and {p.device.type for p in waiting.model.parameters()} == {"cpu"}
    assert Upscaler.from_checkpoint(checkpoint, device="cpu", dtype=torch.bfloat16).model.dtype is torch.bfloat16


def test_a_checkpoint_without_settings_is_sampled_as_the_release_does(tiny_model, tmp_path):
    path = tmp_path / "plain.safetensors"
    save_safetensors(path, tiny_model.state_dict(), CONFIG)
    loaded = Upscaler.from_checkpoint(path, device="cpu")
    assert loaded.defaults == SamplingSettings() and loaded.fast is None
    from sat_sr.checkpoint import load

    with pytest.raises(ValueError, match=r"plain\.safetensors has no fast preset"):
        default_settings(load(path), fast=True)


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.pt: no such checkpoint"):
        Upscaler.from_checkpoint(tmp_path / "nothing.pt")


# --- CLIP


@pytest.fixture(scope="module")
def tower(golden_dir):
    """The small recorded tower, in OpenCLIP's names: embeddings of 24 numbers."""
    prefix = "weights.image_encoder.model."
    tensors = load_file(golden_dir / "clip_image_encoder.safetensors")
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


@pytest.fixture(scope="module")
def clip_model(make_model):
    return make_model(InfDiTConfig(**(CONFIG.to_dict() | {"vector_dim": 24})))


def test_clip_embedding_of_the_lr_condition_reaches_the_network(clip_model, tower):
    from sat_sr.model.clip import CLIPImageEncoder

    encoder = CLIPImageEncoder.from_openclip(tower, head_width=16)
    upscaler = Upscaler(clip_model, clip=encoder, defaults=SETTINGS)
    image = tensor_picture(8, 12)
    output = upscaler(image, 4, num_steps=1)
    up = bicubic(image, (32, 48))
    x = up + 2.0 * position_noise(0, (32, 48))
    with torch.no_grad():
        expected, other = (
            denoise(clip_model, x, torch.tensor([2.0]), image, up, encoder(seen)).clamp(-1, 1)
            for seen in (image, -image)
        )
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)
    assert (output - other).abs().max() > 1e-2


def test_a_checkpoint_brings_its_tower(clip_model, tower, tmp_path):
    path = tmp_path / "with_clip.safetensors"
    save_safetensors(path, clip_model.state_dict(), clip_model.config, clip=tower)
    loaded = Upscaler.from_checkpoint(path, device="cpu")
    assert loaded.clip.embedding_dim == 24
    assert loaded(tensor_picture(batch=2), 1, num_steps=1).shape == (2, 3, 7, 9)


def test_a_model_and_its_encoder_belong_together(tiny_model, clip_model):
    with pytest.raises(ValueError, match="the model has vector_dim 24 and needs a CLIP image encoder"):
        Upscaler(clip_model)
    with pytest.raises(ValueError, match="the model has vector_dim 0 and takes no CLIP image encoder"):
        Upscaler(tiny_model, clip=torch.nn.Identity())
