"""The CLIP tower against transformers' own reading of the same weights; its numbers: `test_golden.py`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import CLIPVisionModelWithProjection

from sat_sr.model.clip import CLIPImageEncoder, preprocess

GOLDEN = Path(__file__).parents[1] / "golden" / "clip_image_encoder.safetensors"
PREFIX = "weights.image_encoder.model."


@pytest.fixture(scope="module")
def golden():
    with safe_open(GOLDEN, "pt") as file:
        return json.loads(file.metadata()["case"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.fixture
def openclip(golden):
    return {name.removeprefix(PREFIX): tensor for name, tensor in golden[1].items() if name.startswith(PREFIX)}


@pytest.fixture
def encoder(golden, openclip):
    return CLIPImageEncoder.from_openclip(openclip, head_width=golden[0]["head_width"])


def test_sizes_follow_from_the_shapes(golden, encoder):
    case, _ = golden
    config = encoder.tower.config
    assert (encoder.image_size, encoder.embedding_dim) == (case["image_size"], case["embed_dim"])
    assert (config.num_hidden_layers, config.hidden_size, config.patch_size) == (2, case["width"], case["patch_size"])
    assert config.num_attention_heads == case["width"] // case["head_width"]


def test_prefixed_names_and_transformers_names_give_the_same_tower(golden, encoder, tmp_path):
    case, tensors = golden
    image = tensors["image_1"]
    prefixed = {n.removeprefix("weights."): t for n, t in tensors.items() if n.startswith(PREFIX)}
    same = CLIPImageEncoder.from_openclip(prefixed, head_width=case["head_width"])
    assert torch.equal(same(image), encoder(image))

    encoder.tower.save_pretrained(tmp_path)  # the library writes and reads it, we read it, too
    theirs = CLIPImageEncoder(CLIPVisionModelWithProjection.from_pretrained(tmp_path))
    ours = CLIPImageEncoder.from_transformers(encoder.tower.state_dict(), head_width=case["head_width"])
    torch.testing.assert_close(theirs(image), ours(image), rtol=0, atol=1e-6)
    torch.testing.assert_close(ours(image), encoder(image), rtol=0, atol=1e-6)


def test_the_tower_is_frozen_and_half_precision_returns_float32(encoder):
    assert not any(p.requires_grad for p in encoder.parameters())
    image = torch.rand(2, 3, 20, 30) * 2 - 1
    exact, rough = encoder(image), encoder.to(torch.bfloat16)(image)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough.norm(dim=-1), torch.ones(2))
    assert (exact * rough).sum(-1).min() > 0.99


def test_the_convolution_may_not_round_to_tf32(encoder):
    """As cuDNN would on CUDA; what was used before is used again."""
    cudnn, used = torch.backends.cudnn, []
    convolution = encoder.tower.vision_model.embeddings.patch_embedding
    convolution.register_forward_hook(lambda *_: used.append(cudnn.enabled))
    assert cudnn.enabled  # PyTorch's default
    encoder(torch.rand(1, 3, 20, 30))
    assert used == [False] and cudnn.enabled


@pytest.mark.parametrize("size", [(37, 91), (300, 250), (7, 7)])
def test_preprocess_is_the_plain_recipe(size):
    image = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    h, w = size
    resized = (int(32 * h / min(size)), int(32 * w / min(size)))
    plain = torch.nn.functional.interpolate((image + 1) / 2, resized, mode="bicubic", antialias=True)
    top, left = (round((side - 32) / 2) for side in resized)
    plain = plain[..., top : top + 32, left : left + 32]
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    torch.testing.assert_close(preprocess(image, 32), (plain - mean) / std, rtol=0, atol=5e-6)


def test_a_very_long_strip_is_cropped_before_it_is_blown_up():
    # The plain recipe would make 224 × 6,720,000 pixels of it, 18 GB.
    strip = torch.linspace(-1, 1, 30_000).expand(1, 3, 1, -1)
    pixels = preprocess(strip)
    assert pixels.shape == (1, 3, 224, 224)
    middle = (0.5 - 0.48145466) / 0.26862954
    torch.testing.assert_close(pixels[0, 0], torch.full((224, 224), middle), rtol=0, atol=1e-3)


def test_wrong_weights_are_named(openclip):
    short = {n: t for n, t in openclip.items() if n != "visual.transformer.resblocks.1.attn.out_proj.bias"}
    with pytest.raises(ValueError, match=r"1 missing: vision_model\.encoder\.layers\.1\.self_attn\.out_proj\.bias"):
        CLIPImageEncoder.from_openclip(short)
    with pytest.raises(ValueError, match=r"1 unexpected: vision_model\.attnpool"):
        CLIPImageEncoder.from_openclip(openclip | {"visual.attnpool": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"patch_embedding\.weight"):
        CLIPImageEncoder.from_openclip({"text_projection": torch.zeros(2, 2)})
    with pytest.raises(ValueError, match="head_width=48: must divide the tower's width, 64"):
        CLIPImageEncoder.from_openclip(openclip, head_width=48)
