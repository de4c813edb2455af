"""Sampling settings: the release's defaults, the meaning of strength, and a sentence for each wrong value."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from sat_sr.diffusion.edm import karras_sigmas
from sat_sr.diffusion.samplers import SAMPLERS
from sat_sr.sampling import SamplingSettings


def test_defaults_are_the_releases():
    settings = SamplingSettings()
    assert (settings.sampler, settings.num_steps, settings.init_noise, settings.color_fix) == ("heun", 20, True, "none")
    assert torch.equal(settings.sigmas(), karras_sigmas(20, 0.002, 40.0))
    assert settings.network_calls == 39
    assert str(settings) == "heun, 20 steps (39 network calls), sigma 40 to 0.002"


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "unipc"])
def test_one_call_a_step(name):
    settings = SamplingSettings(sampler=name, num_steps=7, sigma_max=5.0, color_fix="mean")
    assert settings.network_calls == 7 and settings.sigmas()[0] == 5
    assert str(settings) == f"{name}, 7 steps (7 network calls), sigma 5 to 0.002, color fix mean"


def test_strength_starts_geometrically_in_between():
    sigmas = SamplingSettings(num_steps=5, sigma_min=0.01, sigma_max=100.0, strength=0.5).sigmas()
    assert sigmas.tolist() == pytest.approx(karras_sigmas(5, 0.01, 1.0).tolist())
    starts = [float(SamplingSettings(strength=s / 10).sigmas()[0]) for s in range(11)]
    assert starts[0] == pytest.approx(0.002) and starts[10] == pytest.approx(40)
    for a, b in pairwise(starts):
        assert b / a == pytest.approx((40 / 0.002) ** 0.1, rel=1e-4)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("strength", [0.0, 1e-9, 1e-7, 1e-6, 1e-4])
def test_strengths_of_almost_nothing_can_be_sampled(sampler, strength):
    settings = SamplingSettings(sampler=sampler, strength=strength)
    sigmas, calls = settings.sigmas(), 0
    assert bool((sigmas.diff() < 0).all()) and sigmas[0].item() == pytest.approx(0.002, rel=1e-2)

    def denoise(x, sigma):
        nonlocal calls
        calls += 1
        return x * 0.25 / (0.25 + sigma**2)

    x = torch.linspace(-1, 1, 9)
    torch.testing.assert_close(SAMPLERS[sampler](denoise, x, sigmas), x, rtol=0, atol=1e-4)
    assert calls == settings.network_calls
    if strength == 0:
        assert calls == 1 and str(settings).startswith(f"{sampler}, 1 steps (1 network calls)")


def test_numbers_of_numpy_are_taken_as_pythons_own():
    given = {
        "num_steps": np.int64(7), "grid_shift": np.uint8(3), "sigma_min": np.float64(0.5), "sigma_max": np.int32(40),
        "strength": np.float32(0.75), "detail": np.float16(1.5),
    }  # fmt: skip
    settings = SamplingSettings(**given)
    plain = SamplingSettings(num_steps=7, grid_shift=3, sigma_min=0.5, sigma_max=40.0, strength=0.75, detail=1.5)
    assert settings == plain and str(settings) == str(plain)
    assert {type(getattr(settings, name)) for name in given} == {int, float}
    assert json.loads(json.dumps(settings.to_dict())) == plain.to_dict()  # as they are stored in pictures
    with pytest.raises(ValueError, match=r"^num_steps=.*: must be an integer of at least 1$"):
        SamplingSettings(num_steps=np.float64(7))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sampler": "ddim"}, "unknown sampler 'ddim': choose one of heun, euler, dpmpp_2m, unipc"),
        ({"color_fix": "lab"}, "unknown color fix 'lab': choose one of none, mean, wavelet, backprojection"),
        ({"detail": 5.5}, r"detail=5\.5: must lie between 0 and 5"),
        ({"detail": math.nan}, "detail=nan"),
        ({"grid_shift": -1}, "grid_shift=-1: must be an integer number of pixels, 0 for none"),
        ({"grid_shift": 8.0}, r"grid_shift=8\.0"),
        ({"num_steps": 0}, "num_steps=0: must be an integer of at least 1"),
        ({"num_steps": 2.0}, r"num_steps=2\.0"),
        ({"num_steps": True}, "num_steps=True"),
        ({"sigma_min": 0}, "sigma_min=0, sigma_max=40.0: must be 0 < sigma_min <= sigma_max"),
        ({"sigma_min": 50}, "sigma_min=50, sigma_max=40.0"),
        ({"sigma_max": math.nan}, "sigma_max=nan"),
        ({"sigma_max": math.inf}, "sigma_max=inf"),
        ({"strength": 1.01}, r"strength=1\.01: must lie between 0 and 1"),
        ({"strength": math.nan}, "strength=nan"),
        ({"strength": 0.5, "init_noise": False}, "strength below 1 starts from the upsampled input"),
        ({"steps": 3, "size": 2}, "unknown sampling setting size, steps: the known ones are sampler, num_steps"),
    ],
)
def test_each_rule_has_its_sentence(values, message):
    with pytest.raises(ValueError, match=message):
        SamplingSettings().replace(**values)


def test_replace_takes_what_is_given_and_the_dict_goes_around():
    settings = SamplingSettings(num_steps=9, strength=0.7)
    changed = settings.replace(num_steps=None, sampler="euler", strength=0.0)
    assert changed == SamplingSettings(sampler="euler", num_steps=9, strength=0.0)
    assert SamplingSettings(**changed.to_dict()) == changed
