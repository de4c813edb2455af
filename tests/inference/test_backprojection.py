"""Back-projection: denoised pictures reduce to the input, and keep what the input cannot know."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from sat_sr.diffusion.resize import resize
from sat_sr.diffusion.samplers import SAMPLERS
from sat_sr.inference import backprojection, resize_in_parts
from sat_sr.inference.backprojection import Backprojection
from sat_sr.inference.canvas import Canvas


def smooth(height, width, seed=0):
    """A picture without steps: noise of a wide spectrum, blurred by 1.5 pixels; within ±0.9."""
    noise = np.random.default_rng(seed).standard_normal((3, height, width))
    blurred = gaussian_filter(noise, (0, 1.5, 1.5), mode="nearest")
    return torch.from_numpy(0.9 * blurred / np.abs(blurred).max())[None].float()


def distance(picture, image):
    """PSNR in dB between the picture, reduced by Pillow, and the image (range 2)."""
    reduced = [
        Image.fromarray(channel.numpy()).resize(image.shape[:-3:-1], Image.Resampling.BICUBIC) for channel in picture[0]
    ]
    return 10 * np.log10(4 / np.mean((np.stack([np.asarray(c) for c in reduced]) - image[0].numpy()) ** 2))


@pytest.mark.parametrize("scale", [2, 4, 3.7])
def test_what_is_denoised_reduces_to_the_input(scale):
    image = smooth(48, 40)
    canvas = Canvas.of((48, 40), 32, scale=scale)
    height, width = canvas.target
    wrong = torch.randn(1, 3, *canvas.size)
    wrong[..., :height, :width] = resize(image, canvas.target) + 0.5 * smooth(height, width, seed=1)
    found = Backprojection(lambda x, sigma: wrong.clone(), image, canvas)(torch.zeros(()), 1.0)
    assert distance(wrong[..., :height, :width], image) < 31
    assert distance(found[..., :height, :width], image) >= 45
    assert torch.equal(found[..., height:, :], wrong[..., height:, :]), "padding is left alone"
    assert torch.equal(found[..., width:], wrong[..., width:])


def test_what_the_input_cannot_know_is_kept():
    """Structure that disappears in the reduced picture is not touched."""
    image, canvas = smooth(32, 32), Canvas.of((32, 32), 32, scale=4)
    checkers = torch.ones(128, 128)
    checkers[::2, ::2] = checkers[1::2, 1::2] = -1
    plain, checked = (
        Backprojection(lambda x, sigma, d=d: resize(image, (128, 128)) + d, image, canvas)(torch.zeros(()), 1.0)
        for d in (torch.zeros(128, 128), 0.1 * checkers)
    )
    inside, kept = np.s_[..., 8:-8, 8:-8], 0.1 * checkers.expand(1, 3, -1, -1)
    torch.testing.assert_close((checked - plain)[inside], kept[inside], rtol=0, atol=2e-3)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_ends_at_a_picture_that_reduces_to_the_input(sampler):
    """The denoiser wants another picture; what is made of it is an input enlarged."""
    image, canvas = smooth(12, 16), Canvas.of((12, 16), 16, scale=4)
    calls = []

    def elsewhere(x, sigma):
        calls.append(sigma)
        return 0.8 * x + 0.2 * smooth(48, 64, seed=3)

    sample = SAMPLERS[sampler](
        Backprojection(elsewhere, image, canvas), torch.zeros(1, 3, 48, 64), torch.tensor([4.0, 1.0, 0.01, 0.0])
    )
    assert len(calls) >= 3 and distance(sample, image) > 45


@pytest.mark.parametrize("parts", [[slice(0, 20), slice(20, 37)], [slice(0, 1), slice(1, 30), slice(30, 37)]])
@pytest.mark.parametrize("axis", [-2, -1])
def test_contributions_of_parts_add_up_to_pillows_resize(parts, axis, monkeypatch):
    monkeypatch.setattr(resize_in_parts, "STRIP", 7)
    picture = torch.rand(1, 3, 37, 37, generator=torch.Generator().manual_seed(0)) * 2 - 1
    total = torch.zeros(1, 3, 9, 11)
    for part in parts:
        place = {"rows" if axis == -2 else "columns": part}
        total += resize_in_parts.resize_part(
            picture.narrow(axis, part.start, part.stop - part.start), (37, 37), (9, 11), **place
        )
    for channel in range(3):
        expected = Image.fromarray(picture[0, channel].numpy()).resize((11, 9), Image.Resampling.BICUBIC)
        np.testing.assert_allclose(total[0, channel], np.asarray(expected), rtol=0, atol=2e-6)


def test_it_takes_the_memory_of_what_is_as_wide_as_the_input(monkeypatch, live_bytes):
    """In strips: no second picture of the canvas."""
    monkeypatch.setattr(backprojection, "STRIP", 16)
    monkeypatch.setattr(resize_in_parts, "STRIP", 16)
    image, canvas = torch.rand(1, 3, 24, 160), Canvas.of((24, 160), 32, scale=4)
    denoised = torch.rand(1, 3, *canvas.size)
    denoise = Backprojection(lambda x, sigma: denoised, image, canvas)
    with live_bytes() as live:
        assert denoise(torch.zeros(()), 1.0) is denoised
    strip = 16 * 640 * 3 * 4  # of rows: the longer one
    assert live.peak <= denoised.nbytes / 4 + 3 * image.nbytes + 2 * strip < 0.8 * denoised.nbytes


@pytest.mark.parametrize("size", [(96, 128), (61, 90), (24, 32), (13, 30), (1, 1)])
def test_lanczos_is_pillows(size):
    image = torch.rand(1, 3, 24, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    part = slice(size[1] // 3, None)
    resized = backprojection.lanczos(backprojection.lanczos(image, -1, size[1], part), -2, size[0])
    for channel in range(3):
        expected = Image.fromarray(image[0, channel].numpy()).resize(size[::-1], Image.Resampling.LANCZOS)
        np.testing.assert_allclose(resized[0, channel], np.asarray(expected)[:, part], rtol=0, atol=2e-6)
