"""Sheets: what is in which cell, and where the worst place is."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from sat_sr.evaluation import sheet
from sat_sr.evaluation.metrics import Metrics
from sat_sr.evaluation.pairs import Pairs
from sat_sr.evaluation.runner import BICUBIC, TARGET, Evaluation, Run


@pytest.fixture
def evaluation(tmp_path):
    """Three pictures, the sharper the later: bicubic is worst on the last."""
    rng = np.random.default_rng(0)
    for i, contrast in enumerate((1, 20, 80)):
        noise = 128 + rng.uniform(-contrast, contrast, (72, 96, 3))
        Image.fromarray(noise.astype(np.uint8)).save(tmp_path / f"{i}.png")
    evaluation = Evaluation(Pairs(tmp_path), Metrics(["psnr_y", "flat_energy"]), tmp_path / "out")
    evaluation.evaluate([])
    return evaluation


def test_worst_is_lowest_psnr_and_highest_energy(evaluation, monkeypatch):
    figures = {
        "0": {"psnr_y": 31.0, "flat_energy": 0.4},
        "1": {"psnr_y": 27.5, "flat_energy": None},  # no flat area
        "2": {"psnr_y": 29.0, "flat_energy": 2.0},
    }
    monkeypatch.setattr(evaluation, "result", lambda run, name: {"figures": figures[name]})
    assert sheet.worst(evaluation, BICUBIC, "psnr_y") == ["1", "2", "0"]
    assert sheet.worst(evaluation, BICUBIC, "psnr_y", 2) == ["1", "2"]
    assert sheet.worst(evaluation, BICUBIC, "flat_energy") == ["2", "0"]


def test_the_sharpest_noise_is_the_worst_for_bicubic(evaluation):
    assert sheet.worst(evaluation, BICUBIC, "psnr_y") == ["2", "1", "0"]


def test_captions_of_grids_have_the_target_at_the_same_lines(evaluation, monkeypatch):
    network = Run("mine", "key", network="mine")
    results = {
        "mine": {"figures": {"block_grid_32": 1.25, "psnr_y": 30.0}, "target": {"block_grid_32": 1.0625}},
        "bicubic": {"figures": {"block_grid_32": 1.2, "psnr_y": 28.0}},
        "target": {"figures": {"block_grid_32": 1.0}},
    }
    monkeypatch.setattr(evaluation, "result", lambda run, name: results[run.title])
    pair = evaluation.pairs.read("1")
    monkeypatch.setattr(evaluation, "picture", lambda run, pair: pair.target)

    def captions(column: str) -> list[str]:
        row = sheet._row(evaluation, [BICUBIC, network, TARGET], pair, lambda picture: picture, column)
        return [caption for caption, _ in row]

    grid = "mine  block grid 32 px 1.250 (target 1.062)"
    assert captions("block_grid_32") == ["input", "bicubic", grid, "target"]
    assert captions("psnr_y") == ["input", "bicubic  PSNR(Y) 28.00 dB", "mine  PSNR(Y) 30.00 dB", "target"]


def test_picture_sheet_holds_the_pixels(evaluation):
    page = sheet.picture_sheet(evaluation, [], ["1", "2"])
    top, left = sheet.MARGIN + 2 * sheet.CAPTION, sheet.MARGIN
    pair = evaluation.pairs.read("1")
    cells = [page[top : top + 72, x : x + 96] for x in (left + i * (96 + sheet.MARGIN) for i in range(3))]
    np.testing.assert_array_equal(cells[0], pair.lr.repeat(4, 0).repeat(4, 1))
    np.testing.assert_array_equal(cells[1], evaluation.picture(BICUBIC, pair))
    np.testing.assert_array_equal(cells[2], pair.target)
    below, right = top + 72 + sheet.MARGIN + 2 * sheet.CAPTION, left + 2 * (96 + sheet.MARGIN)
    np.testing.assert_array_equal(page[below : below + 72, right : right + 96], evaluation.pairs.read("2").target)


def test_the_worst_place_is_found(tmp_path):
    flat = np.full((400, 300, 3), 128, np.uint8)
    speckled = flat.copy()
    speckled[200:320:2, 150:270:2] = 160
    Image.fromarray(flat).save(tmp_path / "x.png")
    pair = Pairs(tmp_path).read("x")
    top, left = sheet._worst_place(pair, speckled, flat_only=True)
    assert abs(top - (260 - 64)) <= 8 and abs(left - (210 - 64)) <= 8  # the window is 128, the speckles 120
    corner = flat.copy()
    corner[-3:, -3:] = 200
    top, left = sheet._worst_place(pair, corner, flat_only=False)
    assert (top, left) <= (272, 172) and top >= 400 - 128 - 8 and left >= 300 - 128 - 8
