"""Outputs that are there before a run, or appear while it computes: none is lost, none is taken for another's."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest


def test_outputs_are_never_overwritten_unasked(cli, picture, pixels):
    path = picture("a.png")
    cli(path, "--seed", "1")
    first = pixels("samples/a_sr.png")
    outcome = cli(path, "--seed", "2")
    assert outcome.code == 0 and "samples/a_sr_2.png" in outcome.out
    assert np.array_equal(pixels("samples/a_sr.png"), first)
    assert not np.array_equal(pixels("samples/a_sr_2.png"), first)
    assert "skipped" in cli(path, "--seed", "2", "--skip-existing").out
    assert np.array_equal(pixels("samples/a_sr.png"), first)
    cli(path, "--seed", "2", "--overwrite")
    assert np.array_equal(pixels("samples/a_sr.png"), pixels("samples/a_sr_2.png"))
    assert cli(path, "-o", "samples/a_sr.png").code == 1


def test_an_output_of_another_picture_is_not_taken_for_done(cli, picture, size_of):
    """Two folders with an x.png each, one after the other; then both again."""
    first, second = picture("p/x.png", seed=1), picture("q/x.png", (6, 6), seed=2)
    for folder in ("p", "q"):
        assert cli(folder, "--skip-existing", "--seed", 1).code == 0
    outcome = cli(second, first, "--skip-existing", "--seed", 1)
    assert outcome.out.splitlines()[-1] == "2 skipped"
    assert f"{second}: skipped, samples/x_sr_2.png is done" in outcome.out
    assert f"{first}: skipped, samples/x_sr.png is done" in outcome.out
    assert sorted(os.listdir("samples")) == ["x_sr.png", "x_sr_2.png"]
    assert size_of("samples/x_sr_2.png") == (24, 24)


def test_what_is_done_with_other_settings_is_kept_and_told(cli, picture, size_of):
    path = picture("a.png")
    cli(path, "--seed", 1)
    assert cli(path, "--skip-existing").err == "", "another seed is not asked for"
    outcome = cli(path, "--skip-existing", "--width", 12, "--num-steps", 1, "--seed", 2)
    assert outcome.code == 0 and size_of("samples/a_sr.png") == (24, 20)
    different = "num_steps 2 (now 1), scale 4.0 (now None), seed 1 (now 2), width None (now 12)"
    assert f"note: {path}: it is done with {different}: --overwrite makes it anew" in outcome.err


def test_a_name_that_another_picture_takes_meanwhile_is_not_taken_for_done(cli, picture, size_of, meanwhile):
    first, second = picture("p/x.png", seed=1), picture("q/x.png", (6, 6), seed=2)
    cli(first, "-o", "of_first.png")
    Path("samples").mkdir()
    act = lambda: shutil.copy("of_first.png", "samples/x_sr.png")  # noqa: E731
    meanwhile(act)
    outcome = cli(second, "--skip-existing")
    assert outcome.code == 0 and size_of("samples/x_sr_2.png") == (24, 24)
    assert f"{second} -> samples/x_sr_2.png" in outcome.out


def test_one_output_file_of_another_picture_stays(cli, picture):
    first, second = picture("p/x.png", seed=1), picture("q/x.png", seed=2)
    cli(first, "-o", "out.png")
    before = Path("out.png").read_bytes()
    outcome = cli(second, "-o", "out.png", "--skip-existing")
    assert outcome.code == 2 and "out.png is of another picture: choose another name" in outcome.err
    assert Path("out.png").read_bytes() == before


def test_a_picture_whose_input_is_deleted_meanwhile_is_written(cli, picture, size_of, meanwhile):
    path = picture("a.png")
    meanwhile(path.unlink)
    assert cli(path).code == 0 and size_of("samples/a_sr.png") == (24, 20)


@pytest.mark.parametrize(
    ("flags", "made"),
    [
        (["--out-dir", "."], "a_sr_2.png"), (["-o", "a_sr.png"], "a_sr_2.png"),
        (["--out-dir", ".", "--skip-existing"], None), (["--out-dir", ".", "--overwrite"], "a_sr.png"),
    ],
)  # fmt: skip
def test_an_output_that_appears_meanwhile_stays(cli, picture, flags, made, size_of, meanwhile):
    path, theirs = picture("a.png"), b"of another process"
    meanwhile(lambda: Path("a_sr.png").write_bytes(theirs))
    outcome = cli(path, *flags)
    assert outcome.code == 0
    assert (Path("a_sr.png").read_bytes() == theirs) == ("--overwrite" not in flags)
    assert sorted(os.listdir()) == sorted({"a.png", "a_sr.png", made or "a_sr.png"})
    assert size_of(made or "a.png") == ((24, 20) if made else (6, 5))
    assert (f"{path}: skipped, a_sr.png is done" in outcome.out) == (made is None)


def test_an_empty_file_is_no_output_yet(cli, picture, size_of):
    path = picture("a.png")
    Path("mktemp.png").touch()
    assert cli(path, "-o", "mktemp.png").code == 0
    assert size_of("mktemp.png") == (24, 20)
