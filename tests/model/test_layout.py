"""The table of names and shapes against the recorded official one, and against the network."""

from __future__ import annotations

from pathlib import Path

import pytest

from sat_sr.config import InfDiTConfig
from sat_sr.model.layout import infer_config, mismatch, parameter_shapes

GOLDEN = Path(__file__).parents[1] / "golden"
ROPE = "mixins.adaln_layer.rope.freqs_"
CONFIG = InfDiTConfig(
    num_layers=2, hidden_size=32, num_attention_heads=4, image_block_size=32, image_size=64, vector_dim=24
)


def official_shapes() -> dict[str, tuple[int, ...]]:
    rows = [line.split("\t") for line in (GOLDEN / "official_state_dict.tsv").read_text().splitlines()[1:]]
    return {name: tuple(map(int, shape.split("x"))) if shape else () for name, shape, _ in rows}


def test_layout_is_the_official_one_name_by_name():
    network = {n: s for n, s in official_shapes().items() if not n.startswith((ROPE, "image_encoder."))}
    assert parameter_shapes(InfDiTConfig.preset("official")) == network
    assert infer_config(official_shapes()) == InfDiTConfig.preset("official")


@pytest.mark.parametrize("config", [CONFIG, InfDiTConfig.preset("official"), InfDiTConfig.preset("mini")])
def test_layout_is_that_of_the_network(config):
    from sat_sr.model.inf_dit import InfDiT

    state = InfDiT(config, device="meta").state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == parameter_shapes(config)


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
