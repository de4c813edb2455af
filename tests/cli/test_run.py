"""The program from start to finish, on tiny pictures with random weights."""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import ExifTags, Image, ImageCms, PngImagePlugin

from sat_sr.cli import main, worker
from sat_sr.cli.arguments import SETTLED, SIZE_FLAGS, make_parser
from sat_sr.cli.console import Console
from sat_sr.cli.describe import PROGRAM_BYTES
from sat_sr.launcher import Rank

ROOT = Path(__file__).resolve().parents[2]


def size_of(path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_a_picture_is_upscaled_like_in_python(cli, picture, upscaler, network):
    path = picture("a b.png", (9, 7))
    outcome = cli(path, "--seed", "5", load=True)
    assert (outcome.code, outcome.err) == (0, "")
    settings = {"sampler": "euler", "num_steps": 2, "sigma_max": 2.0}  # the checkpoint's own
    expected = upscaler(Image.open(path), scale=4, seed=5, **settings)
    assert np.array_equal(pixels("samples/a b_sr.png"), np.asarray(expected))
    first, line, last = outcome.out.splitlines()
    assert first.startswith(f"network {network}")
    assert line.startswith(
        f"{path}: 9x7 -> 36x28, canvas 48x32, 2x3 blocks of 16 px | auto: layer-major, groups of 2x3 blocks along "
        "columns, memory about "
    )
    assert line.endswith("euler, 2 steps (2 network calls), sigma 2 to 0.002 | seed 5 | float32 on cpu, kernel sdpa")
    assert last.startswith(f"{path} -> samples/a b_sr.png (")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], (40, 24)),
        (["--infer_sr_scale", "1"], (10, 6)),
        (["--infer_sr_scale", "2.5"], (25, 15)),
        (["--size", "33x20"], (33, 20)),
        (["--width", "25"], (25, 15)),
        (["--height", "15"], (25, 15)),
        (["--width", "30", "--height", "31"], (30, 31)),
        (["--long-side", "20"], (20, 12)),
        (["--infer_sr_scale", "5"], (50, 30)),
        (["--lr_size", "3"], (20, 12)),
        (["--crop_size", "4", "--infer_sr_scale", "2"], (8, 8)),
        (["--round", "4", "--infer_sr_scale", "2"], (16, 8)),
    ],
)
def test_sizes(cli, picture, flags, expected):
    outcome = cli(picture("a.png", (10, 6)), *flags)
    assert outcome.code == 0
    assert size_of("samples/a_sr.png") == expected
    assert ("so it is done in 2 passes, to 22x13 and 50x30" in outcome.err) == ("5" in flags)


def test_round_crops_around_the_centre_as_the_release_did(cli, picture):
    path = picture("a.png", (11, 9))
    Image.open(path).crop((1, 0, 9, 8)).save("b.png")
    assert cli(path, "b.png", "--round", "8", "--seed", "1", "--infer_sr_scale", "2").code == 0
    assert np.array_equal(pixels("samples/a_sr.png"), pixels("samples/b_sr.png"))


def test_sixteen_bits_and_alpha_stay(cli):
    colours = np.linspace(0, 65535, 5 * 6).reshape(5, 6).astype(np.uint16)
    Image.fromarray(colours).save("deep.png")
    rgba = np.full((5, 6, 4), 200, np.uint8)
    rgba[:, 3:, 3] = 0
    Image.fromarray(rgba).save("glass.png")
    assert cli("deep.png", "glass.png", "--infer_sr_scale", "2").code == 0
    deep, glass = Image.open("samples/deep_sr.png"), Image.open("samples/glass_sr.png")
    assert deep.mode == "I;16" and len(np.unique(np.asarray(deep) % 256)) > 20
    assert glass.mode == "RGBA"
    expected = Image.fromarray(rgba).getchannel("A").resize((12, 10), Image.Resampling.LANCZOS)
    assert np.abs(np.asarray(glass.getchannel("A")).astype(int) - np.asarray(expected)).max() <= 1


