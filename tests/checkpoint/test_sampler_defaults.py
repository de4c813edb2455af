"""What a checkpoint may say about sampling."""

from __future__ import annotations

import pytest

from sat_sr.checkpoint.sampler_defaults import check_sampler_defaults, sampling_settings
from sat_sr.sampling import SamplingSettings

VALUES = {"name": "dpmpp_2m", "num_steps": 8, "sigma_max": 5, "sigma_min": 0.002, "color_fix": "wavelet", "detail": 1.5}


def test_good_values_are_returned_and_become_settings():
    stated = VALUES | {"grid_shift": 18, "fast": {"num_steps": 3, "detail": 0}}
    assert check_sampler_defaults(stated, block=32) == stated
    settings = SamplingSettings("dpmpp_2m", 8, 0.002, 5, color_fix="wavelet", detail=1.5, grid_shift=18)
    assert sampling_settings(stated) == settings
    assert sampling_settings(stated, fast=True) == settings.replace(num_steps=3, detail=0)
    assert sampling_settings({}) == SamplingSettings()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 3}, "unknown key 'steps', the known ones are name, num_steps, .*, fast"),
        ({"sampler": "heun"}, "unknown key 'sampler'"),
        ({"name": "ddim"}, "unknown sampler 'ddim': choose one of heun, euler, dpmpp_2m"),
        ({"name": ["heun"]}, r"unknown sampler \['heun'\]"),
        ({"num_steps": 0}, "num_steps=0: must be an integer of at least 1"),
        ({"num_steps": 2.5}, r"num_steps=2\.5: must"),
        ({"sigma_max": float("nan")}, "sigma_max=nan: must be"),
        ({"sigma_max": "5"}, "sigma_max='5': must be a number"),
        ({"sigma_min": None}, "sigma_min=None: must be a number"),
        ({"sigma_min": 2, "sigma_max": 1}, "sigma_min=2, sigma_max=1: must be 0 < sigma_min <= sigma_max"),
        ({"color_fix": "wavlet"}, "unknown color fix 'wavlet'"),
        ({"detail": 99}, "detail=99: must lie between 0 and 5"),
        ({"grid_shift": -2}, "grid_shift=-2: must be an integer number of pixels"),
        ({"grid_shift": 32}, "grid_shift=32: must be less than the model's blocks of 32 pixels"),
        ({"fast": {"num_steps": -1}}, "sampler defaults, fast: num_steps=-1"),
        ({"sigma_max": 1, "fast": {"sigma_min": 2}}, "sampler defaults, fast: sigma_min=2, sigma_max=1"),
        ({"fast": {"fast": {}}}, "sampler defaults, fast: unknown key 'fast'"),
        ({"fast": 3}, "sampler defaults, fast: 3 is not an object"),
        ([], "sampler defaults: .* is not an object"),
    ],
)
def test_sampler_defaults_are_checked(values, message):
    with pytest.raises(ValueError, match=message):
        check_sampler_defaults(values, block=32)
