"""Whatever comes in: one sentence that names the culprit, the others done, nothing half written, no traceback."""

from __future__ import annotations

import errno
import itertools
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from sat_sr.checkpoint import save_safetensors
from sat_sr.cli.arguments import make_parser
from sat_sr.inference.budget import PROGRAM_BYTES

ONE_BLOCK = ["--inference_type", "ar2", "--block_batch", "1"]  # at a time


def assert_one_sentence(text: str, fragment: str) -> None:
    assert fragment in text, text
    assert "Traceback" not in text and "error:" in text
    assert all(len(line) < 500 for line in text.splitlines())


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG that claims a size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I4s", len(content), kind) + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def truncated_jpeg(path: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: len(content) // 2])


BAD = {
    "missing.png": (lambda path: None, "missing.png is not there"),
    "text.png": (lambda path: Path(path).write_text("I am no picture"), "text.png holds no picture that can be read"),
    "cut.jpg": (truncated_jpeg, "cut.jpg is damaged"),
    "empty.png": (lambda path: Path(path).touch(), "empty.png is empty (0 bytes)"),
    "folder": (lambda path: Path(path).mkdir(), "folder holds no picture"),
    "link.png": (lambda path: os.symlink("nowhere.png", path), "link.png is a link to nowhere.png, which is not there"),
    "bomb.png": (lambda path: Path(path).write_bytes(png(60000, 60000)), "bomb.png says that it is 60000x60000 px"),
    "latin.txt": (lambda path: Path(path).write_bytes(b"caf\xe9.png\n"), "line 1: byte 0xe9 is not UTF-8"),
    "wide.txt": (lambda path: Path(path).write_text("a.png\n", encoding="utf-16"), "wide.txt is in UTF-16"),
    "none.txt": (lambda path: Path(path).write_text("# nothing\n"), "none.txt names no picture"),
    "bad.tar": (lambda path: Path(path).write_bytes(b"no tar"), "bad.tar is not a complete tar archive"),
    "no*thing": (lambda path: None, "nothing matches no*thing"),
    "pipe.png": (os.mkfifo, "pipe.png is not a regular file"),
    "list.txt": (lambda path: Path(path).mkdir(), "folder list.txt holds no picture"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_input_has_its_sentence_and_the_others_are_done(cli, picture, name):
    make, fragment = BAD[name]
    make(name)
    good = picture("good.png")
    outcome = cli(name, good)
    assert outcome.code == 1
    assert_one_sentence(outcome.err, fragment)
    assert os.listdir("samples") == ["good_sr.png"]
    alone = cli(name, "--out-dir", "nothing")
    assert alone.code == 1 and fragment in alone.err
    assert not Path("nothing").exists() or not os.listdir("nothing")


def test_odd_but_good_pictures_are_done(cli):
    Image.new("RGB", (1, 1), (9, 99, 199)).save("dot.png")
    Image.new("L", (30000, 1), 77).save("line.png")
    Image.new("RGB", (6, 5)).save("profile.png", icc_profile=b"garbage")
    Image.new("RGB", (6, 5)).save("exif.jpg", exif=b"Exif\0\0MM\0*garbage")
    assert cli("line.png", "--num-steps", "1", "--infer_sr_scale", "1").code == 0
    outcome = cli("dot.png", "profile.png", "exif.jpg", "--num-steps", "1")
    assert outcome.code == 0
    sizes = {path.stem: Image.open(path).size for path in Path("samples").iterdir()}
    assert sizes == {"dot_sr": (4, 4), "line_sr": (30000, 1), "profile_sr": (24, 20), "exif_sr": (24, 20)}
    for sentence in (
        "note: profile.png: the ICC profile does not parse (cannot open profile from string): left out, the colours "
        "are taken as sRGB",
        "note: exif.jpg: EXIF data does not parse",
    ):
        assert sum(sentence in line for line in outcome.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("flag", "fragment"),
    [
        ("--output", "-o folder: is a folder, and -o names the one output file: use --out-dir"),
        ("--network", "folder is a folder without the file 'latest'"),
        ("--from-picture", "--from-picture: folder is a folder where a picture file is wanted"),
    ],
)
def test_a_folder_where_a_file_is_meant(cli, picture, flag, fragment):
    Path("folder").mkdir()
    outcome = cli(picture("a.png"), flag, "folder", load=True)
    assert outcome.code == 2 and os.listdir("folder") == [] and not Path("samples").exists()
    assert_one_sentence(outcome.err, fragment)


def test_the_output_cannot_be_written(cli, picture):
    path = picture("a.png")
    Path("file").touch()
    outcome = cli(path, "--out-dir", "file/below")
    assert outcome.code == 2
    assert_one_sentence(outcome.err, "a part of the path is a file, not a folder: choose another folder")
    Path("there.png").mkdir()
    outcome = cli(path, "-o", "there.png")
    assert outcome.code == 2
    assert_one_sentence(outcome.err, "-o there.png: is a folder")
    outcome = cli(path, path.with_name("b.png"), "-o", "x.png")
    assert outcome.code == 2
    assert_one_sentence(outcome.err, "x.png is one file for 2 pictures")
    before = path.read_bytes()
    outcome = cli(path, "-o", path, "--overwrite")
    assert outcome.code == 2 and path.read_bytes() == before
    assert_one_sentence(outcome.err, "is itself an input")


def test_a_full_disk_leaves_nothing_half_written(cli, picture, monkeypatch):
    pictures = [picture(f"{name}.png") for name in "ab"]
    original, syncs = os.fsync, itertools.count()

    def full(file):
        if next(syncs) == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(file)

    monkeypatch.setattr(os, "fsync", full)
    outcome = cli(*pictures)
    assert outcome.code == 1
    assert_one_sentence(outcome.err, "cannot write samples/a_sr.png: the disk is full")
    assert os.listdir("samples") == ["b_sr.png"]


def test_a_picture_too_wide_for_jpeg_is_refused_before_the_work(cli, upscaler, monkeypatch):
    Image.new("L", (16400, 1)).save("wide.png")
    monkeypatch.setattr(upscaler, "run", None)
    outcome = cli("wide.png", "--format", "jpg")
    assert outcome.code == 1
    assert_one_sentence(outcome.err, "JPEG ends at 65,500 px a side, the picture is 65600x4 px")
    assert os.listdir("samples") == []


def test_a_size_below_the_picture_is_refused_with_a_hint(cli, picture):
    outcome = cli(picture("a.png", (60, 50)), picture("b.png", (6, 5)), "--width", "30")
    assert outcome.code == 1
    assert_one_sentence(outcome.err, "a.png: 60x50 to 30x25 makes the picture smaller")
    assert os.listdir("samples") == ["b_sr.png"]


def test_a_pass_that_does_not_fit_is_told_with_its_number(cli, picture):
    outcome = cli(picture("a.png"), "--infer_sr_scale", "16", "--memory", str(PROGRAM_BYTES + (200 << 10)))
    assert outcome.code == 1
    assert_one_sentence(outcome.err, "a.png: pass 2 of 2, to canvas 96x80 in mode auto needs about")
    assert os.listdir("samples") == []


def test_a_budget_too_small_for_a_block(cli, picture):
    outcome = cli(picture("a.png"), "--memory", "20MiB")
    assert outcome.code == 1
    assert_one_sentence(outcome.err, "20.0 MiB")
    outcome = cli("a.png", "--memory", str(PROGRAM_BYTES + (90 << 10)), "--inference_type", "full")
    assert outcome.code == 1
    assert_one_sentence(outcome.err, "use --inference_type auto, raise --memory, or close other programs")
    assert os.listdir("samples") == []


def test_nan_from_the_network_names_step_and_block_and_writes_nothing(cli, picture, network, upscaler, tmp_path):
    broken = {name: tensor.clone() for name, tensor in upscaler.model.state_dict().items()}
    # A position of the LR keys: NaN in every block, from the first call on.
    broken["mixins.adaln_layer.lr_key_position_embedding"].fill_(float("nan"))
    save_safetensors(tmp_path / "nan.safetensors", broken, upscaler.model.config)
    outcome = cli(picture("a.png"), "--network", "nan.safetensors", *ONE_BLOCK, load=True)
    assert outcome.code == 1
    assert_one_sentence(outcome.err, "in blocks (0,0)..(0,0) at network call 1, sigma 40, step 1 of 20: nothing")
    assert os.listdir("samples") == []


def test_the_step_of_a_late_nan(cli, picture, upscaler, monkeypatch):
    from sat_sr.inference import denoiser

    original = denoiser.Denoiser._call

    def late(self, x, sigma, offset):
        return original(self, x * float("nan") if self.calls == 4 else x, sigma, offset)

    monkeypatch.setattr(denoiser.Denoiser, "_call", late)
    outcome = cli(picture("a.png"), "--sampler", "heun", "--num-steps", "5")
    assert outcome.code == 1
    assert_one_sentence(outcome.err, "at network call 4")
    assert "step 2 of 5" in outcome.err


def test_memory_that_runs_out_is_one_sentence(cli, picture, upscaler, monkeypatch):
    def run_out(*args, **kwargs):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:116] . DefaultCPUAllocator: can't allocate memory\nmore")

    monkeypatch.setattr(upscaler, "run", run_out)
    outcome = cli(picture("a.png"))
    assert outcome.code == 1
    assert_one_sentence(outcome.err, "there is not enough memory")


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (None, "no such checkpoint"),
        (b"", "is empty"),
        (b"<html>", "is a web page and no checkpoint"),
        (b"PK\x03\x04garbage", "cut off or damaged"),
    ],
)
def test_weights_that_are_none(cli, picture, content, fragment):
    if content is not None:
        Path("bad.pt").write_bytes(content)
    outcome = cli(picture("a.png"), "--network", "bad.pt", load=True)
    assert outcome.code == 2
    assert_one_sentence(outcome.err, fragment)


