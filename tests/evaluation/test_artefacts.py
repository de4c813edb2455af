"""Artefact figures on synthetic pictures whose grid and grain are known in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sat_sr.evaluation.artefacts import (
    GRAIN_SIGMA,
    ROUNDING_ENERGY,
    flat_energy,
    flat_mask,
    grid_ratio,
)


def staircase(size: int, period: int, step: float, slope: float) -> np.ndarray:
    """A ramp of `slope` levels a pixel along both axes, with `step` levels instead on the lines of a grid."""
    x = np.arange(size)
    line = np.cumsum(np.where((x % period == 0) & (x > 0), step, slope)) - slope
    return line[:, None] + line[None, :]


@pytest.mark.parametrize("period", [4, 32])
def test_grid_ratio_is_step_over_slope(period):
    assert grid_ratio(staircase(128, period, step=1.5, slope=0.5), period) == pytest.approx(3.0, rel=1e-9)
    assert grid_ratio(staircase(128, period, step=0.5, slope=0.5), period) == pytest.approx(1.0, rel=1e-9)


def test_grid_ratio_pools_both_directions():
    size, period = 64, 4
    both = staircase(size, period, step=2.0, slope=1.0)
    columns_only = np.broadcast_to(both[0], (size, size))  # no vertical differences at all
    assert grid_ratio(columns_only, period) == pytest.approx(2.0, rel=1e-9)
    # A grid in one direction and a plain ramp in the other: the mean of 2 and 1 over the mean of 1 and 1.
    mixed = columns_only + np.arange(size)[:, None]
    assert grid_ratio(mixed, period) == pytest.approx(1.5, rel=1e-9)


def test_grid_ratio_of_noise_is_one():
    noise = np.random.default_rng(0).normal(128, 10, (512, 512))
    assert grid_ratio(noise, 4) == pytest.approx(1.0, abs=0.01)


def test_a_grid_is_found_at_its_own_phase_only():
    shifted = staircase(130, 4, step=3.0, slope=1.0)[2:, 2:]  # lines now at 2, 6, 10, …
    assert grid_ratio(shifted, 4) == pytest.approx(0.6, abs=0.01)  # they count as "elsewhere" there: 1 / (5/3)
    assert grid_ratio(shifted, 4, offsets=[2]) == pytest.approx(3.0, rel=1e-9)


@pytest.mark.parametrize("place", [0, 18, 4, 22])
def test_the_grid_of_every_call_is_looked_for(place):
    """Four calls, the grid moving on by 18 px in blocks of 32: a picture p px farther in has its lines at 32 - p."""
    marked = staircase(256 + place, 32, step=2.0, slope=1.0)[place:, place:]
    assert grid_ratio(marked, 32, offsets=[0, 18, 4, 22]) == pytest.approx(2.0, rel=1e-9)
    others = [p for p in (0, 18, 4, 22) if p != place]
    assert grid_ratio(marked, 32, offsets=others) == pytest.approx(31 / 32, rel=0.01)


def test_what_comes_every_patch_is_no_block_line():
    """Steps of 3 at x ≡ 0 (mod 4), as bicubic interpolation by 4 has them, and of 3·1.5 at x ≡ 12 (mod 32)."""
    x = np.arange(258)[1:]
    steps = np.where(x % 4 == 0, 3.0, 1.0) * np.where(x % 32 == 12, 1.5, 1.0)
    line = np.concatenate([[0.0], np.cumsum(steps)])
    picture = line[:, None] + line[None, :]
    everywhere = np.array([3.0 if p % 4 == 0 else 1.0 for p in range(32) if p != 12])
    assert grid_ratio(picture, 32, offsets=[20]) == pytest.approx(4.5 / everywhere.mean(), rel=0.01)  # 3.05
    assert grid_ratio(picture, 32, offsets=[20], among=4) == pytest.approx(1.5, rel=1e-9)
    # Lines of other calls: among those at the same place in a patch one of seven is the marked one, or none is.
    assert grid_ratio(picture, 32, offsets=[0], among=4) == pytest.approx(7 / (6 + 1.5), rel=0.01)
    assert grid_ratio(picture, 32, offsets=[18], among=4) == pytest.approx(1.0, rel=1e-9)
    assert grid_ratio(picture, 32, offsets=[0, 18, 20], among=4) == pytest.approx(1.5, rel=1e-9)


@pytest.mark.parametrize("picture", [np.zeros((64, 64)), np.zeros((3, 3))])
def test_grid_ratio_without_an_answer_is_nan(picture):
    assert math.isnan(grid_ratio(picture, 4))


def high_pass_gain() -> float:
    """Energy of white noise after subtraction of its Gaussian blur: Σ(δ - g⊗g)² = 1 - 2g0² + (Σg²)²."""
    x = np.arange(-30, 31)
    g = np.exp(-(x**2) / (2 * GRAIN_SIGMA**2))
    g /= g.sum()
    return 1 - 2 * g[30] ** 2 + (g**2).sum() ** 2


def test_flat_energy_of_white_noise_is_its_variance():
    rng = np.random.default_rng(1)
    target = np.full((512, 512), 100.0)
    ours = target + rng.normal(0, 2.0, target.shape)
    expected = (4 * high_pass_gain() + ROUNDING_ENERGY) / ROUNDING_ENERGY
    assert flat_energy(ours, target) == pytest.approx(expected, rel=0.02)


def test_flat_energy_is_the_ratio_of_two_grains():
    rng = np.random.default_rng(2)
    flat = np.full((512, 512), 100.0)
    target, ours = (flat + rng.normal(0, s, flat.shape) for s in (3.0, 6.0))
    gain = high_pass_gain()
    expected = (36 * gain + ROUNDING_ENERGY) / (9 * gain + ROUNDING_ENERGY)
    assert flat_energy(ours, target) == pytest.approx(expected, rel=0.02)
    assert flat_energy(target, target) == pytest.approx(1.0)


def test_grain_outside_the_flat_areas_does_not_count():
    rng = np.random.default_rng(3)
    x = np.broadcast_to(np.arange(256), (256, 256))
    stripes = 50 * np.sign(np.sin(2 * np.pi * x / 16))
    target = 128 + np.where(x < 128, 0.0, stripes)
    noisy = target + np.where(x < 160, 0.0, rng.normal(0, 20, target.shape))
    assert flat_energy(noisy, target) == pytest.approx(1.0, abs=1e-6)
    mask = flat_mask(target)
    assert mask[:, :100].all() and not mask[:, 150:].any()


def test_no_flat_area_is_nan():
    x = np.arange(256)
    target = np.broadcast_to(128 + 60 * np.sin(2 * np.pi * x / 24), (256, 256))
    assert math.isnan(flat_energy(target, target))
