"""What the network adds to the interpolated input, enlarged at high noise levels."""

from __future__ import annotations

import torch

from sat_sr.diffusion.samplers import dpmpp_2m
from sat_sr.inference.detail import LEAST_SIGMA, Detail


def test_the_distance_from_the_interpolated_input_is_multiplied():
    generator = torch.Generator().manual_seed(0)
    upsampled, drawn = (torch.rand(1, 3, 8, 8, generator=generator, dtype=torch.double) for _ in range(2))
    for detail in (0.0, 0.5, 1.0, 1.5):
        found = Detail(lambda x, sigma: drawn.clone(), upsampled, detail)(torch.zeros(()), LEAST_SIGMA)
        torch.testing.assert_close(found - upsampled, detail * (drawn - upsampled))
    low = Detail(lambda x, sigma: drawn.clone(), upsampled, 3.0)(torch.zeros(()), 0.99 * LEAST_SIGMA)
    assert torch.equal(low, drawn), "at low noise it is the network's"


def test_a_picture_with_more_detail_is_farther_from_the_input_and_ends_at_the_networks():
    """A denoiser of pictures u + z, z normal with deviation 0.3: known in closed form, the last call shrinks again."""
    upsampled, sigmas = torch.zeros(1, 3, 64, 64), torch.tensor([5.0, 2.0, 1.0, 0.5, 0.2, 0.05, 0.0])

    def ideal(x, sigma):
        return x * 0.09 / (0.09 + sigma**2)

    noise = 5 * torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    spread = [float(dpmpp_2m(Detail(ideal, upsampled, w), noise, sigmas).std()) for w in (0.5, 1.0, 1.5)]
    assert spread[0] < 0.95 * spread[1] < 0.9 * spread[2]
