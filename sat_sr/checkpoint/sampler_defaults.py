"""How a model wants to be sampled: settings that a checkpoint may carry beside its weights.

They are those of `SamplingSettings` under their names there, the sampler's own as `name`, and as `fast` those that
change for quick results: {"name": "dpmpp_2m", "num_steps": 8, "fast": {"num_steps": 4}}.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sat_sr.sampling import SETTING_NAMES, SamplingSettings

KEYS = ["name", *(name for name in SETTING_NAMES if name != "sampler")]


def sampling_settings(stated: Mapping[str, Any], fast: bool = False) -> SamplingSettings:
    """What is stated, the release's settings where nothing is; with those of `fast` for quick results.

    Raises ValueError when a value breaks a rule of `SamplingSettings`.
    """
    values = {**stated, **(stated["fast"] if fast else {})}
    values.pop("fast", None)
    if "name" in values:
        values["sampler"] = values.pop("name")
    return SamplingSettings(**values)


def check_sampler_defaults(values: Mapping[str, Any], block: int, where: str = "sampler defaults") -> dict[str, Any]:
    """The values if a model with blocks of that many pixels a side can be sampled so.

    Raises ValueError if not; the message begins with `where`.
    """
    fast = values.get("fast") if isinstance(values, Mapping) else None
    for part, inside in ((values, ""), *([(fast, ", fast")] if fast is not None else [])):
        if not isinstance(part, Mapping):
            raise ValueError(f'{where}{inside}: {part!r} is not an object like {{"name": "heun", "num_steps": 20}}')
        known = KEYS if inside else [*KEYS, "fast"]
        if unknown := [key for key in part if key not in known]:
            raise ValueError(f"{where}{inside}: unknown key {unknown[0]!r}, the known ones are {', '.join(known)}")
        try:
            sampling_settings(values, fast=bool(inside)).grid_offsets(block)
        except ValueError as error:
            raise ValueError(f"{where}{inside}: {error}") from error
    return dict(values)
