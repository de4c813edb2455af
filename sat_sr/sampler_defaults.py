"""How a model wants to be sampled: values that a checkpoint may carry beside its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sat_sr.diffusion.samplers import SAMPLERS


def check_sampler_defaults(values: Mapping[str, Any], *, where: str = "sampler defaults") -> dict[str, Any]:
    """The values if they are fine: any of

    name        a sampler (sat_sr.diffusion.samplers.SAMPLERS)
    num_steps   steps, at least 1
    sigma_max, sigma_min   noise levels, 0 < sigma_min < sigma_max
    color_fix   a string, as the Upscaler takes it
    fast        the same once more, for quick results

    Raises ValueError for anything else.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{where}: {values!r} is no object")

    def number(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool)

    rules = {
        "name": (lambda v: isinstance(v, str) and v in SAMPLERS, f"one of {', '.join(SAMPLERS)}"),
        "num_steps": (lambda v: number(v) and isinstance(v, int) and v >= 1, "an integer of at least 1"),
        "sigma_max": (lambda v: number(v) and 0 < v < float("inf"), "a positive number"),
        "sigma_min": (lambda v: number(v) and 0 < v < values.get("sigma_max", float("inf")), "between 0 and sigma_max"),
        "color_fix": (lambda v: isinstance(v, str), "a string"),
        "fast": (lambda v: isinstance(v, Mapping) and "fast" not in v, "an object like the outer one"),
    }
    for name, value in values.items():
        if name not in rules:
            raise ValueError(f"{where}: unknown key {name!r}, the known ones are {', '.join(rules)}")
        fits, rule = rules[name]
        if not fits(value):
            raise ValueError(f"{where}: {name}={value!r} must be {rule}")
        if name == "fast":
            check_sampler_defaults(value, where=f"{where}, fast")
    return dict(values)
