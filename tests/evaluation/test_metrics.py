"""Figures against closed forms, and the choice of metrics."""

from __future__ import annotations

import math

import numpy as np
import pytest

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


def test_consistency_sees_what_was_added_to_the_input():
    lr = np.random.default_rng(0).integers(30, 200, (16, 20, 3), dtype=np.uint8)
    # Repeating pixels and reducing again is not exact, a constant is: bicubic weights sum to 1.
    assert m.consistency(grey(90, 16), grey(90, 64)) == m.PSNR_OF_EQUAL_PICTURES
    assert m.consistency(grey(90, 16), grey(95, 64)) == pytest.approx(20 * math.log10(255 / 5), abs=1e-3)
    assert m.consistency(lr, np.repeat(np.repeat(255 - lr, 4, 0), 4, 1)) < 15


def test_columns_and_missing_answers():
    figures = m.Metrics(["psnr_y", "patch_grid", "block_grid", "flat_energy"], [4], [128, 32])
    assert figures.columns == ["psnr_y", "patch_grid_4", "block_grid_32", "block_grid_128", "flat_energy"]
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None, None] * 3, (64, 64, 3)).copy()
    values = figures(ramp, ramp[::4, ::4], ramp)
    assert values["patch_grid_4"] == pytest.approx(1.0, abs=1e-6)  # a ramp has no grid
    assert values["block_grid_128"] is None  # no line of that grid in 64 pixels
    assert values["flat_energy"] is None  # 3 levels a pixel: nowhere flat
    assert m.describe("block_grid_128", None) == "block grid 128 px –" and m.heading_of("psnr_y") == "PSNR(Y) dB"


def test_choice_of_metrics(monkeypatch):
    monkeypatch.setattr(m, "missing_packages", lambda name: ["lpips"] if name == "lpips" else [])
    names, left_out = m.choose_metrics(None)
    assert names == [name for name in m.METRICS if name != "lpips"] and left_out == "LPIPS left out: pip install lpips"
    assert m.choose_metrics(["ssim_y", "psnr_y"]) == (["psnr_y", "ssim_y"], "")
    with pytest.raises(ValueError, match="unknown metric fid: the known metrics are psnr_y"):
        m.choose_metrics(["fid"])
    with pytest.raises(ModuleNotFoundError, match="metric lpips needs: pip install lpips"):
        m.choose_metrics(["lpips"])
