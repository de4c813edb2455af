"""The condition of an estimated picture: reduced in parts, enlarged in windows, as PyTorch does it whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sat_sr.inference import moving_grid
from sat_sr.inference.moving_grid import enlarged, moved, reduced


def bicubic(image, scale):
    return F.interpolate(image, scale_factor=scale, mode="bicubic", antialias=True)


@pytest.mark.parametrize("cuts", [(), (300,), (13, 270, 311)], ids=str)
@pytest.mark.parametrize("by_columns", [False, True])
def test_parts_add_up_to_the_reduction_of_the_whole(cuts, by_columns, monkeypatch):
    monkeypatch.setattr(moving_grid, "TILE", 70)
    picture = torch.randn(2, 3, 600, 96, generator=torch.Generator().manual_seed(0))
    expected = bicubic(picture, 1 / 4)
    if by_columns:
        picture, expected = picture.mT, expected.mT
    canvas, total = tuple(picture.shape[-2:]), 0
    for start, stop in zip((0, *cuts), (*cuts, 600), strict=True):
        part = [slice(0, side) for side in canvas]
        part[by_columns] = slice(start, stop)
        total = total + reduced(lambda rows, columns: picture[..., rows, columns], *part, 2, canvas)
    torch.testing.assert_close(total, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("rows", "columns"), [((0, 160), (0, 96)), ((0, 32), (64, 96)), ((32, 96), (32, 64)), ((128, 160), (0, 8))]
)
def test_a_window_is_of_the_whole_enlarged(rows, columns):
    lr = torch.randn(1, 3, 40, 24, generator=torch.Generator().manual_seed(0))
    window = slice(*rows), slice(*columns)
    expected = bicubic(lr, 4).clamp(-1, 1)[(..., *window)]
    torch.testing.assert_close(enlarged(lr, *window), expected, rtol=0, atol=2e-6)


def test_moved_between_the_pixels():
    """Half a pixel farther in: the four taps of bicubic interpolation with a = -0.75; whole pixels are only moved."""
    lr = torch.rand(1, 3, 9, 7, generator=torch.Generator().manual_seed(0))
    laid = np.pad(lr.numpy(), [(0, 0), (0, 0), (2, 0), (2, 0)], mode="reflect")[..., :9, :7]
    np.testing.assert_allclose(moved(lr, 8), laid, rtol=0, atol=1e-5)
    near, far = 0.59375, -0.09375
    half = lr.double().numpy()
    for axis in (-2, -1):
        mirrored = np.pad(half, [(2, 1) if a == axis % 4 else (0, 0) for a in range(4)], mode="reflect")
        a, b, c, d = (np.take(mirrored, range(k, k + half.shape[axis]), axis) for k in range(4))
        half = far * (a + d) + near * (b + c)  # between b and c, which is half a pixel before the pixel itself
    np.testing.assert_allclose(moved(lr, 2), half, rtol=0, atol=1e-5)
