"""The program from start to finish, on tiny pictures with random weights."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image, ImageCms

from sat_sr.inference.budget import PROGRAM_BYTES


def test_a_picture_is_upscaled_like_in_python(cli, picture, upscaler, network, pixels):
    path = picture("a b.png", (9, 7))
    outcome = cli(path, "--seed", "5", load=True)
    assert (outcome.code, outcome.err) == (0, "")
    settings = {"sampler": "euler", "num_steps": 2, "sigma_max": 2.0}  # the checkpoint's own
    expected = upscaler(Image.open(path), scale=4, seed=5, **settings)
    assert np.array_equal(pixels("samples/a b_sr.png"), np.asarray(expected))
    first, line, last = outcome.out.splitlines()
    assert first.startswith(f"network {network}")
    assert line.startswith(
        f"{path}: 9x7 -> 36x28, canvas 48x32, 3x2 blocks of 16 px | auto: layer-major, groups of 3x2 blocks along "
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
def test_sizes(cli, picture, flags, expected, size_of):
    outcome = cli(picture("a.png", (10, 6)), *flags)
    assert outcome.code == 0
    assert size_of("samples/a_sr.png") == expected
    assert ("so it is done in 2 passes, to 22x13 and 50x30" in outcome.err) == ("5" in flags)


def test_round_crops_around_the_centre_as_the_release_did(cli, picture, pixels):
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


def test_every_kind_of_input(cli, picture, tmp_path):
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
    answers = iter(["*.png", "it*.png"])
    outcome = cli("-o", "one.png")
    assert "is one file for 2 pictures" in outcome.err and Path("one.png").exists(), "and it asks again"
    picture("folder/a.png")
    answers = iter(["folder", "folder"])
    cli("--out-dir", "folder")
    assert sorted(os.listdir("folder")) == ["a.png", "a_sr.png", "a_sr_2.png"], "earlier outputs are left out"


def test_without_standard_output_pictures_are_made(cli, picture, monkeypatch, size_of):
    path = picture("a.png")
    monkeypatch.setattr("sys.stdout", None)
    monkeypatch.setattr("sys.stderr", None)
    assert cli(path, "nothere.png").code == 1
    assert size_of("samples/a_sr.png") == (24, 20)


def test_without_standard_input_nothing_is_asked(cli, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    outcome = cli()
    assert (outcome.code, outcome.err) == (0, "")


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


def test_a_suffix_that_does_not_say_the_format_is_not_kept_and_it_is_told(cli):
    Image.new("RGB", (6, 5)).save("a.jpg")
    Image.new("RGB", (6, 5)).save("e.png")
    for source, name in (("a.jpg", "b.mpo"), ("a.jpg", "c"), ("e.png", "d.jpg")):
        Path(name).write_bytes(Path(source).read_bytes())
    outcome = cli("a.jpg", "b.mpo", "c", "d.jpg", "--format", "keep")
    assert [line for line in outcome.err.splitlines() if "suffix" in line] == [  # what is true of several is said once
        "note: b.mpo: JPEG by its contents, but not by its suffix: PNG instead",
        "note: d.jpg: PNG by its contents, but not by its suffix: JPEG instead",
        "note: also c: JPEG by its contents, but not by its suffix: PNG instead",
    ]
    for name, format in (("a_sr.jpg", "JPEG"), ("b_sr.png", "PNG"), ("c_sr.png", "PNG"), ("d_sr.jpg", "JPEG")):
        assert Image.open(f"samples/{name}").format == format


def test_modes_and_budgets_give_the_same_picture(cli, picture, pixels):
    path = picture("a.png", (13, 9))
    little = str(PROGRAM_BYTES + (1 << 20))
    runs = [["auto"], ["full"], ["ar"], ["ar2", "--block_batch", "2"], ["auto", "--memory", little]]
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
