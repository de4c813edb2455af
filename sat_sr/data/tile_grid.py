"""Disjoint tiles of a picture, spread evenly over it."""

from __future__ import annotations


def tile_starts(length: int, size: int) -> list[int]:
    """Where as many tiles as fit begin along a side, pixels: the first at 0, the last at the end; one in the middle."""
    count = length // size
    if count == 1:
        return [round((length - size) / 2)]
    return [(length - size) * index // (count - 1) for index in range(count)]
