"""What a checkpoint may say about sampling."""

from __future__ import annotations

import pytest

from sat_sr.sampler_defaults import check_sampler_defaults


def test_good_values_are_returned():
    values = {"name": "dpmpp_2m", "num_steps": 8, "sigma_max": 5, "sigma_min": 0.002, "color_fix": "wavelet"}
    values |= {"detail": 1.5, "grid_shift": 18}
    assert check_sampler_defaults(values | {"fast": {"num_steps": 3}}) == values | {"fast": {"num_steps": 3}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 3}, "unknown key 'steps'"),
        ({"name": "ddim"}, "name='ddim' must be one of heun, euler, dpmpp_2m"),
        ({"num_steps": 0}, "num_steps=0 must be an integer of at least 1"),
        ({"num_steps": 2.5}, r"num_steps=2\.5 must"),
        ({"sigma_max": float("nan")}, "sigma_max=nan must be a positive number"),
        ({"sigma_min": 2, "sigma_max": 1}, "sigma_min=2 must be below sigma_max=1"),
        ({"detail": 0}, "detail=0 must be a positive number"),
        ({"grid_shift": -2}, "grid_shift=-2 must be a whole number of pixels"),
        ({"fast": {"num_steps": -1}}, "sampler defaults, fast: num_steps=-1"),
        ({"fast": {"fast": {}}}, "fast=.* must be an object like the outer one"),
        ([], "is no object"),
    ],
)
def test_sampler_defaults_are_checked(values, message):
    with pytest.raises(ValueError, match=message):
        check_sampler_defaults(values)
