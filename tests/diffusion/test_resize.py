"""The one resize, against Pillow's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sat_sr.diffusion import resize as resize_module
from sat_sr.diffusion.resize import lr_conditions, resize, resize_region


def picture(height, width, seed=0):
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("size", [(64, 96), (23, 31), (7, 5), (100, 11), (24, 32)])
def test_equals_pillows_bicubic(size):
    image = picture(24, 32)
    resized = resize(image, size)
    for channel in range(3):
        expected = Image.fromarray(image[0, channel].numpy()).resize(size[::-1], Image.Resampling.BICUBIC)
        np.testing.assert_allclose(resized[0, channel], np.asarray(expected), rtol=0, atol=1e-5)


def test_overshoots_are_kept_in_lr_and_clipped_in_the_canvas():
    step = torch.ones(1, 3, 8, 8)
    step[..., 4:] = -1
    assert resize(step, (32, 32)).max() > 1.05
    lr, upsampled = lr_conditions(step, (64, 64))  # LR 16 x 16: enlarged, too
    assert lr.max() > 1.05
    assert upsampled.max() == 1 and upsampled.min() == -1
    torch.testing.assert_close(upsampled, resize(step, (64, 64)).clamp(-1, 1), rtol=0, atol=0)


def test_lr_condition_is_the_input_at_4_and_half_of_it_at_2():
    image = picture(16, 24)
    lr, upsampled = lr_conditions(image, (64, 96))
    assert torch.equal(lr, image) and upsampled.shape == (1, 3, 64, 96)
    lr, upsampled = lr_conditions(image, (32, 48))
    assert torch.equal(lr, resize(image, (8, 12))) and upsampled.shape == (1, 3, 32, 48)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 20), st.integers(1, 20))
def test_sizes_of_the_conditions(h, w, rows, cols):
    lr, upsampled = lr_conditions(picture(h, w), (4 * rows, 4 * cols))
    assert lr.shape == (1, 3, rows, cols) and upsampled.shape == (1, 3, 4 * rows, 4 * cols)
    assert upsampled.abs().max() <= 1


@pytest.mark.parametrize("canvas", [(64, 62), (63, 64)])
def test_canvas_must_hold_whole_lr_pixels(canvas):
    with pytest.raises(ValueError, match=f"canvas {canvas[1]}x{canvas[0]}: both sides must be multiples of 4"):
        lr_conditions(picture(16, 16), canvas)


@pytest.mark.parametrize(
    "sizes", [((37, 29), (148, 116)), ((50, 61), (23, 17)), ((20, 40), (20, 97)), ((9, 300), (300, 2))]
)
@pytest.mark.parametrize("scaled", [False, True])
def test_a_region_has_the_bits_of_the_whole(sizes, scaled, monkeypatch):
    (h, w), (height, width) = sizes
    image = torch.rand(2, 3, h, w, generator=torch.Generator().manual_seed(0)) * 2 - 1
    scales = (1.003 * height / h, 0.997 * width / w) if scaled and h != height else (None, None)
    whole = torch.ops.aten._upsample_bicubic2d_aa(image, [height, width], False, *scales)
    monkeypatch.setattr(resize_module, "STRIP", 7)
    for rows in (slice(None), slice(0, 3), slice(height // 3, height // 2), slice(height - 1, None)):
        for columns in (slice(None), slice(0, 1), slice(width // 2, None)):
            region = resize_region(image, (height, width), rows, columns, scales)
            assert torch.equal(region, whole[..., rows, columns]), (rows, columns)


@pytest.mark.parametrize("size", [(96, 128), (61, 90), (24, 32), (13, 30), (1, 1)])
def test_lanczos_is_pillows(size):
    image = picture(24, 32)
    part = slice(size[1] // 3, None)
    resized = resize_module.lanczos(resize_module.lanczos(image, -1, size[1], part), -2, size[0])
    for channel in range(3):
        expected = Image.fromarray(image[0, channel].numpy()).resize(size[::-1], Image.Resampling.LANCZOS)
        np.testing.assert_allclose(resized[0, channel], np.asarray(expected)[:, part], rtol=0, atol=2e-6)


def test_a_single_column_is_a_resize_too():
    """PyTorch 2.13 makes something else of pictures of one column."""
    row = torch.rand(1, 3, 1, 14)
    torch.testing.assert_close(resize(row.mT, (50, 1)), resize(row, (1, 50)).mT, rtol=0, atol=1e-6)
    torch.testing.assert_close(resize_region(row.mT, (50, 1)), resize(row, (1, 50)).mT, rtol=0, atol=1e-6)
