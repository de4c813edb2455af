"""--estimate tells what the run would take, and refuses what it would refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sat_sr.inference.budget import PROGRAM_BYTES


def test_an_estimate_needs_no_weights(cli, picture, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("sat_sr.cli.worker.load_model", refuse, raising=False)
    monkeypatch.setattr("sat_sr.inference.upscaler.load_model", refuse)
    outcome = cli(picture("a.png", (8, 8)), "--estimate", "--json", "--sampler", "heun", "--num-steps", "3", load=True)
    (estimate,) = map(json.loads, outcome.out.splitlines())
    # 2x2 blocks of 16 tokens; products of a layer: 12 C² weights a token, scores and values over 4x16 keys.
    c, tokens, lr_keys, features = 16, 64, 36, 4 * 4
    layers = 2 * tokens * (2 * 12 * c * c + 2 * 2 * 64 * c)
    cross = tokens * (2 * 2 * c * c + 2 * 2 * lr_keys * c) + features * (2 * 12 * c + 2 * c * 2 * c)
    ends = tokens * (2 * 6 * 16 * c + 2 * c * 3 * 16)
    assert estimate["tflop"] * 1e12 == pytest.approx(5 * (layers + cross + ends), rel=1e-6)
    assert not Path("samples").exists()
    text = cli("a.png", "--estimate", load=True).out
    assert "TFLOP in 2 network calls | peak memory: device" in text
    assert f", host {PROGRAM_BYTES >> 20}." in text, "and less than a MiB for so small a picture"


@pytest.mark.parametrize(
    ("size", "flags", "told"),
    [
        ((20, 20), ["--max-pixels", 399], "raise the limit with --max-pixels"),
        ((16_400, 2), ["--format", "jpg"], "JPEG ends at 65,500 px a side"),
        ((4, 4), ["-o", "there.png"], "there.png is there already"),
    ],
)
def test_an_estimate_refuses_what_the_run_would(cli, picture, size, flags, told):
    picture("there.png")
    path = picture("a.png", size)
    for estimate in ([], ["--estimate"]):
        outcome = cli(path, *flags, *estimate)
        assert outcome.code == 1 and told in outcome.err, estimate


def test_an_estimate_leaves_out_what_is_done(cli, picture):
    cli(first := picture("a.png"))
    outcome = cli(first, second := picture("b.png"), "--estimate", "--skip-existing", "--json")
    status = {record["input"]: record["status"] for record in map(json.loads, outcome.out.splitlines())}
    assert status == {str(first): "skipped", str(second): "estimate"}