def test_what_a_file_is_stays_what_it_is(cli):
    colours = np.arange(5 * 6 * 3).reshape(5, 6, 3).astype(np.uint16) * 700
    tifffile.imwrite("deep.tif", colours, photometric="rgb", resolution=(300, 300), metadata=None)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.Make] = 6, "Maker"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.new("RGB", (6, 4), "red").save("turned.jpg", exif=exif, dpi=(100, 150), icc_profile=profile)
    palette = Image.new("P", (6, 5), 1)
    palette.putpalette([0, 0, 0, 250, 100, 50])
    palette.putpixel((0, 0), 0)
    palette.save("palette.png", transparency=0)
    Image.new("CMYK", (6, 5), (0, 255, 255, 0)).save("inks.jpg")
    Image.new("LA", (6, 5), (80, 255)).save("grey.png")
    names = ["deep.tif", "turned.jpg", "palette.png", "inks.jpg", "grey.png"]
    outcome = cli(*names, "--format", "keep", "--infer_sr_scale", "2", "--strength", "0")
    assert outcome.code == 0

    deep = tifffile.imread("samples/deep_sr.tif")
    assert deep.dtype == np.uint16 and deep.shape == (10, 12, 3) and len(np.unique(deep % 256)) > 50
    with Image.open("samples/deep_sr.tif") as image:
        assert image.info["dpi"] == (600, 600)
    with Image.open("samples/turned_sr.jpg") as image:
        assert (image.size, image.info["icc_profile"]) == ((8, 12), profile)
        assert image.info["dpi"] == (300, 200), "turned like the picture, twice as many"
        assert (image.getexif()[ExifTags.Base.Orientation], image.getexif()[ExifTags.Base.Make]) == (1, "Maker")
    with Image.open("samples/palette_sr.png") as image:
        assert image.mode == "RGBA" and image.getpixel((0, 0))[3] < 30 and image.getpixel((11, 9))[3] == 255
        assert np.abs(np.array(image.getpixel((11, 9))[:3]) - (250, 100, 50)).max() < 30
    with Image.open("samples/inks_sr.jpg") as image:
        assert image.mode == "RGB" and np.abs(np.array(image.getpixel((6, 5))) - (255, 0, 0)).max() < 30
    assert Image.open("samples/grey_sr.png").mode == "LA"
    assert "CMYK without a profile" in outcome.err and "palette colours" in outcome.err


def test_every_kind_of_input(cli, picture, monkeypatch, tmp_path):
    for name in ("one.png", "folder/two.png", "folder/deep/three.png", "glob1.png", "glob2.png", "in list.png"):
        picture(name)
    Path("list.txt").write_text("# pictures\n\nin list.png\n")
    outcome = cli("one.png", "folder", "glob?.png", "list.txt", "--recursive", "--out-dir", "out")
    assert outcome.code == 0
    assert sorted(str(path.relative_to("out")) for path in Path("out").rglob("*.png")) == [
        "deep/three_sr.png", "glob1_sr.png", "glob2_sr.png", "in list_sr.png", "one_sr.png", "two_sr.png",
    ]  # fmt: skip
    assert outcome.out.splitlines()[-1] == "6 done"
    assert cli("--input-type", "txt", "--input-path", "list.txt", "--out-dir", "out2").code == 0
    assert [path.name for path in Path("out2").iterdir()] == ["in list_sr.png"]


def test_it_asks_for_paths_and_again_after_a_bad_one(cli, picture, monkeypatch, capfd):
    picture("with blank.png")
    picture("it's (1).png")
    answers = iter(["nothere.png", "", "'with blank.png'", "with\\ blank.png", "it's (1).png", "it\\'s\\ \\(1\\).png"])
    prompts = []

    def answer(prompt):
        prompts.append(prompt)
        try:
            return next(answers)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", answer)
    outcome = cli()
    assert prompts == ["Please input low resolution image path (Ctrl-D quit): "] * 7
    assert outcome.code == 0, "a mistyped path is no failed picture"
    assert "nothere.png is not there" in outcome.err
    once_and_twice = ["it's (1)_sr.png", "it's (1)_sr_2.png", "with blank_sr.png", "with blank_sr_2.png"]
    assert sorted(os.listdir("samples")) == once_and_twice
    answers = iter(["'with blank.png' \"it's (1).png\""])
    cli("--out-dir", "dropped")
    assert sorted(os.listdir("dropped")) == ["it's (1)_sr.png", "with blank_sr.png"]


def test_without_standard_output_pictures_are_made(cli, picture, monkeypatch):
    path = picture("a.png")
    monkeypatch.setattr("sys.stdout", None)
    monkeypatch.setattr("sys.stderr", None)
    assert cli(path, "nothere.png").code == 1
    assert size_of("samples/a_sr.png") == (24, 20)


