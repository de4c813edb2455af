"""How outputs are called: a template of fields. No torch in here."""

from __future__ import annotations

import os
import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path

from sat_sr.image_io.picture import WRITE_FORMATS

DEFAULT_TEMPLATE = "{stem}_sr"
OF_SIZE = ("width", "height", "scale")  # fields that differ from picture to picture


def check_template(template: str, fields: Sequence[str]) -> bool:
    """Whether a name template asks for what depends on the output's size.

    ValueError if it is not a template of these fields: nothing but `{field}` and `{field:format}` is allowed, since a
    template may look into the objects that it formats.
    """
    try:
        parts = list(string.Formatter().parse(template))
        names = [name for _, name, _, _ in parts if name is not None]
        unknown = [name for name in names if name not in fields]
        if unknown:
            known = ", ".join(f"{{{name}}}" for name in fields)
            raise ValueError(f"no field {{{unknown[0]}}} is known here, only {known}")
        if any("{" in (spec or "") for _, _, spec, _ in parts):
            raise ValueError("a format may not hold fields")
        if any(re.search(r"\d{4}", spec or "") for _, _, spec, _ in parts):  # {stem:>9999999999} fills the memory
            raise ValueError("a format may not be wider than 999")
    except ValueError as error:
        message = f"the name {template!r} is not a template ({error}): write it like {DEFAULT_TEMPLATE!r}"
        raise ValueError(message) from error
    literal = "".join(text for text, *_ in parts)
    if "/" in literal or "\\" in literal or "\0" in literal or not template.strip(" ."):
        raise ValueError(f"the name {template!r} is not a file name: folders belong into --out-dir")
    if Path(template).suffix.lower() in WRITE_FORMATS:
        raise ValueError(f"the name {template!r} has a suffix: leave it out, --format sets it")
    return not set(names).isdisjoint(OF_SIZE)


def fill_template(template: str, fields: Mapping[str, object]) -> str:
    """The name. ValueError if these values do not fit its formats."""
    try:
        name = template.format(**fields)
    except (ValueError, OverflowError, MemoryError) as error:
        raise ValueError(f"the name {template!r} cannot be made ({error}): simplify its formats") from error
    if set(name) & {os.sep, os.altsep, "\0"}:  # of a format: {stem:/>9}
        raise ValueError(f"the name {template!r} makes {name!r}, which is not a file name: simplify its formats")
    return name
