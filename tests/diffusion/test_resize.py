"""The one resize, against Pillow's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sat_sr.diffusion.resize import lr_conditions, resize


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


def test_a_single_column_is_a_resize_too():
    """PyTorch 2.13 makes something else of pictures of one column."""
    row = torch.rand(1, 3, 1, 14)
    torch.testing.assert_close(resize(row.mT, (50, 1)), resize(row, (1, 50)).mT, rtol=0, atol=1e-6)
