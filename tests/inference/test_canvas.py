"""Canvases: sizes, the continuation of the input, and that what is added does not change what was asked for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sat_sr.diffusion.resize import lr_conditions, resize
from sat_sr.inference.canvas import Canvas, reflect_to


def picture(height, width, batch=1):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


sides = st.integers(1, 50)


@settings(max_examples=150, deadline=None)
@given(sides, sides, st.floats(0.25, 8, exclude_min=True), st.sampled_from([16, 32, 128]))
def test_sizes_for_a_scale(h, w, scale, block):
    canvas = Canvas.of((h, w), block, scale=scale)
    assert canvas.target == (max(1, round(h * scale)), max(1, round(w * scale)))
    for side, target in zip(canvas.size, canvas.target, strict=True):
        assert side % block == 0 and target <= side < target + block
    image = picture(h, w, 2)
    lr, upsampled = canvas.conditions(image)
    assert lr.shape == (2, 3, canvas.size[0] // 4, canvas.size[1] // 4)
    assert upsampled.shape == (2, 3, *canvas.size) and upsampled.abs().max() <= 1
    assert torch.equal(image, picture(h, w, 2))
    assert canvas.crop(upsampled).shape[-2:] == canvas.target


@settings(max_examples=50, deadline=None)
@given(sides, sides, st.integers(13, 150), st.integers(13, 150))
def test_sizes_for_a_target(h, w, height, width):
    canvas = Canvas.of((h, w), 32, target=(height, width))
    lr, upsampled = canvas.conditions(picture(h, w))
    assert canvas.target == (height, width) == canvas.crop(upsampled).shape[-2:]
    assert lr.shape[-2:] == tuple(math.ceil(side / 32) * 8 for side in (height, width))


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("source", [(32, 32), (64, 32), (96, 160)])
def test_where_the_release_works_the_conditions_are_its_own(source, scale):
    """Sides of the canvas that are multiples of the block: bit for bit."""
    canvas, image = Canvas.of(source, 64, scale=scale), picture(*source)
    assert not canvas.padded and canvas.size == canvas.target == tuple(side * scale for side in source)
    lr, upsampled = canvas.conditions(image)
    recorded_lr, recorded = lr_conditions(image, canvas.size)
    assert torch.equal(lr, recorded_lr) and torch.equal(upsampled, recorded)
    if scale == 4:
        assert torch.equal(lr, image)


@pytest.mark.parametrize(
    ("source", "choice"),
    [((45, 33), {"scale": 4}), ((50, 71), {"scale": 2}), ((60, 47), {"scale": 3.3}), ((90, 64), {"scale": 0.7}),
     ((50, 40), {"target": (111, 190)})],
    ids=str,
)  # fmt: skip
def test_padding_does_not_change_the_picture_away_from_the_far_borders(source, choice):
    canvas, image = Canvas.of(source, 64, **choice), picture(*source)
    assert canvas.padded
    lr, upsampled = canvas.conditions(image)
    plain = resize(image, canvas.target).clamp(-1, 1)
    # The kernel reaches 2 input pixels when enlarging, 2/scale when shrinking; there the two continue differently.
    margin = [math.ceil(2 * max(1, t / s)) + 1 for t, s in zip(canvas.target, source, strict=True)]
    inside = np.s_[..., : canvas.target[0] - margin[0], : canvas.target[1] - margin[1]]
    torch.testing.assert_close(upsampled[inside], plain[inside], rtol=0, atol=2e-5)
    # The LR condition is the same picture at a quarter: shrink it from an input of which nothing is missing.
    if all(t % 4 == 0 for t in canvas.target):
        quarter = resize(image, tuple(t // 4 for t in canvas.target))
        margin = [math.ceil(2 * max(1, t / 4 / s)) + 2 for t, s in zip(canvas.target, source, strict=True)]
        inside = np.s_[..., : quarter.shape[-2] - margin[0], : quarter.shape[-1] - margin[1]]
        torch.testing.assert_close(lr[inside], quarter[inside], rtol=0, atol=2e-5)


@settings(max_examples=60, deadline=None)
@given(sides, sides, st.floats(0.3, 6))
def test_conditions_do_not_depend_on_how_much_is_added(h, w, scale):
    """Two canvases of different blocks hold the same pixels where both are: also what is added is one picture."""
    small, large = (Canvas.of((h, w), block, scale=scale) for block in (16, 80))
    if not (small.padded and large.padded):
        return
    image = picture(h, w)
    for a, b in zip(small.conditions(image), large.conditions(image), strict=True):
        torch.testing.assert_close(a, b[..., : a.shape[-2], : a.shape[-1]], rtol=0, atol=5e-5)


def test_padding_at_4_repeats_the_input_itself():
    canvas, image = Canvas.of((21, 13), 32, scale=4), picture(21, 13)
    lr, _ = canvas.conditions(image)
    expected = np.pad(image.numpy(), ((0, 0), (0, 0), (0, 3), (0, 3)), mode="reflect")
    np.testing.assert_allclose(lr, expected, rtol=0, atol=1e-6)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 60), st.integers(0, 60))
def test_reflection_is_numpys_however_far(h, w, down, right):
    image = picture(h, w, 2)
    expected = np.pad(image.numpy(), ((0, 0), (0, 0), (0, down), (0, right)), mode="reflect")
    np.testing.assert_array_equal(reflect_to(image, (h + down, w + right)), expected)


@pytest.mark.parametrize("source", [(1, 1), (1, 40), (40, 1)])
@pytest.mark.parametrize("scale", [0.26, 1, 4, 11.3])
def test_thin_pictures(source, scale):
    """Along a side of one pixel nothing changes."""
    canvas = Canvas.of(source, 32, scale=scale)
    lr, upsampled = canvas.conditions(picture(*source))
    for condition in (lr, upsampled):
        assert bool(condition.isfinite().all())
        for dim, side in ((-2, source[0]), (-1, source[1])):
            if side == 1:
                assert (condition - condition.narrow(dim, 0, 1)).abs().max() < 1e-5


@pytest.mark.parametrize("scale", [0, -1, 0.25, 0.1, math.nan, math.inf])
def test_scales_that_cannot_be(scale):
    with pytest.raises(ValueError, match=rf"^scale {scale}: must be a number above 0\.25$"):
        Canvas.of((10, 10), 32, scale=scale)


@pytest.mark.parametrize("side", range(1, 30))
def test_every_scale_above_a_quarter_can_be(side):
    assert Canvas.of((side, 7), 16, scale=0.2501).target == (max(1, round(side * 0.2501)), 2)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ((0, 10), "target size 10x0: must be whole numbers of pixels"),
        ((10, -3), "target size -3x10"),
        ((10.5, 10), r"target size 10x10\.5"),
        ((10, 2), "target size 2x10 for a picture of 10x8: each side must be above 0.25 of the picture's"),
    ],
)
def test_targets_that_cannot_be(target, message):
    with pytest.raises(ValueError, match=message):
        Canvas.of((8, 10), 32, target=target)


@pytest.mark.parametrize("choice", [{}, {"scale": 2.0, "target": (16, 16)}], ids=["neither", "both"])
def test_either_a_scale_or_a_target(choice):
    with pytest.raises(ValueError, match="either a scale or a target size, not both and not neither"):
        Canvas.of((8, 8), 32, **choice)


@pytest.mark.parametrize("target", [(128, 192), (100, 150), (97, 65)], ids=str)
def test_conditions_of_a_part_are_cut_from_the_whole(target):
    """Uneven parts of several ranks, rows and columns, whole blocks and not."""
    image = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    canvas = Canvas.of((32, 48), 32, target=target)
    lr, whole = canvas.conditions(image)
    for here in (slice(0, 32), slice(32, 96), slice(64, None)):
        for rows, columns in ((here, slice(None)), (slice(None), here)):
            part_lr, part = canvas.conditions(image, rows, columns)
            assert torch.equal(part_lr, lr) and torch.equal(part, whole[..., rows, columns])
