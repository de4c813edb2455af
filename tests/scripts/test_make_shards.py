"""scripts/make_shards.py and make_tiles.py as a user runs them."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from sat_sr.data.tiles import Tile, candidates, choose, detail_map, grid, halve, jpeg_quality
from sat_sr.data.validation_set import validation_samples

ROOT = Path(__file__).resolve().parents[2]


def script(name: str):
    """The script as a module, to run in this process: starting one anew takes longer than the tests."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a script's main; gives what it said and why it stopped, None where it did its work."""

    def run(name: str, *arguments) -> tuple[str, str | None]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        handler = signal.getsignal(signal.SIGTERM)
        try:
            script(name).main()
            stopped = None
        except SystemExit as exit:
            stopped = str(exit.code)
        finally:
            signal.signal(signal.SIGTERM, handler)
        said = capsys.readouterr()
        return said.out + said.err, stopped

    return run


def noise(seed: int, width: int, height: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def samples(folder: Path) -> dict[str, dict]:
    tars = sorted(map(str, folder.glob("*.tar")))
    return {sample["__key__"]: sample for sample in webdataset.WebDataset(tars, shardshuffle=False)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("x") / "photos"
    (folder / "trip.2").mkdir(parents=True)
    Image.fromarray(noise(0, 80, 70)).save(folder / "plain.jpg", quality=90)
    Image.fromarray(noise(1, 80, 70)).save(folder / "plain.png")  # the same stem
    Image.fromarray(noise(2, 80, 70)[..., 0]).save(folder / "trip.2" / "grey.jpg")
    Image.fromarray(noise(3, 80, 70, 4), "CMYK").save(folder / "trip.2" / "print.jpg")
    Image.fromarray(np.full((70, 80), 0x8000, np.uint16)).save(folder / ("ü" * 60 + ".tif"))
    Image.fromarray(noise(4, 63, 200)).save(folder / "narrow.png")
    (folder / "broken.jpg").write_bytes((folder / "plain.jpg").read_bytes()[:2000])
    (folder / "notes.txt").write_text("no picture")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right by a quarter to see it upright
    Image.fromarray(noise(5, 80, 70)).save(folder / "turned.jpg", exif=exif)
    return folder


def test_pictures_become_samples_that_name_their_source(run, photos, tmp_path):
    said, _ = run("make_shards", photos, tmp_path / "out", "--min-side", 64, "--jobs", 1)
    found = samples(tmp_path / "out")
    assert set(found) == {
        *("photos/plain", "photos/plain_2", "photos/trip_2/grey", "photos/trip_2/print", "photos/turned"),
        f"photos/{'ü' * 60}",
    }
    assert found["photos/plain"]["jpg"] == (photos / "plain.jpg").read_bytes()  # an RGB JPEG is stored as it is
    decoded = {key: webdataset.autodecode.imagehandler("pil")("jpg", sample["jpg"]) for key, sample in found.items()}
    assert {image.mode for image in decoded.values()} == {"RGB"}
    assert decoded["photos/turned"].size == (70, 80)
    assert np.asarray(decoded[f"photos/{'ü' * 60}"]).mean() == pytest.approx(128, abs=1)
    for line in ("skipped 1: a side below 64 px", "skipped 1: cannot be decoded", "skipped 1: not a picture"):
        assert line in said
    for part in ("narrow.png", "broken.jpg", "notes.txt", "1 grey", "1 CMYK", "1 16-bit", "1 rotated by EXIF"):
        assert part in said
    assert "6 samples in 1 shards" in said


def test_a_jpeg_with_a_damaged_exif_block_is_a_picture_all_the_same(run, tmp_path):
    """Where the standard has a fraction there is a text: Pillow, which writes the block anew to turn, chokes on it."""
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x02\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\x01\x1a\0\x02\0\0\0\x03ab\0\0\0\0\0\0"
    (tmp_path / "photos").mkdir()
    Image.fromarray(noise(0, 80, 70)).save(tmp_path / "photos" / "a.jpg", exif=exif)
    said, stopped = run("make_shards", tmp_path / "photos", tmp_path / "out", "--min-side", 64, "--jobs", 1)
    assert stopped is None and "1 rotated by EXIF" in said and set(samples(tmp_path / "out")) == {"photos/a"}


def test_a_bar_counts_the_pictures_on_a_terminal_only(run, photos, tmp_path, monkeypatch):
    """Whatever becomes of them: of the eight, one is narrow and one broken."""
    said, _ = run("make_shards", photos, tmp_path / "quiet", "--min-side=64", "--jobs=1")
    assert "packing" not in said

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    run("make_shards", photos, tmp_path / "shown", "--min-side=64", "--jobs=1")
    first, *_, last, end = re.split("[\r\n]+", terminal.getvalue().strip("\r"))
    assert first.startswith("packing:   0%") and "| 0/8 [" in first
    assert last.startswith("packing: 100%") and "| 8/8 [" in last and not end


def test_a_picture_that_cannot_be_read_is_told_from_a_damaged_one(run, photos, tmp_path, monkeypatch):
    read = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        if path.name == "plain.jpg":
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    said, _ = run("make_shards", photos, tmp_path / "out", "--min-side", 64, "--jobs", 1)
    assert re.search(r"skipped 1: cannot be read \(Stale file handle\)\n +\S+plain.jpg\n", said)
    assert re.search(r"skipped 1: cannot be decoded\n +\S+broken.jpg\n", said)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux's sched_setaffinity")
def test_there_is_one_process_for_each_core_that_is_left_to_the_program(photos, tmp_path):
    """As Slurm leaves some of many: a process for each of a large node would take more memory than the job has."""
    script = Path(__file__).parents[2] / "scripts" / "make_shards.py"
    code = (
        "import os, runpy, sys\nos.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\nos.cpu_count = lambda: 500\n"
        "import sat_sr.data.processes as processes\nmap_over = processes.map_over\n"
        "processes.map_over = lambda jobs: print('jobs', jobs) or map_over(jobs)\n"
        "sys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')"
    )
    made = subprocess.run(
        [sys.executable, "-c", code, script, photos, tmp_path / "out", "--min-side=64"],
        capture_output=True, text=True, timeout=100, cwd=script.parents[1],
    )  # fmt: skip
    assert made.stdout.startswith("jobs 1\n"), made.stderr


def test_shards_are_filled_to_their_size_and_reproducible_with_any_number_of_jobs(run, photos, tmp_path):
    run("make_shards", photos, tmp_path / "one", "--min-side", 64, "--shard-size", "25KB", "--jobs", 1)
    script = ROOT / "scripts" / "make_shards.py"
    options = ["--min-side", "64", "--shard-size", "25KB", "--jobs", "2"]
    subprocess.run([sys.executable, script, photos, tmp_path / "two", *options], check=True, timeout=120)
    one, two = (
        {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / name).iterdir()}
        for name in ("one", "two")
    )
    assert one == two
    assert len(one) > 1
    assert len(samples(tmp_path / "one")) == 6


def test_tiles_cover_the_picture_without_overlap(run, tmp_path):
    pixels = noise(0, 200, 130)
    Image.fromarray(pixels).save(tmp_path / "p.png")
    run("make_shards", tmp_path / "p.png", tmp_path / "out", "--tile", 64, "--min-side", 8, "--jobs", 1)
    places = {(0, 0), (68, 0), (136, 0), (0, 66), (68, 66), (136, 66)}
    assert set(samples(tmp_path / "out")) == {f"p_x{x:05d}_y{y:05d}" for x, y in places}


def test_neighbouring_samples_are_of_different_photographs(run, tmp_path):
    """Eight photographs of 25 tiles, in shards of about 16: a batch, or a part of the validation set, is of several."""
    (tmp_path / "in").mkdir()
    for photo in range(8):
        Image.fromarray(noise(photo, 320, 320)).save(tmp_path / "in" / f"p{photo}.png")
    options = ["--tile", 64, "--min-side", 8, "--jobs", 1, "--shard-size", "200KB"]
    run("make_shards", tmp_path / "in", tmp_path / "out", *options)
    packed = samples(tmp_path / "out")
    photos = [key.split("_")[0] for key in packed]
    assert len(photos) == len(set(packed)) == 8 * 25 and len(list((tmp_path / "out").iterdir())) > 5
    assert len(set(photos[:16])) >= 4
    assert all(len(set(photos[at : at + 16])) >= 4 for at in range(0, 192, 16))
    valid, _ = validation_samples(f";{tmp_path / 'out'}", image_size=64, limit=8)
    assert len({sample["__key__"].split("_")[0] for sample in valid}) > 1
    pixels = np.asarray(Image.open(io.BytesIO(packed["in/p3_x00128_y00064"]["jpg"])))
    assert np.abs(pixels.astype(int) - noise(3, 320, 320)[64:128, 128:192]).mean() < 10  # the right tile under its name


def test_nothing_is_overwritten_and_nothing_usable_writes_nothing(run, photos, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").touch()
    assert "nothing is overwritten" in run("make_shards", photos, out)[0]
    assert "no such file" in run("make_shards", tmp_path / "gone", tmp_path / "new")[1]
    said, stopped = run("make_shards", photos, tmp_path / "new", "--min-side", 5000, "--jobs", 1)
    assert "none of the 8 pictures can be used" in stopped
    assert "a side below 5000 px" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize(("number", "jobs"), [(signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGKILL, 2)])
def test_interrupted_it_leaves_nothing_under_a_final_name(tmp_path, number, jobs):
    (tmp_path / "in").mkdir()
    data = tmp_path / "in" / "0000.png"
    Image.fromarray(noise(0, 600, 600)).save(data)
    for n in range(1, 300):
        os.link(data, tmp_path / "in" / f"{n:04d}.png")
    work = tmp_path / "work"
    work.mkdir()
    script = ROOT / "scripts" / "make_shards.py"
    process = subprocess.Popen(
        [sys.executable, script, tmp_path / "in", work / "out", "--shard-size=1MB", f"--jobs={jobs}"],
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background ignores SIGINT, and its children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 60
    while not any(work.glob(".out.*/*.tar")) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None, "it ended before it could be interrupted"
    process.send_signal(number)
    _, said = process.communicate(timeout=60)  # returns when the processes that it started have ended too
    assert process.returncode != 0
    assert not (work / "out").exists()
    if number != signal.SIGKILL:
        assert "interrupted, nothing was written" in said
        assert not any(work.iterdir())


def test_detail_is_what_bicubic_loses():
    """A wave of 2 pixels is lost altogether: its variance is the error; of one of 64 pixels almost nothing is lost."""
    x = np.arange(256)
    for period, level in ((2, 0.25), (64, 1.0)):
        wave = 127.5 + 100 * np.cos(2 * np.pi * x / period)
        image = Image.fromarray(np.broadcast_to(wave[None, :, None], (256, 256, 3)).astype(np.uint8))
        error = detail_map(image)[32:-32, 32:-32].mean()
        variance = (np.asarray(image, float) / 255).var()
        assert error == pytest.approx(variance, rel=0.02) if period == 2 else error < 0.001 * variance * level


def test_grid_finds_the_detailed_quarter_and_low_quality_jpegs_are_halved(tmp_path):
    pixels = np.full((128, 128, 3), 90, np.uint8)
    pixels[64:, 64:] = noise(0, 64, 64)
    image = Image.fromarray(pixels)
    tiles = grid(image, 64, photo="p")
    assert [(tile.x, tile.y) for tile in tiles] == [(0, 0), (64, 0), (0, 64), (64, 64)]
    assert min(tiles, key=lambda tile: tile.psnr).key == "p__r1_x0064_y0064"
    for quality in (30, 60, 75, 90, 95):
        image.save(tmp_path / "q.jpg", quality=quality)
        with Image.open(tmp_path / "q.jpg") as stored:
            assert jpeg_quality(stored) == pytest.approx(quality, abs=1)
    assert {tile.reduced for tile in candidates(image, 64, photo="p", quality=75, also_half=False)} == {2}
    assert {tile.reduced for tile in candidates(image, 64, photo="p", quality=None, also_half=True)} == {1, 2}
    assert np.asarray(halve(image))[0, 0].tolist() == [90, 90, 90]


def test_choice_takes_the_most_detailed_within_the_cap_and_some_smooth_ones():
    tiles = [
        Tile(photo, 1, n, 0, 64, psnr)
        for photo, base in (("a", 20), ("b", 30))
        for n, psnr in enumerate([base, base + 1, base + 2, base + 3, 50, 52, 54, 56])
    ]
    chosen = choose(tiles, 8, detailed=38, per_photo=3, smooth_share=0.25)
    assert [(tile.photo, tile.psnr) for tile in chosen[:6]] == [
        ("a", 20),
        ("a", 21),
        ("a", 22),
        ("b", 30),
        ("b", 31),
        ("b", 32),
    ]
    assert sorted(tile.photo for tile in chosen[6:]) == ["a", "b"]
    assert all(tile.psnr >= 50 for tile in chosen[6:])


def test_make_tiles_writes_the_pixels_it_names(run, tmp_path):
    pixels = np.full((128, 192, 3), 90, np.uint8)
    pixels[:64, 128:] = noise(0, 64, 64)
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in" / "p.png")
    said, _ = run("make_tiles", tmp_path / "in", tmp_path / "out", "--tile", 64, "--jobs", 1)
    assert "1 tiles of 64 px from 1 of 1 photographs" in said
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "p__r1_x0128_y0000.png")), pixels[:64, 128:])
    assert (tmp_path / "out" / "tiles.tsv").read_text().splitlines()[1].startswith("p__r1_x0128_y0000.png\t")


