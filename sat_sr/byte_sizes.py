"""Amounts of memory as people write and read them. No torch in here: the command line parses with it."""

from __future__ import annotations

import math
import re


def parse_bytes(text: str) -> int:
    """'8GiB', '500M', '1.5 GB', '1073741824' -> bytes (units of 1024). Raises ValueError that shows the forms."""
    match = re.fullmatch(r"\s*(\d{1,18}(?:\.\d+)?)\s*([kmgt]?)i?b?\s*", text, re.IGNORECASE)
    count = int(float(match[1]) * 1024 ** " kmgt".index(match[2].lower() or " ")) if match else 0
    if count < 1:
        raise ValueError(f"{text!r} is not an amount of memory: write it like 8GiB, 500MiB, 1.5G or a number of bytes")
    return count


def format_bytes(count: int, *, up: bool = False) -> str:
    """1234567890 -> '1.1 GiB', or '1.2 GiB' up: what is at least as much."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    if unit == "B":
        return f"{value:.0f} B"
    return f"{math.ceil(value * 10) / 10 if up else value:.1f} {unit}"
