"""16-bit colour rounded to 8 bits: Pillow itself cuts it, which makes every picture half a level darker."""

from __future__ import annotations

import io
import sys

import numpy as np
from PIL import Image

# Cutting to 8 bits, Pillow takes the first byte of what it is told to be big-endian, the second of little-endian.
_NATIVE, _SWAPPED = ("L", "B") if sys.byteorder == "little" else ("B", "L")
_LOW = {"B": "L", "L": "B", "N": _SWAPPED}


def is_deep(image: Image.Image) -> bool:
    """Whether a picture, opened but not loaded, stores colour of 16 bits that Pillow would cut."""
    modes = [_raw_mode(tile) for tile in image.tile]
    keyed = "transparency" in image.info  # the transparent colour is given in 16 bits: leave it to Pillow
    return bool(modes) and not keyed and all(mode.startswith("RGB") and ";16" in mode for mode in modes)


def load_rounded(image: Image.Image) -> Image.Image:
    """The picture, for which `is_deep` holds, with its values rounded: v/257. An alpha channel stays cut.

    Where Pillow has no way to the low bytes all values stay cut.
    """
    low = _low_bytes(image)
    high = np.asarray(image)
    if low is None:
        return image
    values = high.astype(np.uint32) << 8 | low
    rounded = ((values + 128) // 257).astype(np.uint8)
    if image.mode.endswith("A"):
        rounded[..., -1] = high[..., -1]
    return Image.fromarray(rounded)


def _raw_mode(tile: tuple) -> str:
    arguments = tile[3]
    return arguments if isinstance(arguments, str) else str(arguments[0])


def _low_bytes(image: Image.Image) -> np.ndarray | None:
    place = image.fp.tell()  # reading on, a PNG is taken up where its header ended
    image.fp.seek(0)
    again = Image.open(io.BytesIO(image.fp.read()), formats=[image.format])
    image.fp.seek(place)
    tiles = []
    for tile in again.tile:
        mode = _raw_mode(tile)
        if mode[-1:] not in _LOW or mode.count(";") != 1:
            return None
        swapped = mode[:-1] + _LOW[mode[-1]]
        tiles.append((*tile[:3], swapped if isinstance(tile[3], str) else (swapped, *tile[3][1:])))
    again.tile = [original._replace(args=tile[3]) for original, tile in zip(again.tile, tiles, strict=True)]
    try:
        return np.asarray(again)
    except ValueError:  # no such mode
        return None