def test_make_tiles_skips_what_cannot_be_read_and_says_so(run, tmp_path):
    (tmp_path / "in").mkdir()
    Image.fromarray(noise(0, 128, 128)).save(tmp_path / "in" / "good.png")
    (tmp_path / "in" / "bad.png").write_bytes((tmp_path / "in" / "good.png").read_bytes()[:500])
    options = ["--tile", 64, "--jobs", 1]
    said, stopped = run("make_tiles", tmp_path / "in", tmp_path / "out", *options)
    assert stopped is None and "tiles of 64 px from 1 of 2 photographs" in said
    assert f"skipped {tmp_path / 'in' / 'bad.png'}: cannot be decoded (" in said
    said, stopped = run("make_tiles", tmp_path / "in" / "bad.png", tmp_path / "none", *options)
    assert "cannot be decoded" in said and "none of the 1 photographs can be used" in stopped
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


@pytest.mark.parametrize(
    ("flag", "value", "wanted"),
    [
        ("--smooth", "1", "from 0 to below 1"), ("--smooth", "-0.1", "from 0 to"), ("--smooth", "nan", "from 0 to"),
        ("--count", "0", "at least 1"), ("--per-photo", "0", "at least 1"), ("--jobs", "0", "at least 1"),
    ],
)  # fmt: skip
def test_make_tiles_refuses_what_gives_no_tiles(run, tmp_path, flag, value, wanted):
    said, stopped = run("make_tiles", tmp_path, tmp_path / "out", flag, value)
    assert stopped == "2" and f"{flag} {value}: " in said and wanted in said


def test_names_that_are_no_utf_8_are_listed_and_packed(run, tmp_path, monkeypatch):
    folder = tmp_path / "in"
    folder.mkdir()
    try:
        (folder / os.fsdecode(b"b\xe9.jpg")).write_bytes(b"broken")
    except OSError:
        pytest.skip("this file system has no such names")
    Image.fromarray(noise(0, 80, 80)).save(folder / os.fsdecode(b"g\xe9.png"))
    for name, options in (("make_shards", ["--min-side", 64]), ("make_tiles", ["--tile", 64])):
        said, stopped = run(name, folder, tmp_path / name, *options, "--jobs", 1)
        assert stopped is None and r"b\udce9.jpg" in said
    assert b"\ng\xe9__r1" in (tmp_path / "make_tiles" / "tiles.tsv").read_bytes()
    assert (tmp_path / "make_tiles" / os.fsdecode(b"g\xe9__r1_x0008_y0008.png")).exists()
