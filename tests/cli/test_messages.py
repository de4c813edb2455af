"""What a run says: lines, notes, objects for scripts; to a terminal and to nobody."""

from __future__ import annotations

import io
import json
import os

import pytest
from PIL import Image

from sat_sr.cli.console import Console


def test_json_is_one_object_a_picture_and_nothing_else(cli, picture):
    outcome = cli(picture("a.png"), "nothere.png", "--json", "--seed", "4", "--nogate")
    done, failed = map(json.loads, outcome.out.splitlines())
    assert outcome.code == 1
    assert (done["status"], done["input_size"], done["output_size"], done["seed"]) == ("done", [6, 5], [24, 20], 4)
    assert (done["mode"], done["num_steps"], done["output"]) == ("auto", 2, "samples/a_sr.png")
    assert done["seconds"] > 0 and done["peak_memory_bytes"] > 1 << 26
    assert failed["status"] == "failed" and "not there" in failed["error"]
    (skipped,) = map(json.loads, cli("a.png", "--json", "--skip-existing", "--num-steps", "3").out.splitlines())
    expected = {
        "status": "skipped",
        "input": "a.png",
        "output": "samples/a_sr.png",
        "different": ["num_steps 2 (now 3)"],
    }
    assert skipped == expected


def test_json_has_the_notes_of_reading_and_writing(cli):
    exif = Image.Exif()
    exif[0x8769] = {0x9286: b"ASCII\0\0\0mine"}
    Image.new("P", (6, 5)).save("a.png", exif=exif)
    (done,) = map(json.loads, cli("a.png", "--json", "--format", "jpg").out.splitlines())
    replaced = "the picture's own EXIF comment is replaced by the settings"
    assert done["notes"] == ["palette colours: written as full RGB", replaced]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("flags", [[], ["--json"]], ids=str)
def test_a_full_disk_under_standard_output_ends_the_reporting_and_not_the_work(cli, picture, monkeypatch, flags):
    paths = [picture("a.png"), picture("b.png")]
    with open("/dev/full", "w") as full, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", full)
        outcome = cli(*paths, *flags)
    assert outcome.code == 1 and sorted(os.listdir("samples")) == ["a_sr.png", "b_sr.png"]
    told = "error: standard output cannot be written (No space left on device): the work goes on without it"
    assert outcome.err.splitlines() == [told]


def test_a_typed_name_need_not_be_in_the_encoding_of_the_terminal(cli, picture, monkeypatch):
    name = os.fsdecode(b"caf\xe9.png")
    os.rename(picture("a.png"), name)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9.png\n" + b"x" * 300 + b"\n"), "utf-8"))
    outcome = cli()
    assert outcome.code == 0 and os.listdir("samples") == [os.fsdecode(b"caf\xe9_sr.png")]
    assert "File name too long" in outcome.err


def test_quiet_says_nothing_but_errors(cli, picture):
    path = picture("a.png")
    outcome = cli(path, "--quiet", "--nogate", "--infer_sr_scale", "5")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    assert "not there" in cli("nothere.png", "--quiet").err


def test_notes_are_said_once(cli, picture):
    pictures = [picture(f"{name}.png", seed=1) for name in "abc"]
    err = cli(*pictures, "--nogate", "--hidden_size", "1280", "--infer_sr_scale", "5", "--block_batch", "2").err
    assert err.count("accepted for compatibility, without effect: --nogate") == 1
    assert err.count("--hidden-size 1280: the weights have 16, which is used") == 1
    assert "--clip-model is not used" in cli(pictures[0], "--clip-model", "x").err
    assert err.count("--block-batch acts with --inference-type ar2 only") == 1
    assert err.count("so it is done in 2 passes") == 1


def test_a_terminal_obeys_no_file_name(cli, picture, monkeypatch):
    name = "red\x1b[31m\nline.png"
    picture(name)
    outcome = cli(name)
    assert outcome.code == 0 and "\x1b" not in outcome.out + outcome.err
    assert "red\\x1b[31m\\x0aline.png -> samples/red\\x1b[31m\\x0aline_sr.png" in outcome.out
    assert json.loads(cli(name, "--json").out)["input"] == name, "scripts get the name as it is"
    monkeypatch.setattr("sys.stderr", log := io.StringIO())
    log.isatty = lambda: True
    with Console().picture_progress(name):
        pass
    assert "\x1b[31m" not in log.getvalue()