def test_without_standard_input_nothing_is_asked(cli, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    outcome = cli()
    assert (outcome.code, outcome.err) == (0, "")


def test_outputs_are_never_overwritten_unasked(cli, picture):
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


def test_an_output_of_another_picture_is_not_taken_for_done(cli, picture):
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


def test_what_is_done_with_other_settings_is_kept_and_told(cli, picture):
    path = picture("a.png")
    cli(path, "--seed", 1)
    assert cli(path, "--skip-existing").err == "", "another seed is not asked for"
    outcome = cli(path, "--skip-existing", "--width", 12, "--num-steps", 1, "--seed", 2)
    assert outcome.code == 0 and size_of("samples/a_sr.png") == (24, 20)
    different = "num_steps 2 (now 1), scale 4.0 (now None), seed 1 (now 2), width None (now 12)"
    assert f"note: {path}: it is done with {different}: --overwrite makes it anew" in outcome.err


def meanwhile(monkeypatch, upscaler, act, call: int = 0) -> None:
    """Let `act` happen while the network computes picture number `call`."""
    original, calls = upscaler.run, itertools.count()

    def run(*args, **kwargs):
        if next(calls) == call:
            act()
        return original(*args, **kwargs)

    monkeypatch.setattr(upscaler, "run", run)


def test_ranks_that_plan_at_different_times_take_no_name_from_one_another(cli, picture, monkeypatch, upscaler, network):
    """Rank 1 plans when rank 0 has written its first picture, and so numbers on from that: y becomes a_sr_3, too."""
    pictures = [picture(f"{folder}/a.png", seed=seed) for seed, folder in enumerate("xyz")]
    flags = ["--seed", "1", "--out-dir", "out"]
    for name, path in zip("xyz", pictures, strict=True):
        cli(path, "--seed", "1", "-o", f"{name}.png")
    monkeypatch.setenv("WORLD_SIZE", "2")

    def second_rank():
        monkeypatch.setenv("RANK", "1")
        assert main.main([*map(str, pictures), *flags, f"--network={network}"]) == 0

    meanwhile(monkeypatch, upscaler, second_rank, call=1)
    monkeypatch.setenv("RANK", "0")
    outcome = cli(*pictures, *flags)
    assert outcome.code == 0
    assert "out/a_sr_3.png has appeared meanwhile: written to out/a_sr_" in outcome.err
    made = {path.read_bytes() for path in Path("out").iterdir()}
    assert made == {Path(f"{name}.png").read_bytes() for name in "xyz"}
    for rank in "01":  # each knows its own again, whatever their numbers are
        monkeypatch.setenv("RANK", rank)
        assert "1 done" not in cli(*pictures, *flags, "--skip-existing").out
    assert {path.read_bytes() for path in Path("out").iterdir()} == made


def test_ranks_whose_outputs_lie_beside_the_pictures_do_each_picture_once(cli, picture, monkeypatch, upscaler, network):
    """Rank 1 finds an output of rank 0 in the folder: its share must stay the same."""
    for seed, name in enumerate(("m", "n", "o", "p")):
        picture(f"photos/{name}.png", seed=seed)
    picture("photos/m_sr.png", (24, 20))  # of an earlier run: rank 0 writes m_sr_2.png
    monkeypatch.setenv("WORLD_SIZE", "2")

    def second_rank():
        monkeypatch.setenv("RANK", "1")
        assert main.main(["photos", "--out-dir", "photos", f"--network={network}"]) == 0

    meanwhile(monkeypatch, upscaler, second_rank, call=1)
    monkeypatch.setenv("RANK", "0")
    outcome = cli("photos", "--out-dir", "photos")
    assert outcome.code == 0
    made = [f"{name}{number}.png" for name, number in (("m", "_sr_2"), ("n", "_sr"), ("o", "_sr"), ("p", "_sr"))]
    assert sorted(os.listdir("photos")) == sorted([*made, *(f"{name}.png" for name in "mnop"), "m_sr.png"])
    monkeypatch.delenv("RANK")
    records = list(map(json.loads, cli("photos", "--out-dir", "photos", "--skip-existing", "--json").out.splitlines()))
    done = {record["input"]: record["output"] for record in records if "output" in record}
    assert done == {f"photos/{name}.png": f"photos/{name}_sr.png" for name in "mnop"}, "what is an output has none"
    left_out = {record["input"]: record["reason"] for record in records if "reason" in record}
    assert sorted(left_out) == sorted(f"photos/{name}" for name in (*made, "m_sr.png"))
    assert left_out["photos/m_sr_2.png"].endswith("it bears the output name of photos/m.png")


def test_a_name_that_another_picture_takes_meanwhile_is_not_taken_for_done(cli, picture, monkeypatch, upscaler):
    first, second = picture("p/x.png", seed=1), picture("q/x.png", (6, 6), seed=2)
    cli(first, "-o", "of_first.png")
    Path("samples").mkdir()
    act = lambda: shutil.copy("of_first.png", "samples/x_sr.png")  # noqa: E731
    meanwhile(monkeypatch, upscaler, act)
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


def test_a_picture_whose_input_is_deleted_meanwhile_is_written(cli, picture, monkeypatch, upscaler):
    path = picture("a.png")
    meanwhile(monkeypatch, upscaler, path.unlink)
    assert cli(path).code == 0 and size_of("samples/a_sr.png") == (24, 20)


@pytest.mark.parametrize(
    ("flags", "made"),
    [
        (["--out-dir", "."], "a_sr_2.png"), (["-o", "a_sr.png"], "a_sr_2.png"),
        (["--out-dir", ".", "--skip-existing"], None), (["--out-dir", ".", "--overwrite"], "a_sr.png"),
    ],
)  # fmt: skip
def test_an_output_that_appears_meanwhile_stays(cli, picture, monkeypatch, upscaler, flags, made):
    path, theirs = picture("a.png"), b"of another process"
    meanwhile(monkeypatch, upscaler, lambda: Path("a_sr.png").write_bytes(theirs))
    outcome = cli(path, *flags)
    assert outcome.code == 0
    assert (Path("a_sr.png").read_bytes() == theirs) == ("--overwrite" not in flags)
    assert sorted(os.listdir()) == sorted({"a.png", "a_sr.png", made or "a_sr.png"})
    assert size_of(made or "a.png") == ((24, 20) if made else (6, 5))
    assert (f"{path}: skipped, a_sr.png is done" in outcome.out) == (made is None)


def test_an_empty_file_is_no_output_yet(cli, picture):
    path = picture("a.png")
    Path("mktemp.png").touch()
    assert cli(path, "-o", "mktemp.png").code == 0
    assert size_of("mktemp.png") == (24, 20)


def test_formats_names_and_quality(cli, picture):
    path = picture("a.png")
    flags = ["--seed", "3", "--format", "jpg", "--name", "{stem}-{width}x{height}-{scale}-{seed}-{sampler}-{steps}"]
    assert cli(path, *flags).code == 0
    assert Image.open("samples/a-24x20-4-3-euler-2.jpg").format == "JPEG"
    for quality in ("20", "95"):
        cli(path, "-o", f"q{quality}.webp", "--quality", quality, "--seed", "3")
    assert os.path.getsize("q20.webp") < os.path.getsize("q95.webp")


def test_a_format_that_cannot_be_kept_is_told(cli):
    Image.new("RGB", (6, 5)).save("a.bmp")
    outcome = cli("a.bmp", "--format", "keep")
    assert "note: a.bmp: BMP is not written here: PNG instead" in outcome.err
    assert Image.open("samples/a_sr.png").format == "PNG"


def test_settings_in_the_picture_repeat_it(cli, picture, network):
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
def test_a_size_is_repeated_as_it_was_asked_for(cli, picture, flags, expected):
    """--width of a wide picture gives a high one that width, undistorted."""
    assert cli(picture("wide.png", (6, 4)), *flags, "-o", "first.png").code == 0
    cli(picture("high.png", (4, 6)), "--from-picture", "first.png", "-o", "second.png")
    assert size_of("second.png") == expected


def test_the_fast_preset_outweighs_the_sampling_of_an_earlier_picture(cli, picture):
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


def test_modes_and_budgets_give_the_same_picture(cli, picture):
    path = picture("a.png", (13, 9))
    runs = [["auto"], ["full"], ["ar"], ["ar2", "--block_batch", "2"], ["auto", "--memory", "1MiB"]]
    for number, (mode, *flags) in enumerate(runs):
        assert cli(path, "--seed", "1", "--inference_type", mode, *flags, "-o", f"{number}.png").code == 0
    first = pixels("0.png").astype(int)
    assert all(np.abs(pixels(f"{number}.png") - first).max() <= 1 for number in range(1, len(runs)))


def test_the_default_network(tmp_path, monkeypatch):
    from sat_sr.cli.errors import CannotRun
    from sat_sr.cli.find_network import find_network

    project = tmp_path / "project"
    monkeypatch.setattr("sat_sr.cli.find_network.__file__", str(project / "sat_sr/cli/find_network.py"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CannotRun, match=r"there are no weights in ckpt or .*mp_rank_00_model_states.pt.*--network"):
        find_network(None)
    # Each is preferred to those before it.
    for path in ("project/sat_sr/ckpt/mini.safetensors", "project/ckpt/mini.safetensors",
                 "ckpt/mini.safetensors", "project/ckpt/mp_rank_00_model_states.pt",
                 "ckpt/mp_rank_00_model_states.pt"):  # fmt: skip
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).touch()
        assert find_network(None).resolve() == tmp_path / path
    # Others may lie there: they are of whatever project.
    Path("ckpt/mp_rank_00_model_states.pt").rename("ckpt/other.pt")
    assert find_network(None).resolve() == tmp_path / "project/ckpt/mp_rank_00_model_states.pt"


def test_ranks_share_the_list(cli, picture, monkeypatch):
    pictures = [picture(f"{name}/same.png", seed=seed) for seed, name in enumerate("abcde")]
    lines = []
    for rank, names in ((0, ("SLURM_PROCID", "SLURM_NTASKS")), (1, ("RANK", "WORLD_SIZE"))):
        with monkeypatch.context() as patch:
            patch.setenv(names[0], str(rank))
            patch.setenv(names[1], "2")
            outcome = cli(*pictures, "--seed", "1", "--skip-existing")
            assert outcome.code == 0
            lines += [line for line in outcome.out.splitlines() if " -> samples" in line]
    assert sorted(line.partition(" -> ")[0] for line in lines) == [
        *(f"[0] {pictures[index]}" for index in (0, 2, 4)),
        *(f"[1] {pictures[index]}" for index in (1, 3)),
    ]
    # Distinct names for equal ones, and none twice.
    assert sorted(os.listdir("samples")) == sorted(["same_sr.png", *(f"same_sr_{n}.png" for n in (2, 3, 4, 5))])


def test_ranks_compute_one_picture_together(cli, picture, network):
    path = picture("a.png", (20, 30))
    flags = ["--network", network, "--seed", "1", "--device", "cpu"]
    code = (  # forked from one process that has imported everything: that takes longer than all the rest
        "import os, socket, sys, torch, sat_sr.cli.main, sat_sr.inference.denoiser\n"
        "with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]\n"
        "children = {}\n"
        "for rank in range(2):\n"
        "    pid = os.fork()\n"
        "    if not pid:\n"
        "        os.environ |= dict(RANK=str(rank), WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))\n"
        "        torch.set_num_threads(1)\n"
        "        os._exit(sat_sr.cli.main.main(sys.argv[1:]))\n"
        "    children[pid] = rank\n"
        "sys.exit(sum(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *map(str, [path, *flags, "-o", "together.png"])],
        capture_output=True, text=True, timeout=300, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("-> together.png") == 1, "one rank speaks for all"
    assert cli(path, *flags, "-o", "alone.png").code == 0
    assert np.abs(pixels("together.png").astype(int) - pixels("alone.png")).max() <= 1


@pytest.mark.parametrize(("rank", "code", "said"), [("0", 2, ["[0] error: one is not like the other"]), ("1", 1, [])])
def test_ranks_that_differ_end_all_and_the_first_one_tells(cli, picture, monkeypatch, rank, code, said):
    from sat_sr.inference import meeting

    def join(*args, **kwargs):
        raise meeting.RanksDiffer("one is not like the other")

    monkeypatch.setattr(meeting, "join", join)
    for name, value in {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    outcome = cli(picture("a.png"))
    assert (outcome.code, outcome.err.splitlines()) == (code, said)
    assert not Path("samples").exists()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1, 0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, (3, 8, 1, 2)),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}, (3, 8, 1, 1)),
        (  # srun -n 7 on four nodes, as `man srun` writes it
            {"SLURM_PROCID": "6", "SLURM_NTASKS": "7", "SLURM_NODEID": "3", "SLURM_STEP_TASKS_PER_NODE": "2(x3),1"},
            (6, 7, 0, 1),
        ),
        (
            {"SLURM_PROCID": "5", "SLURM_NTASKS": "7", "SLURM_NODEID": "2", "SLURM_STEP_TASKS_PER_NODE": "2(x3),1"},
            (5, 7, 0, 2),
        ),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "7"}, (0, 1, 0, 1)),  # the batch script
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}, (1, 8, 0, 1)),
        (  # the shell of an allocation
            {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"},
            (0, 1, 0, 1),
        ),
    ],
)
def test_which_rank_this_is(environment, expected):
    rank = Rank.of(environment)
    assert (rank.number, rank.count, rank.local, rank.local_count) == expected


