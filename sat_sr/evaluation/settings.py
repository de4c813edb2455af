"""What is compared: ways to sample from a network, given on the command line or in a JSON file."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterable
from pathlib import Path

from sat_sr.sampling import SamplingSettings

Setting = dict[str, str | int | float | bool]
"""What a run changes: fields of SamplingSettings, "seed", and "preset". What is absent is the checkpoint's default."""

PRESETS = ("default", "fast")  # the two sets of defaults that a checkpoint can carry
KEYS = {"preset": str, "seed": int} | {f.name: type(f.default) for f in dataclasses.fields(SamplingSettings)}


def parse_setting(text: str) -> Setting:
    """`sampler=dpmpp_2m,num_steps=10,sigma_max=5` as keyword arguments; "" is the default setting.

    Raises ValueError for a part without "=", an unknown key, or a value of another type.
    """
    values = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        key, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"setting {text!r}: {part!r} is not of the form key=value")
        values[key.strip()] = value.strip()
    return _typed(values, f"setting {text!r}")


def read_grid(path: str | Path) -> list[Setting]:
    """Settings from a JSON file: an object, or a list of them; a list as value stands for each of its entries.

    `{"sampler": ["heun", "dpmpp_2m"], "num_steps": [4, 10]}` is four settings.
    Raises ValueError when the file is not JSON of that form, OSError when it cannot be read.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a JSON file ({error})") from error
    settings = []
    for entry in content if isinstance(content, list) else [content]:
        if not isinstance(entry, dict):
            raise ValueError(f'{path}: {entry!r} is not an object such as {{"sampler": "heun", "num_steps": 10}}')
        choices = [value if isinstance(value, list) else [value] for value in entry.values()]
        settings += [_typed(dict(zip(entry, values, strict=True)), str(path)) for values in itertools.product(*choices)]
    return settings


def combine(base: Setting, settings: Iterable[Setting]) -> list[Setting]:
    """Each setting over the base, without repetitions; the base alone if there are none."""
    unique: list[Setting] = []
    for setting in [{**base, **setting} for setting in settings] or [base]:
        if setting not in unique:
            unique.append(setting)
    return unique


def _typed(values: dict[str, object], source: str) -> Setting:
    """The values as the types of KEYS; text is read as JSON where no text is wanted, 5 may stand for 5.0."""
    setting: Setting = {}
    for key, value in values.items():
        if key not in KEYS:
            raise ValueError(f"{source}: unknown key {key!r}; the known keys are {', '.join(KEYS)}")
        wanted = KEYS[key]
        try:
            read = json.loads(value) if isinstance(value, str) and wanted is not str else value
        except json.JSONDecodeError:
            read = None
        if type(read) is int and wanted is float:
            read = float(read)
        if type(read) is not wanted:
            raise ValueError(f"{source}: {key}={value!r} is not of type {wanted.__name__}")
        setting[key] = read
    if setting.get("preset", "default") not in PRESETS:
        raise ValueError(f"{source}: unknown preset {setting['preset']!r}; choose one of {', '.join(PRESETS)}")
    return setting


def resolve(setting: Setting, defaults: SamplingSettings, fast: SamplingSettings | None) -> SamplingSettings:
    """What a setting amounts to with the defaults that a checkpoint carries.

    Raises ValueError for a preset that the checkpoint does not have, and for values that SamplingSettings refuses.
    """
    changes = {key: value for key, value in setting.items() if key not in ("preset", "seed")}
    if setting.get("preset") != "fast":
        return defaults.replace(**changes)
    if fast is None:
        raise ValueError("preset fast: the checkpoint has none; give sampler and num_steps instead")
    return fast.replace(**changes)
