"""The grid of blocks in several places: each call is the network on the picture laid there, mirrored before it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sat_sr.diffusion.edm import denoise
from sat_sr.inference.denoiser import Denoiser
from sat_sr.inference.memory import Plan
from sat_sr.inference.placement import Placement, grid_places, shifted_lr
from sat_sr.inference.schedule import Schedule

SIGMA = 1.7


@pytest.fixture(scope="module")
def model(make_model):
    return make_model()


def laid(picture, shift):
    """The picture moved right and down by `shift`, mirrored before it by numpy, cut to its size."""
    padded = np.pad(picture.numpy(), [(0, 0), (0, 0), (shift, 0), (shift, 0)], mode="reflect")
    return torch.from_numpy(padded[..., : picture.shape[-2], : picture.shape[-1]].copy())


@pytest.mark.parametrize("order", ["layer", "block"])
@pytest.mark.parametrize("grid", [(3, 2), (2, 4)], ids=str)
def test_every_call_is_the_network_on_a_canvas_with_the_picture_farther_in(model, make_inputs, grid, order):
    x, lr, lr_upsampled, clip = make_inputs(model.config, grid)
    sigma, places = torch.tensor([SIGMA]), (0, 12, 4)  # whole pixels of the LR condition
    with torch.no_grad():
        expected = [
            denoise(model, laid(x, n), sigma, laid(lr, n // 4), laid(lr_upsampled, n), clip)[..., n:, n:]
            for n in places
        ]
    for group in [(1, 1), (2, 2)]:
        plan = Plan(Schedule(grid, group, order), "merge", "cpu", "none", 0, 0)
        denoiser = Denoiser(model, plan, lr, lr_upsampled, clip, places=places)
        for n, covered in zip(places * 2, expected * 2, strict=True):
            denoised = denoiser(x, SIGMA)
            height, width = covered.shape[-2:]
            torch.testing.assert_close(denoised[..., :height, :width], covered, rtol=0, atol=5e-6)
            if n:
                assert torch.equal(denoised[..., -n:, :], lr_upsampled[..., -n:, :]), "the margin is left as it came"
                assert torch.equal(denoised[..., -n:], lr_upsampled[..., -n:])
    (straight, *_, moved), shape = expected, expected[1].shape
    assert (moved[..., : shape[2], : shape[3]] - straight[..., : shape[2], : shape[3]]).abs().max() > 1e-3


def test_grid_moves_on_from_call_to_call():
    assert grid_places(18, 32, 5) == [0, 18, 4, 22, 8]
    assert grid_places(12, 16, 6) == [0, 12, 8, 4, 0, 12], "after a whole block it is where it was"
    assert grid_places(0, 16, 3) == [0, 0, 0]


def test_lr_condition_between_its_pixels():
    """Half a pixel farther in: the four taps of bicubic interpolation with a = -0.75; whole pixels are only moved."""
    lr = torch.rand(1, 3, 9, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(shifted_lr(lr, 8), laid(lr, 2), rtol=0, atol=1e-5)
    near, far = 0.59375, -0.09375
    half = lr.double().numpy()
    for axis in (-2, -1):
        mirrored = np.pad(half, [(2, 1) if a == axis % 4 else (0, 0) for a in range(4)], mode="reflect")
        a, b, c, d = (np.take(mirrored, range(k, k + half.shape[axis]), axis) for k in range(4))
        half = far * (a + d) + near * (b + c)  # between b and c, which is half a pixel before the pixel itself
    np.testing.assert_allclose(shifted_lr(lr, 2), half, rtol=0, atol=1e-5)


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
