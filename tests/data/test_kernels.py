"""Blur kernels against closed forms and scipy; the filter against scipy.ndimage. Recorded kernels: `test_golden.py`."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.ndimage
import scipy.special
import torch

from sat_sr.data.kernels import GAUSSIAN_KINDS, blur, kernel_from_parameters

SHAPE = {"sigma_x": 1.3, "sigma_y": 0.6, "theta": 0.4, "beta": 0.8, "cutoff": 2.0}


@pytest.mark.parametrize("kind", [*GAUSSIAN_KINDS, "sinc"])
def test_sums_to_one_and_is_even(kind):
    kernel = kernel_from_parameters(kind, 15, **SHAPE)
    assert kernel.dtype == torch.float64
    assert kernel.sum().item() == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(kernel, kernel.flip(0, 1), atol=1e-15, rtol=0)


def test_second_moments_of_a_gaussian_are_its_covariance():
    sigma_x, sigma_y, theta = 2.0, 1.0, 0.7
    kernel = kernel_from_parameters("aniso", 31, sigma_x=sigma_x, sigma_y=sigma_y, theta=theta).numpy()
    y, x = np.mgrid[-15:16, -15:16]
    c, s = math.cos(theta), math.sin(theta)
    wanted = [
        c**2 * sigma_x**2 + s**2 * sigma_y**2,
        s**2 * sigma_x**2 + c**2 * sigma_y**2,
        c * s * (sigma_x**2 - sigma_y**2),
    ]
    found = [(kernel * x * x).sum(), (kernel * y * y).sum(), (kernel * x * y).sum()]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("shape", ["generalized", "plateau"])
def test_beta_shapes_by_their_ratio_to_the_centre(shape):
    sigma, beta = 1.7, 0.8
    kernel = kernel_from_parameters(f"{shape}_iso", 7, sigma_x=sigma, beta=beta)
    q = (2**2 + 1**2) / sigma**2  # at x = 2, y = 1
    wanted = math.exp(-(q**beta) / 2) if shape == "generalized" else 1 / (1 + q**beta)
    assert (kernel[3 + 1, 3 + 2] / kernel[3, 3]).item() == pytest.approx(wanted, rel=1e-12)


def test_sinc_against_scipy():
    cutoff, size = 1.9, 11
    y, x = np.mgrid[-5:6, -5:6]
    radius = np.hypot(x, y)
    with np.errstate(invalid="ignore"):
        wanted = cutoff * scipy.special.j1(cutoff * radius) / (2 * np.pi * radius)
    wanted[5, 5] = cutoff**2 / (4 * np.pi)
    kernel = kernel_from_parameters("sinc", size, cutoff=cutoff, pad_to=21).numpy()
    np.testing.assert_allclose(kernel[5:16, 5:16], wanted / wanted.sum(), atol=1e-7)
    assert kernel.shape == (21, 21) and np.count_nonzero(kernel) <= size**2


def test_blur_reflects_at_the_border_like_scipy():
    images = torch.rand(2, 3, 37, 52, generator=torch.Generator().manual_seed(0))
    kernels = [
        kernel_from_parameters("aniso", 21, sigma_x=3.0, sigma_y=0.8, theta=0.5),
        kernel_from_parameters("sinc", 7, cutoff=1.2),
    ]
    found = blur(images, kernels)
    for i, kernel in enumerate(kernels):
        for c in range(3):
            wanted = scipy.ndimage.correlate(images[i, c].double().numpy(), kernel.numpy(), mode="mirror")
            np.testing.assert_allclose(found[i, c].numpy(), wanted, atol=2e-6)


def test_blur_correlates():
    """What an uneven kernel shows: the weight right of the centre takes the pixel from the right."""
    kernel = torch.zeros(3, 3)
    kernel[1, 2] = 1.0
    image = torch.arange(20.0).view(1, 1, 4, 5)
    torch.testing.assert_close(blur(image, [kernel])[..., :-1], image[..., 1:], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "box", "kernel_size": 7}, "unknown kernel kind 'box': choose one of iso, .*sinc"),
        ({"kind": "iso", "kernel_size": 8, "sigma_x": 1.0}, "must be odd"),
        ({"kind": "aniso", "kernel_size": 7, "sigma_x": 1.0}, "'aniso' needs sigma_y"),
        ({"kind": "plateau_iso", "kernel_size": 7, "sigma_x": 1.0}, "'plateau_iso' needs beta"),
        ({"kind": "sinc", "kernel_size": 7}, "'sinc' needs cutoff"),
        ({"kind": "sinc", "kernel_size": 7, "cutoff": 2.0, "pad_to": 5}, "pad to a larger odd size"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        kernel_from_parameters(**arguments)