def test_weights_of_another_architecture(cli, picture):
    torch.save({"module": {"conv.weight": torch.zeros(3, 3)}}, "other.pt")
    outcome = cli(picture("a.png"), "--network", "other.pt", load=True)
    assert outcome.code == 2
    assert_one_sentence(outcome.err, "other.pt is a checkpoint of another architecture")


# --- fuzz -------------------------------------------------------------------------------------------------------------
def seeds() -> list[bytes]:
    """Small pictures in every format, to be damaged."""
    import io

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8))
    files = []
    for format, mode in itertools.product(
        ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM"), ("RGB", "L", "P", "CMYK", "RGBA", "I;16")
    ):
        image = Image.new(mode, (6, 5), 9) if mode == "I;16" else picture.convert(mode)
        buffer = io.BytesIO()
        try:
            image.save(buffer, format=format)
        except (OSError, ValueError):
            continue
        files.append(buffer.getvalue())
    return files


SEEDS = seeds()


@st.composite
def almost_pictures(draw) -> bytes:
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data) - 1))
        kind = draw(st.sampled_from(("byte", "cut", "insert", "word")))
        if kind == "byte":
            data[at] = draw(st.integers(0, 255))
        elif kind == "cut":
            del data[at : at + draw(st.integers(1, 40))]
        elif kind == "insert":
            data[at:at] = draw(st.binary(max_size=8))
        else:
            data[at : at + 4] = draw(st.sampled_from((b"\0" * 4, b"\xff" * 4, b"\0\0\x20\0", b"\x7f\xff\xff\xff")))
        if not data:
            return b""
    return bytes(data)


