"""Figures against closed forms, and the choice of metrics."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sat_sr.evaluation import columns
from sat_sr.evaluation import metrics as m


def grey(value: int, side: int = 64) -> np.ndarray:
    return np.full((side, side, 3), value, np.uint8)


def test_psnr_of_a_constant_error():
    assert m.psnr(grey(100), grey(110)) == pytest.approx(20 * math.log10(255 / 10))
    # Grey g has Y = 16 + 219 g / 255 in studio range: the error shrinks by 219/255.
    assert m.psnr(m.luma(grey(100)), m.luma(grey(110))) == pytest.approx(20 * math.log10(255 / (10 * 219 / 255)))
    assert m.psnr(grey(7), grey(7)) == m.PSNR_OF_EQUAL_PICTURES


def test_luma_has_the_weights_of_bt601():
    red, green, blue = (m.luma(np.eye(3, dtype=np.uint8)[None, None, i] * 255)[0, 0] for i in range(3))
    assert (red, green, blue) == pytest.approx((16 + 65.481, 16 + 128.553, 16 + 24.966))


def test_ssim_of_constant_pictures_is_its_luminance_term():
    a, b, c1 = 100.0, 140.0, (0.01 * 255) ** 2
    assert m.ssim(grey(100), grey(140)) == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1), rel=1e-6)


def test_ssim_is_the_formula_of_wang_et_al():
    """Equation 13 with windows of 11 x 11 pixels, Gaussian of σ 1.5, written out; the mean over all that fit."""
    rng = np.random.default_rng(0)
    first = rng.integers(0, 256, (20, 17), dtype=np.uint8)
    second = np.clip(first + rng.normal(5, 40, first.shape), 0, 255).astype(np.uint8)
    bell = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    weights = np.outer(bell, bell) / bell.sum() ** 2
    c1, c2, found = (0.01 * 255) ** 2, (0.03 * 255) ** 2, []
    for y in range(20 - 10):
        for x in range(17 - 10):
            a, b = (picture[y : y + 11, x : x + 11].astype(float) for picture in (first, second))
            mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
            variance_a, variance_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
            covariance = (weights * (a - mean_a) * (b - mean_b)).sum()
            luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
            found.append(luminance * (2 * covariance + c2) / (variance_a + variance_b + c2))
    assert m.ssim(first, second) == pytest.approx(np.mean(found), rel=1e-6)
    assert 0.2 < np.mean(found) < 0.95
    colours = [np.stack([picture, first, second], axis=-1) for picture in (first, second)]
    assert m.ssim(*colours) == pytest.approx((np.mean(found) + 1 + 1) / 3, rel=1e-6)


def test_consistency_sees_what_was_added_to_the_input():
    lr = np.random.default_rng(0).integers(30, 200, (16, 20, 3), dtype=np.uint8)
    # Repeating pixels and reducing again is not exact, a constant is: bicubic weights sum to 1.
    assert m.consistency(grey(90, 16), grey(90, 64)) == m.PSNR_OF_EQUAL_PICTURES
    assert m.consistency(grey(90, 16), grey(95, 64)) == pytest.approx(20 * math.log10(255 / 5), abs=1e-3)
    assert m.consistency(lr, np.repeat(np.repeat(255 - lr, 4, 0), 4, 1)) < 15


def test_columns_and_missing_answers():
    figures = m.Metrics(["psnr_y", "patch_grid", "block_grid", "block_lines", "flat_energy"], [(4, 128), (4, 32)])
    grids = ["patch_grid_4", "block_grid_32", "block_grid_128", "block_lines_32x4", "block_lines_128x4"]
    assert figures.columns == ["psnr_y", *grids, "flat_energy"]
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None, None] * 3, (64, 64, 3)).copy()
    values = figures(ramp, ramp[::4, ::4], ramp)
    assert values["patch_grid_4"] == pytest.approx(1.0, abs=1e-6)  # a ramp has no grid
    assert values["block_grid_128"] is None and values["block_lines_128x4"] is None  # no such line in 64 pixels
    assert values["flat_energy"] is None  # 3 levels a pixel: nowhere flat
    assert columns.title_of("block_lines_32x4") == "block lines 32 px"
    assert columns.describe("block_grid_128", None) == "block grid 128 px –"
    assert columns.heading_of("psnr_y") == "PSNR(Y) dB"


def test_grids_are_looked_for_where_they_lay():
    """A step of 30 levels at x = 10, 42, … and nothing else: the grid of a call with the picture 22 px farther in."""
    picture = np.zeros((64, 128, 3), np.uint8)
    picture[:, (np.arange(128) - 10) // 32 % 2 == 1] = 30
    picture += np.arange(64, dtype=np.uint8)[:, None, None]  # a ramp the other way: 1 level a pixel
    figures = m.Metrics(["patch_grid", "block_grid", "block_lines"], [(4, 32)])
    at_rest, moved = (figures(picture, picture[::4, ::4], picture, offsets=offsets) for offsets in ([0], [0, 22]))
    step, lines = 30 * 64, len(range(10, 128, 32))
    # Columns of 64 pixels, 4 of the 127 with a step; the ramp has 63 rows of 128 pixels, 2 of them at 10, 42.
    elsewhere = (127 - lines) * 64 + 61 * 128
    expected = (lines * step + 2 * 128) / (lines * 64 + 2 * 128) / (61 * 128 / elsewhere)
    assert moved["block_grid_32"] == pytest.approx(expected, rel=1e-6)
    columns = len([x for x in range(1, 128) if x % 4 == 2]) - lines
    rows = len([y for y in range(1, 64) if y % 4 == 2]) - 2
    expected = (lines * step + 2 * 128) / (lines * 64 + 2 * 128) / (rows * 128 / (columns * 64 + rows * 128))
    assert moved["block_lines_32x4"] == pytest.approx(expected, rel=1e-6)
    assert at_rest["block_grid_32"] < 1 and at_rest["patch_grid_4"] < 1 < moved["patch_grid_4"]


def test_choice_of_metrics(monkeypatch):
    monkeypatch.setattr(m, "missing_packages", lambda name: ["lpips"] if name == "lpips" else [])
    names, left_out = m.choose_metrics(None)
    assert names == [name for name in columns.METRICS if name != "lpips"]
    assert left_out == "LPIPS left out: pip install lpips"
    assert m.choose_metrics(["ssim_y", "psnr_y"]) == (["psnr_y", "ssim_y"], "")
    with pytest.raises(ValueError, match="unknown metric fid: the known metrics are psnr_y"):
        m.choose_metrics(["fid"])
    with pytest.raises(ModuleNotFoundError, match="metric lpips needs: pip install lpips"):
        m.choose_metrics(["lpips"])


def test_bars():
    assert columns.parse_bars(["patch_grid=1.15", "flat_energy=1.3"], ["psnr_y", "patch_grid", "flat_energy"]) == {
        "patch_grid": 1.15,
        "flat_energy": 1.3,
    }
    for text in ("patch_grid", "patch_grid=low"):
        with pytest.raises(ValueError, match="not of the form NAME=NUMBER"):
            columns.parse_bars([text], ["patch_grid"])
    for text in ("psnr_y=30", "block_grid=1.1"):  # more is better; not computed
        with pytest.raises(ValueError, match="can be set for patch_grid"):
            columns.parse_bars([text], ["psnr_y", "patch_grid"])