def test_ranks_that_share_a_list_have_one_seed(cli, picture, monkeypatch):
    pictures = [picture(f"{name}.png") for name in "ab"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    seeds = []
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        seeds += [json.loads(line)["seed"] for line in cli(*pictures, "--json").out.splitlines()]
    assert seeds == [0, 0]


def test_one_process_splits_no_picture(cli, picture):
    outcome = cli(picture("a.png"), "--split-picture")
    assert outcome.code == 0 and "note: --split-picture has no effect on one process" in outcome.err


def test_ranks_share_no_standard_input(cli, picture, monkeypatch):
    """Those of torchrun would each read a part of it."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    outcome = cli("-")
    assert outcome.code == 2 and "2 ranks cannot share standard input" in outcome.err


@pytest.mark.parametrize(
    ("rank", "world", "local_world", "told"),
    [("x", "2", "1", "RANK=x"), ("2", "2", "1", "RANK=2"), ("0", "2", "0", "LOCAL_WORLD_SIZE=0")],
)
def test_ranks_that_cannot_be(cli, picture, monkeypatch, rank, world, local_world, told):
    for name, value in {"RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": local_world}.items():
        monkeypatch.setenv(name, value)
    outcome = cli(picture("a.png"))
    assert outcome.code == 2 and told in outcome.err.replace("'", "")


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


# --- interrupted ------------------------------------------------------------------------------------------------------
def test_control_c_leaves_whole_pictures_only_and_the_run_continues(cli, picture, upscaler, monkeypatch):
    before = signal.getsignal(signal.SIGINT)  # a test run in the background ignores it
    pictures = [picture(f"{name}.png") for name in "abc"]
    original, calls = upscaler.run, itertools.count()

    def interrupted(*args, **kwargs):
        if next(calls) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(upscaler, "run", interrupted)
        outcome = cli(*pictures, "--seed", "1")
    assert outcome.code == 130
    assert "interrupted" in outcome.err and "Traceback" not in outcome.err
    assert os.listdir("samples") == ["a_sr.png"]
    assert signal.getsignal(signal.SIGINT) is before

    outcome = cli(*pictures, "--seed", "1", "--skip-existing")
    assert outcome.code == 0 and outcome.out.splitlines()[-1] == "2 done, 1 skipped"
    assert sorted(os.listdir("samples")) == ["a_sr.png", "b_sr.png", "c_sr.png"]


def test_a_second_control_c_ends_at_once():
    code = (
        "import os, signal\nfrom sat_sr.cli.main import _signals\n"
        "with _signals():\n"
        "    try: os.kill(os.getpid(), signal.SIGINT); signal.pause()\n"
        "    except KeyboardInterrupt: os.kill(os.getpid(), signal.SIGINT); print('not ended')"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (130, "")


def test_a_killed_run_leaves_no_half_picture_and_continues(cli, picture):
    pictures = [picture(f"{name}.png") for name in "abc"]
    assert end_while_writing(cli, pictures, signal.SIGKILL) == -signal.SIGKILL
    assert len(list(Path("samples").glob(".sat-sr-*"))) == 1, "the half-written picture"
    assert [path.name for path in Path("samples").glob("*.png")] == ["a_sr.png"]
    written = os.stat("samples/a_sr.png").st_mtime_ns

    outcome = cli(*pictures, "--seed", "1", "--skip-existing")
    assert outcome.code == 0 and outcome.out.splitlines()[-1] == "2 done, 1 skipped"
    assert sorted(os.listdir("samples")) == ["a_sr.png", "b_sr.png", "c_sr.png"], "leftovers are swept"
    assert os.stat("samples/a_sr.png").st_mtime_ns == written
    assert size_of("samples/b_sr.png") == (24, 20)


def end_while_writing(cli, pictures, number: signal.Signals) -> int:
    """Exit code of a process of its own that gets a signal when its second picture is written but not renamed yet."""
    child = os.fork()
    if not child:
        code = 1
        try:
            torch.set_num_threads(1)  # the threads of OpenMP did not survive the fork
            syncs = itertools.count()
            os.fsync = lambda file: None if next(syncs) != 2 else time.sleep(600)  # each file and its folder are synced
            code = cli(*pictures, "--seed", "1").code
        finally:
            os._exit(code)
    try:
        wait_until(lambda: Path("samples/a_sr.png").exists() and list(Path("samples").glob(".sat-sr-*")))
        time.sleep(0.1)
    finally:
        os.kill(child, number)
        status = os.waitpid(child, 0)[1]
    return os.waitstatus_to_exitcode(status)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_a_picture_is_written_leaves_no_part_of_it(cli, picture, number, code):
    assert end_while_writing(cli, [picture(f"{name}.png") for name in "abc"], number) == code
    assert os.listdir("samples") == ["a_sr.png"]


def wait_until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


# --- no flag in vain --------------------------------------------------------------------------------------------------
def test_no_flag_is_parsed_in_vain(cli, picture, monkeypatch):
    """Every flag is looked at by something beyond the parser when the program runs."""
    read: set[str] = set()

    class Recording:
        def __init__(self, namespace):
            self.__dict__["namespace"] = namespace

        def __getattr__(self, name):
            read.add(name)
            return getattr(self.namespace, name)

    parse = main.parse_arguments
    monkeypatch.setattr(main, "parse_arguments", lambda *args: Recording(parse(*args)))
    path = picture("a.png")
    cli(path, "-o", "a.jpg", "--from-picture", path)
    cli(path, "--size", "30x20")
    cli(path, "--estimate")
    cli(path, load=True)
    # The parser itself turns these into others.
    settled_by_the_parser = {"input_type", "input_path", "version", "help", *SIZE_FLAGS}
    settled_by_the_parser |= {*SETTLED, "num_layers", "hidden_size", "num_attention_heads", "patch_size",
                              "image_block_size", "image_size", "vector_dim"}  # fmt: skip
    flags = {action.dest for action in make_parser()._actions}
    assert flags - read - settled_by_the_parser == set()


@pytest.mark.parametrize(
    ("flag", "other"),
    [
        ("--sampler", "dpmpp_2m"), ("--num-steps", "5"), ("--sigma-max", "1"), ("--sigma-min", "0.5"),
        ("--strength", "0.3"), ("--no-init-noise", None), ("--color-fix", "mean"), ("--seed", "2"), ("--fast", None),
        ("--bf16", None),
    ],
)  # fmt: skip
def test_sampling_flags_change_the_picture(cli, picture, flag, other):
    path = picture("a.png")
    cli(path, "--seed", "1", "--num-steps", "3", "-o", "plain.png")
    plain = [] if flag == "--fast" else ["--num-steps", "3"]
    given = [flag] if other is None else [flag, other]
    # dtype is decided at loading: take the weights from their file.
    assert cli(path, "--seed", "1", *plain, *given, "-o", "changed.png", load=flag == "--bf16").code == 0
    assert not np.array_equal(pixels("plain.png"), pixels("changed.png"))


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--device", "tpu"], "device 'tpu'"),
        (["--device", "meta"], "device 'meta' is not used: use --device auto, cpu, cuda or mps"),
        (["--device", "cuda:7"], "device 'cuda:7' is not available"),
        (["--kernel", "flash"], "kernel 'flash' needs"),
        (["--offload", "all"], "offload 'all': device cpu has no memory of its own"),
        (["--max-pixels", "10"], "6x5 px, 30 pixels where 10 are allowed"),
        (["--memory", "1KiB"], "1.0 KiB may be used"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for what a machine without a GPU has not")
def test_flags_about_the_machine_act(cli, picture, flags, sentence):
    outcome = cli(picture("a.png"), *flags)
    assert outcome.code in (1, 2) and sentence in outcome.err