FUZZ = settings(
    deadline=None, database=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


@pytest.fixture
def no_sync(monkeypatch):
    """Hundreds of files need not be on the disk."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


def assert_decent(outcome) -> None:
    """An exit code that is documented, an error told if and only if there was one, nothing half written."""
    assert outcome.code in (0, 1, 2)
    assert "Traceback" not in outcome.err
    assert (outcome.code != 0) == ("error:" in outcome.err)
    assert not list(Path().rglob(".sat-sr-*"))


@settings(FUZZ, max_examples=500)
@given(data=st.one_of(almost_pictures(), st.binary(max_size=64)), suffix=st.sampled_from((".png", ".jpg", ".tiff", "")))
def test_almost_pictures(cli, no_sync, data, suffix):
    name = f"fuzz{suffix}"
    Path(name).write_bytes(data)
    outcome = cli(name, "--num-steps", "1", "--overwrite", "--infer_sr_scale", "1.5", "--max-pixels", "10000")
    assert outcome.code in (0, 1)
    assert_decent(outcome)


LEFT_OUT = {"compile", "help", "version", "max_pixels"}  # takes a minute; ends the program; keeps the pictures small
FLAGS = [action for action in make_parser()._actions if action.option_strings and action.dest not in LEFT_OUT]
SWITCHES = [spelling for action in FLAGS if action.nargs == 0 for spelling in action.option_strings]
# fmt: off
ODD = (
    "0", "1", "2", "3.5", "-1", "nan", "1e9", "1e308", "99999999999", "7x9", "0x100", "x", "", " ", "-", "auto", "é",
    "1KiB", "{stem}", "{width:>99999999999}", "\x1b[31m", "/dev/null", "../x", "x.png", "a.png", "b.txt",
)
# fmt: on


@st.composite
def odd_flags(draw) -> str:
    """--flag=value, for any flag that takes one: a value that it knows, or one that it does not."""
    action = draw(st.sampled_from([action for action in FLAGS if action.nargs is None]))
    known = draw(st.booleans()) and action.choices
    value = draw(st.sampled_from(list(action.choices) if known else ODD))
    return f"{action.option_strings[-1]}={value}"


@settings(FUZZ, max_examples=500)
@given(
    flags=st.lists(odd_flags(), max_size=3),
    switches=st.lists(st.sampled_from(SWITCHES), max_size=2),
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
)
def test_odd_flags_and_sizes(cli, no_sync, flags, switches, size):
    Image.new("RGB", size, (1, 2, 3)).save("a.png")
    assert_decent(cli("a.png", *flags, *switches, "--max-pixels", "100"))
    assert Image.open("a.png").size == size, "an input is never written to"
