"""The grid of blocks at several offsets: each call is the network on the picture laid there, mirrored before it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sat_sr.diffusion.edm import denoise
from sat_sr.inference.denoiser import Denoiser
from sat_sr.inference.moving_grid import MovingGrid, moved
from sat_sr.inference.placement import Placement
from sat_sr.inference.planner import Plan
from sat_sr.inference.schedule import Schedule
from sat_sr.sampling import grid_offsets

SIGMA = 1.7


@pytest.fixture(scope="module")
def model(make_model):
    return make_model()


def laid(picture, shift):
    """The picture moved right and down by `shift`, mirrored before it by numpy, cut to its size."""
    padded = np.pad(picture.numpy(), [(0, 0), (0, 0), (shift, 0), (shift, 0)], mode="reflect")
    return torch.from_numpy(padded[..., : picture.shape[-2], : picture.shape[-1]].copy())


def bicubic(picture, scale):
    return F.interpolate(picture, scale_factor=scale, mode="bicubic", antialias=True)


@pytest.mark.parametrize("faithful", [False, True])
@pytest.mark.parametrize("order", ["layer", "block"])
@pytest.mark.parametrize("grid", [(3, 2), (2, 4)], ids=str)
def test_every_call_is_the_network_on_a_canvas_with_the_picture_farther_in(model, make_inputs, grid, order, faithful):
    """Between the pixels of the input the condition is made from the picture of the call before."""
    x, lr, lr_upsampled, clip = make_inputs(model.config, grid)
    sigma, offsets = torch.tensor([SIGMA]), (6, 12, 4, 3, 10, 0)
    for group in [(1, 1), (2, 2)]:
        plan = Plan(Schedule(grid, group, order), "merge", "cpu", "none", 0, 0)
        denoiser = Denoiser(model, plan, lr, lr_upsampled, clip, offsets=offsets)
        moving = MovingGrid(denoiser, denoiser, lr_upsampled, tuple(lr_upsampled.shape[-2:]), faithful=faithful)
        estimate = lr_upsampled
        for n in offsets:
            condition, enlarged = laid(lr, n // 4), laid(lr_upsampled, n)
            if n % 4:
                condition = bicubic(laid(estimate, n), 1 / 4)
                if not faithful:  # what the estimate has lost of the input
                    condition = condition + moved(lr - bicubic(estimate, 1 / 4), n)
                enlarged = bicubic(condition, 4).clamp(-1, 1)
            with torch.no_grad():
                covered = denoise(model, laid(x, n), sigma, condition, enlarged, clip)[..., n:, n:]
            estimate = moving(x, SIGMA)
            height, width = covered.shape[-2:]
            torch.testing.assert_close(estimate[..., :height, :width], covered, rtol=0, atol=5e-6)
            if n:
                assert torch.equal(estimate[..., -n:, :], lr_upsampled[..., -n:, :]), "the margin is left as it came"
                assert torch.equal(estimate[..., -n:], lr_upsampled[..., -n:])


def test_the_grid_moves_until_it_is_in_the_corner():
    assert grid_offsets(18, 32, 5) == [8, 22, 4, 18, 0]
    assert grid_offsets(12, 16, 6) == [12, 0, 4, 8, 12, 0], "after a whole block it is where it was"
    assert grid_offsets(0, 16, 3) == [0, 0, 0]


@pytest.mark.parametrize("place", [(0, 0), (3, 0), (0, 2), (3, 2), (-2, 4)], ids=str)
def test_before_the_picture_a_window_is_mirrored(place):
    picture = torch.arange(20 * 30).float().view(1, 1, 20, 30)
    for rows in [(0, 8), (0, 2), (3, 9), (8, 16)]:
        for columns in [(0, 8), (0, 1), (2, 20)]:
            at = np.ix_(abs(np.arange(*rows) - place[0]), abs(np.arange(*columns) - place[1]))
            window = Placement(*place).read(picture, slice(*rows), slice(*columns))
            assert np.array_equal(window[0, 0], picture[0, 0].numpy()[at])


def test_windows_lie_where_they_are_read():
    """What is written back lies where it was read, and the windows of a grid cover the picture."""
    picture = torch.arange(7 * 9).float().view(1, 1, 7, 9)
    for place in [Placement(0, 0), Placement(3, 0), Placement(2, 3), Placement(-2, 1)]:
        seen = torch.zeros_like(picture)
        for top in range(0, 12, 4):
            for left in range(0, 12, 4):
                rows, columns = (
                    slice(start, min(start + 4, length + offset))
                    for start, offset, length in zip((top, left), place, (7, 9), strict=True)
                )
                if rows.start >= rows.stop or columns.start >= columns.stop:
                    continue
                place.write(seen, rows, columns, place.read(picture, rows, columns) + 1)
        first = [max(-offset, 0) for offset in place]
        assert torch.equal(seen[..., first[0] :, first[1] :], picture[..., first[0] :, first[1] :] + 1)
        assert not seen[..., : first[0], :].any()
