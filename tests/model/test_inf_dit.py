"""The network at its beginning: the initialisation of the training recipe, and the inputs that it refuses.

What it computes is decided by the recorded numbers in tests/test_golden.py.
"""

from __future__ import annotations

import math

import pytest
import torch
from einops import rearrange
from torch.nn.functional import layer_norm

from sat_sr.config import InfDiTConfig

CONFIG = InfDiTConfig(
    num_layers=3, hidden_size=64, num_attention_heads=4, image_block_size=16, image_size=64, vector_dim=24
)


@pytest.fixture(scope="module")
def model():
    from sat_sr.model.inf_dit import InfDiT

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return InfDiT(CONFIG)


@pytest.fixture(scope="module")
def parameters(model):
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def assert_normal(tensor, std):
    """Mean and variance within 5 standard errors, and a tail like a normal's."""
    n = tensor.numel()
    assert tensor.mean().item() == pytest.approx(0, abs=5 * std / math.sqrt(n))
    assert tensor.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * n))
    assert (tensor.abs() > 2 * std).float().mean().item() == pytest.approx(0.0455, abs=5 * math.sqrt(0.0434 / n))


def assert_uniform(tensor, bound):
    assert tensor.abs().max() <= bound
    assert tensor.abs().max() > 0.97 * bound
    assert tensor.std().item() == pytest.approx(bound / math.sqrt(3), rel=5 / math.sqrt(tensor.numel()))


@pytest.mark.parametrize(
    ("name", "std"),
    [
        ("transformer.layers.1.attention.query_key_value.weight", 0.02),
        ("transformer.layers.2.mlp.dense_h_to_4h.weight", 0.02),
        ("transformer.layers.0.attention.dense.weight", 0.02 / math.sqrt(2 * 3)),
        ("transformer.layers.2.mlp.dense_4h_to_h.weight", 0.02 / math.sqrt(2 * 3)),
        ("mixins.adaln_layer.cross_attention.query.weight", 0.02),
        ("mixins.adaln_layer.cross_attention.key_value.weight", 0.02),
        ("mixins.adaln_layer.cross_attention.dense.weight", 0.02),
        ("mixins.adaln_layer.lr_query_position_embedding", 0.02),
        ("mixins.adaln_layer.lr_key_position_embedding", 0.02),
    ],
)
def test_normal_weights(parameters, name, std):
    assert_normal(parameters[name], std)
    if name.endswith(".weight"):
        assert bool((parameters[name.replace(".weight", ".bias")] == 0).all())


@pytest.mark.parametrize(
    ("name", "fan_in", "fan_out"),
    [
        ("mixins.patch_embed.proj", 6 * 16, 64),
        ("mixins.final_layer.linear", 64, 48),
        ("time_embed.mlp.0", 192, 64),
        ("time_embed.mlp.2", 64, 64),
    ],
)
def test_xavier_weights(parameters, name, fan_in, fan_out):
    assert_uniform(parameters[f"{name}.weight"], math.sqrt(6 / (fan_in + fan_out)))
    assert bool((parameters[f"{name}.bias"] == 0).all())


def test_zeros(parameters):
    zero = {name for name, parameter in parameters.items() if not parameter.any() and not name.endswith(".bias")}
    assert zero == {
        "mixins.adaln_layer.re_pos_embed",
        *(f"mixins.adaln_layer.adaLN_modulations.{layer}.1.weight" for layer in range(3)),
        "mixins.final_layer.adaLN_modulation.1.weight",
        "cond_embed.map_vector.2.weight",
    }
    for name in zero - {"mixins.adaln_layer.re_pos_embed"}:
        assert not parameters[name.replace(".weight", ".bias")].any()


@pytest.mark.parametrize(("name", "fan_in"), [("mixins.adaln_layer.proj_lr", 12), ("cond_embed.map_vector.0", 24)])
def test_the_rest_has_pytorchs_defaults(parameters, name, fan_in):
    assert_uniform(parameters[f"{name}.weight"], 1 / math.sqrt(fan_in))
    assert 0 < parameters[f"{name}.bias"].abs().max() <= 1 / math.sqrt(fan_in)


def test_norms_begin_as_plain_norms(parameters):
    norms = [name for name in parameters if "norm" in name or "_ln." in name]
    assert len(norms) == 2 * (2 * 3 + 3)
    for name in norms:
        assert bool((parameters[name] == (1 if name.endswith("weight") else 0)).all()), name


def inputs(grid=(1, 2), seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(1, 6, 16 * grid[0], 16 * grid[1], generator=generator)
    return images, torch.randn(1, 3, 4 * grid[0], 4 * grid[1], generator=generator)


def test_a_fresh_network_knows_neither_noise_level_nor_clip(model):
    images, lr = inputs()
    with torch.no_grad():
        one = model(images, torch.tensor([0.3]), lr, torch.randn(1, 24))
        other = model(images, torch.tensor([-1.0]), lr, torch.randn(1, 24))
        assert torch.equal(one, other)
        other = model(images.flip(-1), torch.tensor([0.3]), lr, torch.randn(1, 24))
        assert (one - other).abs().max() > 0.1


def test_a_fresh_network_ends_in_a_linear_of_the_plain_norm(model, monkeypatch):
    images, lr = inputs()
    final, hidden = model.mixins["final_layer"], []
    decode = final.decode
    monkeypatch.setattr(final, "decode", lambda x, emb: hidden.append(x) or decode(x, emb))
    with torch.no_grad():
        output = model(images, torch.tensor([0.3]), lr, torch.zeros(1, 24))
    (hidden,) = hidden
    pixels = final.linear(layer_norm(layer_norm(hidden, (64,), eps=1e-6), (64,), eps=1e-6))
    expected = rearrange(pixels, "B i j (m n) (p q c) -> B c (i m p) (j n q)", m=4, p=4, c=3)
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": (1, 6, 16, 40)}, "canvas 40x16: both sides must be multiples of the block side 16"),
        (
            {"lr": (1, 3, 4, 4)},
            r"lr has shape \(1, 3, 4, 4\): this canvas needs \(1, 3, 4, 8\), a quarter",
        ),
        ({"lr": (2, 3, 4, 8)}, r"lr has shape \(2, 3, 4, 8\)"),
        ({"clip": None}, "the model's vector_dim is 24: a CLIP embedding must be given"),
    ],
)
def test_inputs_that_do_not_fit(model, change, message):
    shapes = {"images": (1, 6, 16, 32), "lr": (1, 3, 4, 8), "clip": (1, 24)} | change
    if "images" in change:
        shapes["lr"] = (1, 3, 4, 10)
    images, lr, clip = (shape and torch.zeros(shape) for shape in shapes.values())
    with pytest.raises(ValueError, match=message):
        model(images, torch.zeros(1), lr, clip)


def test_a_network_without_clip_input_refuses_an_embedding(make_model):
    without = make_model(InfDiTConfig(**(CONFIG.to_dict() | {"vector_dim": 0})))
    with pytest.raises(ValueError, match="the model's vector_dim is 0: a CLIP embedding must be left out"):
        without(*inputs()[:1], torch.zeros(1), inputs()[1], torch.zeros(1, 24))


def test_meta_makes_no_memory():
    from sat_sr.model.inf_dit import InfDiT

    assert {p.device.type for p in InfDiT(CONFIG, device="meta", dtype=torch.bfloat16).parameters()} == {"meta"}
