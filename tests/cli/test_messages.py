"""What a run says: lines, notes, objects for scripts; to a terminal and to nobody."""

from __future__ import annotations

import io
import json

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
    (skipped,) = map(json.loads, cli("a.png", "--json", "--skip-existing").out.splitlines())
    assert skipped == {"status": "skipped", "input": "a.png", "output": "samples/a_sr.png"}


def test_json_has_the_notes_of_reading_and_writing(cli):
    exif = Image.Exif()
    exif[0x8769] = {0x9286: b"ASCII\0\0\0mine"}
    Image.new("P", (6, 5)).save("a.png", exif=exif)
    (done,) = map(json.loads, cli("a.png", "--json", "--format", "jpg").out.splitlines())
    replaced = "the picture's own EXIF comment is replaced by the settings"
    assert done["notes"] == ["palette colours: written as full RGB", replaced]


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
