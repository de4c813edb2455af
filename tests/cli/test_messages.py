"""What a run says: lines, notes, objects for scripts; to a terminal and to nobody."""

from __future__ import annotations

import dataclasses
import io
import json
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image

from sat_sr.checkpoint import save_safetensors
from sat_sr.cli.console import Console
from sat_sr.model.layout import parameter_shapes


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
    assert err.count("so it is done in 2 passes") == 2  # with the first picture, and with the names of the others


@pytest.mark.parametrize("count", [3, 30])
def test_a_note_about_several_pictures_is_said_with_the_first_and_the_others_are_named_at_the_end(cli, picture, count):
    names = [f"{number:02}.png" for number in range(count)]
    for name in names:
        Image.new("P", (6, 5)).save(name)
    err = cli(*names, picture("rgb.png"), "nothere.png").err.splitlines()
    text = "palette colours: written as full RGB"
    said = [line for line in err if text in line]
    shown = ", ".join(names[1:21]) + (" and 9 more (--json has the notes of each)" if count == 30 else "")
    assert said == [f"note: 00.png: {text}", f"note: also {shown}: {text}"]


def test_names_of_pictures_that_share_a_note_are_told_in_every_round_of_asking(cli, monkeypatch):
    for name in "abc":
        Image.new("P", (6, 5)).save(f"{name}.png")
    monkeypatch.setattr("sys.stdin", io.StringIO("a.png\nb.png\nc.png\n"))
    told = [line.partition(": palette")[0] for line in cli().err.splitlines() if "palette" in line]
    assert told == ["note: a.png", "note: also b.png", "note: also c.png"]


def test_json_tells_each_picture_that_a_run_ends_before(cli, picture, upscaler):
    """The network wants a CLIP tower that is not there: found out with the first picture."""
    config = dataclasses.replace(upscaler.model.config, vector_dim=24)
    weights = {name: torch.zeros(shape) for name, shape in parameter_shapes(config).items()}
    save_safetensors("clip.safetensors", weights, config)
    paths = [picture(name) for name in ("a.png", "b.png")]
    outcome = cli("nothere.png", *paths, "--network=clip.safetensors", "--clip-model=./none", "--json", load=True)
    assert outcome.code == 2 and outcome.err.count("./none: no such file or folder") == 1
    first, *others = map(json.loads, outcome.out.splitlines())
    assert "not there" in first["error"] and first["input"] == "nothere.png"
    assert [(each["status"], each["input"]) for each in others] == [("failed", str(path)) for path in paths]
    assert all("./none: no such file or folder" in each["error"] for each in others)


def test_what_was_found_in_the_weights_is_said(cli, picture, network, upscaler):
    config = dataclasses.replace(upscaler.model.config, vector_dim=24)
    weights = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in parameter_shapes(config).items()}
    recorded = safetensors.torch.load_file(Path(__file__).parents[1] / "golden" / "clip_image_encoder.safetensors")
    prefix = "weights.image_encoder.model."
    tower = {n.removeprefix(prefix): tensor for n, tensor in recorded.items() if n.startswith(prefix + "visual.")}
    count = sum(tensor.numel() for tensor in weights.values())
    save_safetensors("own.safetensors", weights, config, clip=tower)
    save_safetensors("none.safetensors", weights, config)
    safetensors.torch.save_file(tower, "tower.safetensors")

    def told(weights, *flags):
        outcome = cli("a.png", f"--network={weights}", *flags, load=True)
        assert outcome.code == 0, outcome.err
        return outcome.out.splitlines()[0].partition("), ")[0], outcome.err

    picture("a.png")
    for weights, flags, clip in (
        ("own.safetensors", [], "its own CLIP tower in float32"),
        (
            "none.safetensors",
            [],
            "no CLIP tower in the file, that of laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K is used",
        ),
        ("none.safetensors", ["--clip-model=mine"], "no CLIP tower in the file, that of mine is used"),
    ):
        line = f"network {weights} (safetensors, {count:,} parameters stored in bfloat16, {clip}"
        assert told(weights, "--estimate", *flags) == (line, "")
    assert told(network, "--estimate")[0].endswith("parameters stored in float32, no CLIP input")
    assert (
        "tower.safetensors has no open_clip_config.json beside it"
        in told("none.safetensors", "--clip-model=tower.safetensors")[1]
    )


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
