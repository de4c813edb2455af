"""show_degradation.py, bench_degradation.py and plot_log.py, called as commands."""

from __future__ import annotations

import importlib.util
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a script's main: why it stopped (None: it did not), what it printed, what it complained about."""

    def run(script: str, *arguments: object) -> tuple[object, str, str]:
        spec = importlib.util.spec_from_file_location(script, SCRIPTS / f"{script}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr("sys.argv", [f"{script}.py", *map(str, arguments)])
        threads, stopped = torch.get_num_threads(), None
        try:
            module.main()
        except SystemExit as stop:
            stopped = stop.code
        finally:
            torch.set_num_threads(threads)
        printed = capsys.readouterr()
        return stopped, printed.out, printed.err

    return run


@pytest.fixture
def photos(tmp_path):
    """Two pictures of 70×64."""
    paths = []
    for name in ("astronaut", "coffee"):
        paths.append(tmp_path / f"{name}.png")
        Image.fromarray(getattr(skimage.data, name)()[100:164, 100:170]).save(paths[-1])
    return paths


def cells(sheet: Path, rows: int, size: int) -> list[list[np.ndarray]]:
    """The pictures of a sheet, white lines of 8 pixels between them."""
    pixels = np.asarray(Image.open(sheet))
    assert pixels.shape == (rows * size + (rows - 1) * 8, 3 * size + 2 * 8, 3)
    assert (pixels[:, size : size + 8] == 255).all()
    starts = [at * (size + 8) for at in range(max(rows, 3))]
    return [[pixels[y : y + size, x : x + size] for x in starts[:3]] for y in starts[:rows]]


def test_the_sheet_shows_original_degraded_and_bicubic(run, photos, tmp_path):
    sheet = tmp_path / "sheet.png"
    stopped, said, _ = run("show_degradation", *photos, "-o", sheet, "--size", 64, "--rows", 3, "--seed", 1)
    assert stopped is None and "row 3: astronaut.png: " in said and "JPEG" in said
    for row, (original, degraded, enlarged) in enumerate(cells(sheet, 3, 64)):
        photo = np.asarray(Image.open(photos[row % 2]))
        assert any(np.array_equal(original, photo[:, left : left + 64]) for left in range(7))
        low = degraded[::4, ::4]
        assert np.array_equal(degraded, low.repeat(4, axis=0).repeat(4, axis=1))
        wanted = np.asarray(Image.fromarray(low).resize((64, 64), Image.Resampling.BICUBIC)).astype(int)
        assert np.abs(enlarged - wanted).max() <= 2  # Pillow rounds between the two directions
        reduced = np.asarray(Image.fromarray(original).resize((16, 16), Image.Resampling.BICUBIC)).astype(int)
        assert 3 < np.abs(low - reduced).mean() < 60  # degraded, and still this picture
    again = tmp_path / "again.png"
    run("show_degradation", *photos, "-o", again, "--size", 64, "--rows", 3, "--seed", 1)
    assert again.read_bytes() == sheet.read_bytes()
    run("show_degradation", *photos, "-o", again, "--size", 64, "--rows", 3, "--seed", 2)
    assert again.read_bytes() != sheet.read_bytes()


def test_pictures_are_read_as_training_reads_them(run, tmp_path):
    """16 bits of grey are not cut off at 255, a picture that EXIF turns is upright, and what is clear is white."""
    values = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray((values >> 8).astype(np.uint8)).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(np.zeros((64, 64, 4), np.uint8)).save(tmp_path / "clear.png")
    pictures = [tmp_path / f"{name}.png" for name in ("deep", "turned", "clear")]
    stopped, _, _ = run("show_degradation", *pictures, "-o", tmp_path / "sheet.png", "--size", 64)
    assert stopped is None
    deep, turned, clear = (row[0][..., 0] for row in cells(tmp_path / "sheet.png", 3, 64))
    assert np.array_equal(deep, np.rint(values / 257)) and (clear == 255).all()
    assert np.array_equal(turned, (values >> 8)[::-1, ::-1])
    (tmp_path / "deep.png").write_bytes(b"no picture")
    assert "deep.png cannot be read" in run("show_degradation", *pictures, "-o", tmp_path / "again.png")[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--size", "128"], "has 70x64 pixels: choose --size 64 or less"),
        (["--degradation", "harsh"], "known are strong, mild, clean"),
        (["-o", "sheet.gone"], ".gone is not a picture format"),
    ],
)
def test_what_cannot_be_shown_is_one_sentence(run, photos, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    stopped, _, _ = run("show_degradation", *photos, "-o", "sheet.png", "--size", 64, *arguments)
    assert words in stopped
    assert {path.suffix for path in tmp_path.iterdir()} == {".png"} and not Path("sheet.png").exists()


def test_the_benchmark_s_table_adds_up(run, photos):
    stopped, said, _ = run("bench_degradation", photos[0], "--size", 128, "--samples", 3, "--batch", 2)
    assert stopped is None and said.startswith(
        "strong, 2 × 128×128, cpu, 1 thread(s), 3 calls, milliseconds per call\n"
    )
    mean, median, most = map(float, re.search(r"wall clock +mean +(\S+) +median +(\S+) +max +(\S+)", said).groups())
    assert 0 < median <= most and 0 < mean <= most
    steps = dict(re.findall(r"^  (blur|resize|noise|JPEG|range check|8-bit rounding|other) +(\S+)", said, re.MULTILINE))
    assert len(steps) == 7 and all(float(steps[name]) > 0 for name in steps if name != "other"), steps
    assert sum(map(float, steps.values())) == pytest.approx(mean, abs=0.5)
    assert "--samples and --batch must be at least 1" in run("bench_degradation", "--samples", 0)[2]
    assert "known are strong" in run("bench_degradation", "--degradation", "harsh")[0]


def test_curves_are_drawn_to_scale(run, tmp_path):
    records = [{"kind": "train", "step": step, "loss": loss} for step, loss in ((10, 1.0), (20, 0.1), (40, 0.01))]
    records.append({"kind": "valid", "step": 20, "loss": 0.1})
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "log.jsonl").write_text(lines + '{"kind": "tra')  # the run goes on
    assert run("plot_log", tmp_path, tmp_path / "loss.svg")[0] is None
    drawn = (tmp_path / "loss.svg").read_text()
    thin, thick = re.findall(r'<polyline points="([^"]+)"', drawn)
    points = [tuple(map(float, point.split(","))) for point in thin.split()]
    (dot,) = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', drawn)
    assert tuple(map(float, dot)) == points[1]
    (x1, y1), (x2, y2), (x3, y3) = points
    assert x3 - x2 == pytest.approx(2 * (x2 - x1), abs=0.2)  # steps are linear
    assert y2 - y1 == pytest.approx(y3 - y2, abs=0.2) and y1 < y2  # losses logarithmic, the small ones below
    ticks = {float(label): float(y) - 4 for y, label in re.findall(r' y="([\d.]+)" text-anchor="end">([\d.]+)<', drawn)}
    assert {0.01, 0.1, 1.0} <= set(ticks) and ticks[0.1] == pytest.approx(y2, abs=0.2)
    smooth = [float(point.split(",")[1]) for point in thick.split()]
    value = 1.0 + 0.1 * (0.1 - 1.0)
    assert smooth[1] == pytest.approx(y1 + (y2 - y1) * -math.log10(value), abs=0.2)


def test_a_run_without_a_curve_is_named(run, tmp_path):
    assert "name the folder of a training run" in run("plot_log", tmp_path / "gone", tmp_path / "loss.svg")[2]
    (tmp_path / "log.jsonl").write_text('{"kind": "train", "step": 1, "loss": 1.0}\n')
    assert "has 1 logged intervals: two are needed" in run("plot_log", tmp_path, tmp_path / "loss.svg")[2]
    assert not (tmp_path / "loss.svg").exists()
