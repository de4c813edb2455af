"""The samplers on Gaussian data, where everything is known: the denoiser and the path of every point.

For data N(0, s²) the denoiser is D(x, sigma) = x·s²/(s² + sigma²), and the flow from sigma_a to sigma_b multiplies x by
sqrt((s² + sigma_b²)/(s² + sigma_a²)).
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sat_sr.diffusion.samplers import SAMPLERS, network_calls

S = 0.5
ORDERS = {"euler": 1, "heun": 2, "dpmpp_2m": 2, "unipc": 3}


def gaussian(x, sigma):
    return x * S**2 / (S**2 + sigma**2)


def geometric(steps):
    return torch.from_numpy(np.geomspace(10, 0.1, steps + 1))


def uneven(steps):
    """Every second step in lambda is three times as long: what a multistep method may have wrong."""
    places = np.cumsum([0, *np.tile([1, 3], steps // 2)]) / (2 * steps)
    return torch.from_numpy(10 * 0.01**places)


@pytest.mark.parametrize("grid", [geometric, uneven])
@pytest.mark.parametrize("name", SAMPLERS)
def test_order_of_convergence(name, grid):
    exact = math.sqrt((S**2 + 0.1**2) / (S**2 + 10**2))
    steps = [64, 128, 256, 512]
    x = torch.ones(1, dtype=torch.float64)
    errors = [abs(float(SAMPLERS[name](gaussian, x, grid(n))) / exact - 1) for n in steps]
    slope = np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope == pytest.approx(-ORDERS[name], abs=0.2), errors
    assert errors[-1] < 0.03 * 10 ** (1 - ORDERS[name]), errors


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_known_picture_is_reached_along_a_straight_line(name):
    """When the denoiser always says y, x - y shrinks in proportion to sigma: exact for every sampler."""
    y, x = torch.tensor([0.3, -0.8], dtype=torch.float64), torch.tensor([7.0, 11.0], dtype=torch.float64)
    sigmas = torch.tensor([10.0, 4.0, 3.0, 0.5, 0.2], dtype=torch.float64)
    states = []
    SAMPLERS[name](lambda x, sigma: y, x, sigmas, callback=lambda i, n, state: states.append(state))
    for state, sigma in zip(states, sigmas[1:], strict=True):
        torch.testing.assert_close(state, y + sigma / 10 * (x - y), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_calls_and_callbacks(name, steps):
    x, sigmas = torch.randn(1, 3, 4, 4), torch.cat([geometric(steps)[:steps], torch.zeros(1)]).float()
    start, asked, answers, reported, kept = x.clone(), [], [], [], []

    def denoise(x, sigma):
        assert type(sigma) is float and x.dtype is torch.float32
        asked.append(sigma)
        answers.append(gaussian(x, sigma))
        return answers[-1]

    def callback(i, n, state):
        reported.append((i, n, state))
        kept.append(state.clone())

    result = SAMPLERS[name](denoise, x, sigmas, callback=callback)
    assert len(asked) == network_calls(name, steps) == (2 * steps - 1 if name == "heun" else steps)
    assert set(asked) == set(sigmas[:-1].tolist())
    assert [(i, n) for i, n, _ in reported] == [(i, steps) for i in range(steps)]
    assert torch.equal(x, start), "the start belongs to the caller"
    for (_, _, state), copy in zip(reported, kept, strict=True):
        assert torch.equal(state, copy), "what a callback has been given is not changed afterwards"
    assert torch.equal(result, reported[-1][2])
    torch.testing.assert_close(result, answers[-1], rtol=0, atol=1e-6)  # sigma 0 is the denoised picture itself


@pytest.mark.parametrize("name", SAMPLERS)
def test_state_is_float32_whatever_the_network_computes_in(name):
    x, sigmas = torch.randn(1, 3, 8, 8) * 10, torch.cat([geometric(8)[:8], torch.zeros(1)]).float()
    dtypes = set()

    def denoise(x, sigma):
        dtypes.add(x.dtype)
        return gaussian(x, sigma).bfloat16()

    states = []
    result = SAMPLERS[name](denoise, x, sigmas, callback=lambda i, n, state: states.append(state))
    assert dtypes == {torch.float32} and {state.dtype for state in states} == {torch.float32}
    exact = SAMPLERS[name](gaussian, x, sigmas)
    assert result.dtype is torch.float32 and (result - exact).abs().max() < 2**-7 * exact.abs().max()


@pytest.mark.parametrize("name", SAMPLERS)
def test_denoiser_may_keep_what_it_gave(name):
    """A denoiser that returns the same tensor every time must find it unchanged."""
    y = torch.full((4,), 0.25)
    SAMPLERS[name](lambda x, sigma: y, torch.randn(4), torch.tensor([4.0, 2.0, 1.0, 0.5, 0.0]))
    assert torch.equal(y, torch.full((4,), 0.25))


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(
    "sigmas", [[1.0, 1.0, 0.0], [1.0, 2.0, 0.0], [2.0, 1.0, -1.0], [2.0, math.nan, 0.0], [1.0], []], ids=str
)
def test_noise_levels_must_fall(name, sigmas):
    with pytest.raises(ValueError, match=r"sigmas \[.*\]: must fall at every step"):
        SAMPLERS[name](gaussian, torch.ones(1), torch.tensor(sigmas))
