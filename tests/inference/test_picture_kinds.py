"""The upscaler takes PIL images, numpy arrays and tensors, and gives back the same kind; others it refuses."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_upscaler import bytes_picture, tensor_picture


def test_pil_and_numpy_and_tensors_are_the_same_picture(upscaler):
    pixels = bytes_picture()
    tensor = torch.from_numpy(pixels).permute(2, 0, 1) / 255 * 2 - 1
    expected = upscaler(tensor)
    assert expected.shape == (3, 28, 36) and expected.dtype is torch.float32
    unit = (expected.permute(1, 2, 0).numpy() + 1) / 2

    picture = upscaler(Image.fromarray(pixels))
    assert isinstance(picture, Image.Image) and picture.mode == "RGB" and picture.size == (36, 28)
    eight, sixteen = upscaler(pixels), upscaler(pixels.astype(np.uint16) * 257)
    assert eight.dtype == np.uint8 and sixteen.dtype == np.uint16
    np.testing.assert_array_equal(np.asarray(picture), eight)
    np.testing.assert_allclose(eight / 255, unit, rtol=0, atol=0.501 / 255)  # rounded, not cut off
    np.testing.assert_allclose(sixteen / 65535, unit, rtol=0, atol=1.01 / 65535)
    for dtype in (np.float32, np.float64):
        floats = upscaler((pixels / 255).astype(dtype))
        assert floats.dtype == dtype
        np.testing.assert_allclose(floats, unit, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_tensors_keep_dtype_and_batch(upscaler, dtype):
    image = tensor_picture().to(dtype)
    assert upscaler(image, 1).dtype is dtype and upscaler(image, 1).shape == (1, 3, 7, 9)
    assert upscaler(image[0], 1).shape == (3, 7, 9)


def test_strided_and_flipped_inputs_are_taken_as_they_look(upscaler):
    pixels = bytes_picture()
    np.testing.assert_array_equal(upscaler(pixels[::-1, ::2]), upscaler(pixels[::-1, ::2].copy()))
    image = tensor_picture()
    assert torch.equal(upscaler(image.transpose(-1, -2)), upscaler(image.transpose(-1, -2).contiguous()))


def test_grey_comes_back_grey(upscaler):
    grey = Image.fromarray(bytes_picture()).convert("L")
    output = upscaler(grey)
    assert output.mode == "L" and output.size == (36, 28)
    np.testing.assert_array_equal(np.asarray(output), np.asarray(upscaler(grey.convert("RGB")).convert("L")))


def test_alpha_is_resized_by_lanczos(upscaler):
    picture = Image.fromarray(bytes_picture())
    alpha = Image.fromarray(np.random.default_rng(0).integers(0, 256, (7, 9), dtype=np.uint8))
    with_alpha = picture.copy()
    with_alpha.putalpha(alpha)
    output = upscaler(with_alpha)
    assert output.mode == "RGBA"
    np.testing.assert_array_equal(
        np.asarray(output.getchannel("A")), np.asarray(alpha.resize((36, 28), Image.Resampling.LANCZOS))
    )
    np.testing.assert_array_equal(np.asarray(output)[..., :3], np.asarray(upscaler(picture)))


@pytest.mark.parametrize("mode", ["P", "CMYK", "1"])
def test_other_modes_become_rgb_and_it_is_said(upscaler, caplog, mode):
    with caplog.at_level(logging.WARNING):
        output = upscaler(Image.fromarray(bytes_picture()).convert(mode), 1)
    assert output.mode == "RGB" and f"a picture of mode {mode} is upscaled as RGB" in caplog.text


def test_inputs_are_not_changed(upscaler):
    image, pixels = tensor_picture(), bytes_picture()
    image_copy, pixels_copy = image.clone(), pixels.copy()
    upscaler(image, 1)
    upscaler(pixels, 1)
    assert torch.equal(image, image_copy) and np.array_equal(pixels, pixels_copy)


def test_outputs_are_ordinary_tensors(upscaler):
    """They can be changed in place and trained with."""
    seen = []
    output = upscaler(tensor_picture(), 1, callback=lambda i, n, preview: seen.append(preview))
    for tensor in (output, *seen):
        weight = torch.ones(1, requires_grad=True)
        (tensor.mul_(2) * weight).sum().backward()
        assert weight.grad is not None


# --- wrong input

WRONG = {
    "text": ("small.png", TypeError, "image is a str: give a PIL image, a numpy array or a tensor"),
    "grey array": (np.zeros((4, 4), np.uint8), ValueError, r"array of shape \(4, 4\), uint8: must be \(h, w, 3\)"),
    "four channels": (np.zeros((4, 4, 4), np.uint8), ValueError, r"array of shape \(4, 4, 4\), uint8"),
    "empty array": (np.zeros((0, 4, 3), np.uint8), ValueError, r"array of shape \(0, 4, 3\)"),
    "integers": (np.zeros((4, 4, 3), np.int64), ValueError, "int64: must be .* uint8, uint16 or float in"),
    "floats up to 255": (
        np.full((4, 4, 3), 255.0),
        ValueError,
        r"array with values from 255\.0 to 255\.0: floats must",
    ),
    "NaN array": (np.full((4, 4, 3), np.nan), ValueError, r"array with values from nan to nan: floats must lie in \[0"),
    "bytes tensor": (
        torch.zeros(3, 4, 4, dtype=torch.uint8),
        ValueError,
        r"torch.uint8: must be .* float in \[-1, 1\]",
    ),
    "channels last": (torch.zeros(4, 4, 3), ValueError, r"tensor of shape \(4, 4, 3\), torch.float32: must be \(3, h"),
    "no pictures": (torch.zeros(0, 3, 4, 4), ValueError, r"tensor of shape \(0, 3, 4, 4\)"),
    "tensor up to 255": (torch.full((3, 4, 4), 255.0), ValueError, "values from 255 to 255: must lie in"),
    "NaN tensor": (torch.full((3, 4, 4), math.nan), ValueError, "tensor with values from nan to nan"),
    "16-bit PIL": (Image.new("I;16", (4, 4)), ValueError, r"PIL picture of mode I;16: give a numpy array \(h, w, 3\)"),
    "float PIL": (Image.new("F", (4, 4)), ValueError, "PIL picture of mode F"),
    "empty PIL": (Image.new("RGB", (0, 4)), ValueError, r"array of shape \(4, 0, 3\)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_pictures(upscaler, name):
    image, error, message = WRONG[name]
    with pytest.raises(error, match=message) as caught:
        upscaler(image)
    assert "\n" not in str(caught.value)
