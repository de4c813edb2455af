"""The table of names and shapes against the recorded official one, and against the network."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from sat_sr.config import InfDiTConfig
from sat_sr.model.layout import infer_config, mismatch, parameter_shapes

GOLDEN = Path(__file__).parents[1] / "golden"
ROPE = "mixins.adaln_layer.rope.freqs_"
CONFIG = InfDiTConfig(
    num_layers=2, hidden_size=32, num_attention_heads=4, image_block_size=32, image_size=64, vector_dim=24
)


def official_rows() -> list[list[str]]:
    """name, shape, kind of every entry of the published file."""
    return [line.split("\t") for line in (GOLDEN / "official_state_dict.tsv").read_text().splitlines()[1:]]


def official_shapes() -> dict[str, tuple[int, ...]]:
    return {name: tuple(map(int, shape.split("x"))) if shape else () for name, shape, _ in official_rows()}


def test_layout_is_the_official_one_name_by_name():
    network = {n: s for n, s in official_shapes().items() if not n.startswith((ROPE, "image_encoder."))}
    assert parameter_shapes(InfDiTConfig.preset("official")) == network
    assert infer_config(official_shapes()) == InfDiTConfig.preset("official")


@pytest.mark.parametrize("config", [CONFIG, InfDiTConfig.preset("official"), InfDiTConfig.preset("mini")])
def test_layout_is_that_of_the_network(config):
    from sat_sr.model.inf_dit import InfDiT

    state = InfDiT(config, device="meta").state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == parameter_shapes(config)


def test_the_official_network_is_a_sat_model_with_the_official_parameters():
    """Rotary tables are derived, the CLIP tower is a model of its own: all other entries are there, as parameters."""
    from sat.model.base_model import BaseMixin, BaseModel

    from sat_sr import InfDiT

    model = InfDiT(InfDiTConfig.preset("official"), device="meta")
    assert isinstance(model, BaseModel)
    assert list(model.mixins) == ["patch_embed", "adaln_layer", "final_layer"]
    assert all(isinstance(mixin, BaseMixin) for mixin in model.mixins.values())
    recorded = {n for n, _, kind in official_rows() if kind == "parameter" and not n.startswith("image_encoder.")}
    assert {name for name, _ in model.named_parameters()} == recorded and not list(model.buffers())


def test_the_official_clip_tower_takes_every_official_entry():
    import torch

    from sat_sr.model.clip import CLIPImageEncoder

    shapes = {n: shape for n, shape in official_shapes().items() if n.startswith("image_encoder.")}
    assert len(shapes) == 300
    encoder = CLIPImageEncoder.from_openclip({n: torch.empty(shape, device="meta") for n, shape in shapes.items()})
    config = encoder.tower.config
    assert (encoder.image_size, encoder.embedding_dim) == (224, 768)
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (24, 1024, 16)
    assert (config.patch_size, config.hidden_act, config.layer_norm_eps) == (14, "gelu", 1e-5)
    text = ("positional_embedding", "text_projection", "logit_scale", "token_embedding.weight")
    used = shapes.keys() - {f"image_encoder.model.{name}" for name in text}
    assert len(used) == 296
    assert sum(p.numel() for p in encoder.parameters()) == sum(math.prod(shapes[name]) for name in used)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"vector_dim": 0},
        {"num_layers": 5, "hidden_size": 96, "num_attention_heads": 6},
        {"patch_size": 8, "image_block_size": 128},
    ],
)
def test_config_follows_from_the_shapes(changes):
    config = InfDiTConfig(**(CONFIG.to_dict() | changes | {"image_size": 128}))
    shapes = parameter_shapes(config)
    assert infer_config(shapes, default_image_size=128) == config
    tables = {f"{ROPE}cos": (config.rope_period, config.rope_period, config.head_dim)}
    assert infer_config(shapes | tables) == config


def test_mismatch_names_the_first_few_and_counts_all():
    wanted = {f"a{i}": (i,) for i in range(10)}
    assert mismatch(wanted, wanted) is None
    found = {"a0": (0,), "a1": (5, 1), "b": ()}
    assert mismatch(found, wanted, show=2) == "8 missing: a2, a3, …; 1 unexpected: b; 1 misshapen: a1 5x1 instead of 1"
