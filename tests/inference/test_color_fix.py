"""What each color fix takes from the input, and what it leaves of the output."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import convolve1d

from sat_sr.inference import color_fix, resize_in_parts
from sat_sr.inference.color_fix import fix_colors


@pytest.mark.parametrize("fix", ["mean", "wavelet"])
@pytest.mark.parametrize(("source", "target"), [((12, 16), (48, 64)), ((1, 1), (4, 4)), ((5, 1), (17, 3))])
def test_a_faithful_output_is_left_alone(fix, source, target):
    """An output that is the upsampled input of one colour has nothing to be fixed."""
    image = torch.tensor([0.3, -0.5, 0.9]).view(1, 3, 1, 1).expand(1, 3, *source)
    output = image[..., :1, :1].expand(1, 3, *target)
    torch.testing.assert_close(fix_colors(output.clone(), image, fix), output, rtol=0, atol=1e-6)


@pytest.mark.parametrize("fix", ["none", "backprojection"])
def test_what_leaves_the_finished_picture_alone(fix):
    output = torch.randn(2, 3, 8, 8)
    before = output.clone()
    assert torch.equal(fix_colors(output, torch.zeros(2, 3, 2, 2), fix), before)


def test_mean_moves_each_channel_of_each_picture():
    output, image = torch.randn(2, 3, 32, 24), torch.rand(2, 3, 8, 6)
    fixed = fix_colors(output.clone(), image, "mean")
    torch.testing.assert_close(fixed.mean((-2, -1)), image.mean((-2, -1)), rtol=0, atol=1e-6)
    torch.testing.assert_close(fixed.diff(dim=-1), output.diff(dim=-1), rtol=0, atol=1e-5)


def test_wavelet_keeps_fine_structure_and_takes_the_colour():
    rows, cols = torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij")
    fine = 0.2 * torch.sin(cols * (2 * torch.pi / 4)) + 0.2 * torch.cos(rows * (2 * torch.pi / 8))
    fine = fine.expand(1, 3, -1, -1)
    image = torch.tensor([0.5, 0.1, -0.4]).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    fixed = fix_colors(fine + torch.tensor([-0.3, 0.2, 0.0]).view(1, 3, 1, 1), image, "wavelet")
    inside = np.s_[..., 32:-32, 32:-32]  # at the edges the repeated pixels have frequencies of their own
    torch.testing.assert_close(fixed[inside], (fine + image[..., :1, :1])[inside], rtol=0, atol=2e-3)


@pytest.mark.parametrize("size", [(64, 80), (7, 100), (1, 3)])
def test_wavelet_is_the_a_trous_transform(size):
    output, image = torch.randn(2, 3, *size), torch.randn(2, 3, *size)
    low = (image - output).double().numpy()
    for level in range(5):
        kernel = np.zeros(2 ** (level + 1) + 1)
        kernel[[0, 2**level, -1]] = [0.25, 0.5, 0.25]
        for axis in (-1, -2):
            low = convolve1d(low, kernel, axis=axis, mode="nearest")
    expected = output.double().numpy() + low
    np.testing.assert_allclose(fix_colors(output, image, "wavelet"), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("fix", ["mean", "wavelet"])
def test_strips_give_what_the_whole_gives_in_the_memory_of_the_output(fix, monkeypatch, live_bytes):
    """In strips much narrower than the picture, the output in place, and no second picture of its size."""
    output, image = torch.randn(1, 3, 96, 300), torch.randn(1, 3, 24, 75)
    expected, before = fix_colors(output.clone(), image, fix), image.clone()  # in two strips
    monkeypatch.setattr(color_fix, "STRIP", 16)
    monkeypatch.setattr(resize_in_parts, "STRIP", 16)
    with live_bytes() as live:
        found = fix_colors(output, image, fix)
    assert found.data_ptr() == output.data_ptr() and torch.equal(image, before)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    window = 96 * (16 + 2 * 31) * 3 * 4
    assert live.peak <= {"mean": 100, "wavelet": output.nbytes / 2 + 6 * window}[fix]


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="unknown color fix 'Wavelet': choose one of none, mean, wavelet, backprojec"):
        fix_colors(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 2, 2), "Wavelet")
