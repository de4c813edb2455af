"""The settings that a picture carries repeat it, and are told from those that would not."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from sat_sr.cli import worker


def test_settings_in_the_picture_repeat_it(cli, picture, network, pixels):
    path = picture("a.png")
    flags = ["--infer_sr_scale", 2.5, "--sampler", "heun", "--num-steps", 3, "--strength", 0.7]
    flags += ["--color-fix", "mean", "--crop_size", 5]
    assert cli(path, *flags, "--seed", "11", "--inference_type", "ar", "-o", "first.png").code == 0
    outcome = cli(path, "--from-picture", "first.png", "-o", "again.png")
    assert outcome.code == 0 and "ar: block-major, groups of " in outcome.out
    assert np.array_equal(pixels("first.png"), pixels("again.png"))
    cli(path, "--from-picture", "first.png", "-o", "other.png", "--seed", "12")
    assert not np.array_equal(pixels("first.png"), pixels("other.png"))

    stored = json.loads(Image.open("first.png").text["sat-sr"])
    from sat_sr import __version__
    from sat_sr.checkpoint import checkpoint_hash

    assert stored["checkpoint"] == checkpoint_hash(network)
    assert (stored["version"], stored["seed"], stored["scale"], stored["num_steps"]) == (__version__, 11, 2.5, 3)
    cli(path, "--no-metadata", "-o", "bare.png")
    outcome = cli(path, "--from-picture", "bare.png")
    assert outcome.code == 2 and "bare.png carries no settings of this program" in outcome.err


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--width", 18], (18, 27)), (["--height", 10], (7, 10)), (["--long-side", 12], (8, 12)),
        (["--size", "9x9"], (9, 9)), (["--infer-sr-scale", 2], (8, 12)),
    ],
)  # fmt: skip
def test_a_size_is_repeated_as_it_was_asked_for(cli, picture, flags, expected, size_of):
    """--width of a wide picture gives a high one that width, undistorted."""
    assert cli(picture("wide.png", (6, 4)), *flags, "-o", "first.png").code == 0
    cli(picture("high.png", (4, 6)), "--from-picture", "first.png", "-o", "second.png")
    assert size_of("second.png") == expected


def test_the_fast_preset_overrides_the_sampling_of_an_earlier_picture(cli, picture):
    path = picture("a.png")
    cli(path, "--num-steps", 3, "--sampler", "heun", "--seed", 11, "-o", "first.png")
    outcome = cli(path, "--from-picture", "first.png", "--fast", "-o", "fast.png")
    assert "euler, 1 steps (1 network calls)" in outcome.out and "seed 11" in outcome.out


def test_stored_settings_that_cannot_be_are_not_blamed_on_the_flags(cli, picture):
    path = picture("a.png")
    text = PngImagePlugin.PngInfo()
    text.add_text("sat-sr", json.dumps({"num_steps": "many"}))
    Image.new("RGB", (4, 4)).save("odd.png", pnginfo=text)
    outcome = cli(path, "--from-picture", "odd.png")
    assert outcome.code == 2
    assert "the settings stored in odd.png: argument --num-steps: many must be an integer" in outcome.err


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["--width", 16], "a_2.67x"), (["--infer-sr-scale", 2.5], "a_2.5x"), (["--size", "6x10"], "a_1.67x"),
        ([], "a_4x"),
    ],
)  # fmt: skip
def test_the_scale_in_a_name_is_that_of_the_picture(cli, picture, flags, name):
    assert cli(picture("a.png", (6, 5)), *flags, "--name", "{stem}_{scale}x").code == 0
    assert os.listdir("samples") == [f"{name}.png"]


@pytest.mark.parametrize("name", ["first.png", "first.tif", "first.jpg", "first.webp"])
def test_every_format_carries_what_repeats_the_picture(cli, picture, network, name):
    from sat_sr.checkpoint import checkpoint_hash
    from sat_sr.image_io import read_settings

    path = picture("a.png")
    flags = ["--size", "17x16", "--sampler", "heun", "--num-steps", 2, "--inference_type", "ar2", "--block_batch", 2]
    assert cli(path, *flags, "--seed", "11", "-o", name).code == 0
    stored = read_settings(name)
    told = {"checkpoint": checkpoint_hash(network), "seed": 11, "sampler": "heun", "num_steps": 2, "size": [17, 16],
            "inference_type": "ar2", "block_batch": 2}  # fmt: skip
    assert stored.items() >= {**told, "version": stored["version"]}.items()
    again = f"again{Path(name).suffix}"
    assert cli(path, "--from-picture", name, "-o", again).code == 0
    assert Path(again).read_bytes() == Path(name).read_bytes()
    cli(path, *flags, "--no-metadata", "-o", name, "--overwrite")
    assert read_settings(name) is None


def test_weights_other_than_those_of_the_picture_are_told(cli, picture, network, monkeypatch):
    path = picture("a.png")
    cli(path, "-o", "first.png")
    monkeypatch.setattr(worker, "checkpoint_hash", lambda path: "another")
    assert "first.png was made with other weights (tiny.safetensors)" in cli(path, "--from-picture", "first.png").err
