"""How a model wants to be sampled: values that a checkpoint may carry beside its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sat_sr.diffusion.samplers import SAMPLERS


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")


_RULES = {
    "name": (lambda value: isinstance(value, str) and value in SAMPLERS, f"one of {', '.join(SAMPLERS)}"),
    "num_steps": (lambda value: _positive(value) and isinstance(value, int), "an integer of at least 1"),
    "sigma_max": (_positive, "a positive number"),
    "sigma_min": (_positive, "a positive number"),
    "color_fix": (lambda value: isinstance(value, str), "a string"),
    "detail": (_positive, "a positive number"),
    "grid_shift": (lambda value: type(value) is int and value >= 0, "a whole number of pixels"),
    "fast": (lambda value: isinstance(value, Mapping) and "fast" not in value, "an object like the outer one"),
}


def check_sampler_defaults(values: Mapping[str, Any], *, where: str = "sampler defaults") -> dict[str, Any]:
    """The values if they are fine: any of

    name        a sampler (sat_sr.diffusion.samplers.SAMPLERS)
    num_steps   steps, at least 1
    sigma_max, sigma_min   noise levels, 0 < sigma_min < sigma_max
    color_fix   a string, as the upscaler takes it
    detail      how much of what the network adds, 1 for all of it
    grid_shift  pixels that the grid of blocks moves on by from network call to network call
    fast        the same once more, for quick results

    Raises ValueError for anything else; the message begins with `where`.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f'{where}: {values!r} is no object like {{"name": "heun", "num_steps": 20}}')
    for name, value in values.items():
        if name not in _RULES:
            raise ValueError(f"{where}: unknown key {name!r}, the known ones are {', '.join(_RULES)}")
        fits, rule = _RULES[name]
        if not fits(value):
            raise ValueError(f"{where}: {name}={value!r} must be {rule}")
    if values.get("sigma_min", 0) >= values.get("sigma_max", float("inf")):
        raise ValueError(f"{where}: sigma_min={values['sigma_min']} must be below sigma_max={values['sigma_max']}")
    if "fast" in values:
        check_sampler_defaults(values["fast"], where=f"{where}, fast")
    return dict(values)
