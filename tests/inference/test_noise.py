"""The noise of a place: always the same, independent between places and seeds, unit normal."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from sat_sr.inference.noise import TILE, position_noise

# Of the patch in test_a_seed_means_the_same_noise_for_ever, recorded when the noise was defined.
FIRST = [1.7953787, -0.5617610, 1.1784099]
DIGEST = "58e88fa6ebdeee4c"


def test_the_same_place_has_the_same_noise_in_every_canvas():
    large = position_noise(7, (3 * TILE + 5, 2 * TILE + 33))
    for height, width in ((1, 1), (TILE, TILE), (TILE + 1, 40), (2 * TILE, 2 * TILE + 33), (3 * TILE + 5, 1)):
        assert torch.equal(position_noise(7, (height, width)), large[..., :height, :width])


def test_a_part_is_cut_from_the_whole():
    canvas = (3 * TILE + 5, 2 * TILE + 33)
    whole = position_noise(7, canvas)
    for rows in (slice(None), slice(0, 7), slice(60, 70), slice(TILE, 2 * TILE), slice(2 * TILE + 1, None)):
        for columns in (slice(None), slice(TILE - 1, TILE + 1), slice(2 * TILE, None)):
            assert torch.equal(position_noise(7, canvas, rows, columns), whole[..., rows, columns])


def test_a_seed_means_the_same_noise_for_ever():
    """Pictures are reproduced from their seed: these values must survive every new version."""
    noise = position_noise(2**63 + 5, (TILE + 4, TILE + 4))
    assert noise.shape == (1, 3, TILE + 4, TILE + 4) and noise.dtype is torch.float32
    patch = noise[..., -8:, -8:].contiguous().numpy().astype("<f4")  # parts of four tiles
    assert patch[0, :, 0, 0].tolist() == pytest.approx(FIRST, abs=1e-6)
    assert hashlib.sha256(patch.tobytes()).hexdigest()[:16] == DIGEST


def test_unit_normal():
    noise = position_noise(0, (512, 512)).double().numpy().ravel()
    n = noise.size
    # Moments of the normal distribution, within 5 standard errors.
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert np.mean(noise**power) == pytest.approx(moment, abs=5 * np.sqrt(variance / n)), power
    assert np.mean(np.abs(noise) < 1) == pytest.approx(0.682689, abs=5 * np.sqrt(0.2166 / n))


def test_tiles_channels_and_seeds_are_independent():
    tiles = position_noise(0, (4 * TILE, 4 * TILE)).reshape(3, 4, TILE, 4, TILE).permute(0, 1, 3, 2, 4)
    seeds = [position_noise(seed, (TILE, TILE)) for seed in (*range(1, 17), 2**32, 2**63, 2**64 - 1)]
    samples = torch.cat([tiles.reshape(-1, TILE**2), *(noise.reshape(3, -1) for noise in seeds)]).double().numpy()
    correlation = np.corrcoef(samples) - np.eye(len(samples))
    assert np.abs(correlation).max() < 5.5 / TILE  # 5.5 standard errors for 5,460 pairs


def test_neighbouring_pixels_are_independent():
    noise = position_noise(3, (4 * TILE, 4 * TILE))[0].double()
    for down, right in ((0, 1), (1, 0), (1, 1), (0, TILE), (TILE, 0)):
        height, width = noise.shape[-2] - down, noise.shape[-1] - right
        product = noise[:, :height, :width] * noise[:, down:, right:]
        assert abs(product.mean().item()) < 5 / product.numel() ** 0.5, (down, right)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, 1.0, True, "1", None])
def test_seeds_that_cannot_be(seed):
    with pytest.raises(ValueError, match=rf"seed {seed!r}: must be an integer between 0 and 2\*\*64 - 1"):
        position_noise(seed, (8, 8))


def test_numpy_integers_are_seeds():
    assert torch.equal(position_noise(np.int64(12), (4, 4)), position_noise(12, (4, 4)))
