"""The configuration: its presets, its derived sizes, and one sentence for each broken rule."""

from __future__ import annotations

import dataclasses

import pytest

from sat_sr.config import PRESETS, InfDiTConfig


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_layers": 0}, "num_layers=0: must be an integer of at least 1"),
        ({"num_layers": 2.0}, r"num_layers=2\.0: must be an integer of at least 1"),
        ({"num_layers": True}, "num_layers=True: must be an integer"),
        ({"num_layers": "28"}, "num_layers='28': must be an integer"),
        ({"num_attention_heads": 0}, "num_attention_heads=0: must be an integer of at least 1"),
        ({"vector_dim": -1}, "vector_dim=-1: must be an integer of at least 0"),
        ({"hidden_size": 1281}, r"=1281: must be a multiple of 16 \(num_attention_heads\); the nearest is 1280 or 12"),
        ({"hidden_size": 8}, r"hidden_size=8: must be a multiple of 16 \(num_attention_heads\); the nearest is 16$"),
        ({"hidden_size": 96}, "hidden_size=96 over num_attention_heads=16 gives heads of 6: must be a multiple of 4"),
        ({"patch_size": 3}, r"image_block_size=128: must be a multiple of 3 \(patch_size\); the nearest is 126 or 129"),
        ({"image_block_size": 4}, r"=4: must be a multiple of 8 \(pixels per LR feature\); the nearest is 8$"),
        ({"image_block_size": 20}, r"image_block_size=20: must be a multiple of 8 .*; the nearest is 16 or 24"),
        ({"image_size": 510}, r"image_size=510: must be a multiple of 4 \(patch_size\); the nearest is 508 or 512"),
    ],
)  # fmt: skip
def test_each_rule_names_value_and_way_out(values, message):
    with pytest.raises(ValueError, match=message):
        InfDiTConfig(**values)


def test_derived_sizes_of_the_official_model():
    config = InfDiTConfig.preset("official")
    assert config == InfDiTConfig() == PRESETS["official"]
    assert (config.num_layers, config.hidden_size, config.num_attention_heads, config.vector_dim) == (28, 1280, 16, 768)
    assert (config.head_dim, config.tokens_per_side, config.tokens_per_block) == (80, 32, 1024)
    assert (config.lr_features_per_side, config.rope_period) == (16, 1024)


def test_presets_by_name():
    mini = InfDiTConfig.preset("mini")
    assert mini.vector_dim == 0 and mini.image_block_size == 32
    with pytest.raises(ValueError, match="unknown preset 'large': the presets are official, mini"):
        InfDiTConfig.preset("large")


@pytest.mark.parametrize(("name", "parameters"), [("official", 753_762_928), ("mini", 2_789_296)])
def test_presets_have_the_parameters_that_are_told(name, parameters):
    from sat_sr.model.inf_dit import InfDiT

    model = InfDiT(InfDiTConfig.preset(name), device="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_dict_and_json_go_around():
    config = InfDiTConfig(num_layers=3, hidden_size=64, vector_dim=0)
    assert InfDiTConfig.from_dict(config.to_dict()) == config == InfDiTConfig.from_json(config.to_json())
    assert set(config.to_dict()) == {field.name for field in dataclasses.fields(InfDiTConfig)}


def test_unknown_keys_are_errors():
    with pytest.raises(ValueError, match="unknown configuration key layers, width: the known keys are num_layers, hid"):
        InfDiTConfig.from_dict({"num_layers": 3, "width": 8, "layers": 2})


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        InfDiTConfig().num_layers = 3
