"""Values of flags, for argparse's `type`: each converter checks the range and says in a sentence what is wrong."""

from __future__ import annotations

import math
import re
from argparse import ArgumentTypeError
from collections.abc import Callable

from sat_sr.byte_sizes import parse_bytes


def integer(least: int, most: int = 10**18) -> Callable[[str], int]:
    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ArgumentTypeError(f"{text} must be an integer of at least {least}") from None
        if not least <= value <= most:
            limit = f"at least {least}" if value < least else f"at most {most}"
            raise ArgumentTypeError(f"{text} must be an integer of {limit}")
        return value

    return convert


def finite(text: str) -> float:
    value = _number(text)
    if not math.isfinite(value):
        raise ArgumentTypeError(f"{text} must be a number, such as -1")
    return value


def positive(text: str) -> float:
    value = _number(text)
    if not 0 < value < math.inf:
        raise ArgumentTypeError(f"{text} must be a number above 0")
    return value


def not_negative(text: str) -> float:
    value = _number(text)
    if not 0 <= value < math.inf:
        raise ArgumentTypeError(f"{text} must be 0 or a positive number")
    return value


def between(least: float, most: float) -> Callable[[str], float]:
    """Both ends included."""

    def convert(text: str) -> float:
        value = _number(text)
        if not least <= value <= most:  # NaN, too
            raise ArgumentTypeError(f"{text} must lie between {least} and {most}")
        return value

    return convert


def scale_factor(most: float) -> Callable[[str], float]:
    """A factor of enlargement, from 1 to `most`."""

    def convert(text: str) -> float:
        value = _number(text)
        if not 1 <= value <= most:
            hint = ": to make a picture smaller, use an image editor" if 0 < value < 1 else ", like 4 or 2.5"
            raise ArgumentTypeError(f"scale {text} must be a number of at least 1 and at most {most:g}{hint}")
        return value

    return convert


def seed(bits: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        if not re.fullmatch(r"\d{1,20}", text) or int(text) >= 2**bits:
            raise ArgumentTypeError(f"seed {text} must be an integer between 0 and 2**{bits} - 1")
        return int(text)

    return convert


def picture_size(text: str) -> tuple[int, int]:
    """3840x2160 -> (3840, 2160)"""
    match = re.fullmatch(r"(\d{1,9})[xX×](\d{1,9})", text)
    if not match or not int(match[1]) or not int(match[2]):
        raise ArgumentTypeError(f"{text!r} must be WIDTHxHEIGHT, both at least 1, like 3840x2160")
    return int(match[1]), int(match[2])


def memory_size(text: str) -> int:
    """8GiB -> bytes"""
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not a number") from None
