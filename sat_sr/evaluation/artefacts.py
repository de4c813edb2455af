"""Artefacts that a picture-wide average does not see: grids of patches or blocks, and grain on smooth areas.

All work on luma (H, W) float in levels 0..255. `grid_ratio` needs one picture; near 1 means that no grid stands out.
`flat_energy` compares with the target; near 1 means that smooth areas have the grain of the target.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from scipy.ndimage import gaussian_filter, uniform_filter

GRAIN_SIGMA = 1.5  # pixels; what a Gaussian of this width removes counts as high frequency
FLAT_BLUR = 2.0  # pixels; the target is blurred before its flatness is judged, so that its own grain does not count
FLAT_WINDOW = 17  # pixels a side
FLAT_STD = 2.0  # levels of 255
ROUNDING_ENERGY = 1 / 12  # squared levels: what rounding to 8 bit adds to any picture
LEAST_FLAT_PIXELS = 1024  # fewer say nothing about a picture's smooth areas


def grid_ratio(luma: np.ndarray, period: int, offsets: Iterable[int] = (0,), among: int = 1) -> float:
    """How much steeper the picture is across the lines of a grid than elsewhere, for the call whose grid shows most.

    With horizontal differences d(y, x) = |luma(y, x) - luma(y, x-1)| and the vertical ones likewise, both directions
    pooled, a network call that had the picture `offset` pixels farther in has the lines x ≡ -offset (mod period), and

        mean of d on its lines  /  mean of d on all other x ≡ -offset (mod among).

    The result is the largest of these ratios. A picture without a grid has about 1, a little more with every offset
    that is looked at, since the largest of several is taken: compare with the target at the same offsets. Bicubic
    interpolation by 4 has more at period 4, for it is steepest halfway between the samples; `among` 4 keeps that out
    of the blocks' figure.

    luma     (H, W) in levels
    period   pixels between grid lines: the side of a patch or of a block
    offsets  of the picture on the grid in the calls (`inference.placement`); 0: the grid begins in its corner
    among    1: elsewhere is anywhere; the side of a patch, a divisor of period: only lines at the same place in a patch
    returns  a ratio; nan where the picture has no line of the grid or nothing but lines, or is constant elsewhere
    """
    assert period % among == 0, (period, among)
    totals, counts = np.zeros(period), np.zeros(period)  # of d, and how many, by x modulo period
    for axis in (0, 1):
        steps = np.moveaxis(np.abs(np.diff(luma, axis=axis)), axis, 0)
        phases = np.arange(1, luma.shape[axis]) % period
        totals += np.bincount(phases, steps.sum(axis=1), period)
        counts += np.bincount(phases, minlength=period) * steps.shape[1]
    ratios = []
    for line in {-offset % period for offset in offsets}:
        others = [phase for phase in range(line % among, period, among) if phase != line]
        if counts[line] and totals[others].sum() > 0:
            ratios.append(totals[line] / counts[line] * counts[others].sum() / totals[others].sum())
    return float(max(ratios, default=math.nan))


def flat_mask(target_luma: np.ndarray) -> np.ndarray:
    """Where the target is smooth: sky, skin, an out-of-focus background.

    The target is blurred (Gaussian, σ = FLAT_BLUR) and called flat where the standard deviation of the result in a
    window of FLAT_WINDOW² pixels is below FLAT_STD levels: large-scale structure is absent, fine grain is allowed.

    returns  (H, W) bool
    """
    blurred = gaussian_filter(target_luma.astype(np.float64), FLAT_BLUR)
    mean = uniform_filter(blurred, FLAT_WINDOW)
    variance = uniform_filter(blurred**2, FLAT_WINDOW) - mean**2
    return variance < FLAT_STD**2


def high_frequencies(luma: np.ndarray) -> np.ndarray:
    """What a Gaussian blur of σ = GRAIN_SIGMA takes away: (H, W) float64, levels."""
    luma = luma.astype(np.float64)
    return luma - gaussian_filter(luma, GRAIN_SIGMA)


def flat_energy(luma: np.ndarray, target_luma: np.ndarray) -> float:
    """Grain of a picture on the flat areas of its target, relative to the target's own.

        (E(luma) + r) / (E(target) + r),   E(x) = mean over flat_mask(target) of high_frequencies(x)²

    r = ROUNDING_ENERGY is the energy of rounding to 8 bit. It keeps the ratio finite where the target is constant and
    leaves alone what can be seen: half a level of grain has three times that energy.

    returns  a ratio, or nan where the target has fewer than LEAST_FLAT_PIXELS flat pixels
    """
    flat = flat_mask(target_luma)
    if np.count_nonzero(flat) < LEAST_FLAT_PIXELS:
        return float("nan")
    ours, wanted = (np.mean(high_frequencies(x)[flat] ** 2) for x in (luma, target_luma))
    return float((ours + ROUNDING_ENERGY) / (wanted + ROUNDING_ENERGY))
