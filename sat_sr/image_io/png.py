"""What Pillow leaves to be done for PNG: colours of 16 bits, chunks that it does not keep."""

from __future__ import annotations

import io
import struct
from typing import BinaryIO

import numpy as np
from PIL import Image

_PNG_COLOR_CHUNKS = (b"cHRM", b"gAMA", b"sRGB", b"cICP", b"mDCV", b"cLLI")  # the last two: of HDR
_TOPS = {"1": 1, "L;2": 3, "L;4": 15}  # white, by Pillow's names of grey PNGs of 1, 2 and 4 bits
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_PNG_PIXEL_CHUNKS = (b"IDAT", b"acTL", b"fcTL", b"fdAT")  # the last three: animation


def decode_deep_png(file: BinaryIO, color_type: int) -> np.ndarray:
    """16-bit PNG of colour type 2 (RGB), 4 (grey + alpha) or 6 (RGBA) -> (H, W, C) uint16.

    It is decoded twice, once keeping the high bytes and once the low ones.
    """

    def decode_as(raw_mode: str) -> np.ndarray:
        file.seek(0)
        image = Image.open(file, formats=["PNG"])
        image.tile = [image.tile[0]._replace(args=raw_mode)]
        return np.asarray(image)

    if color_type == 4:  # four bytes a pixel, like 8-bit RGBA
        return decode_as("RGBA").view(">u2").astype(np.uint16)
    mode = "RGB" if color_type == 2 else "RGBA"
    # Cutting to 8 bits, Pillow takes the first byte of what it is told to be big-endian, the second of little-endian.
    high, low = decode_as(f"{mode};16B"), decode_as(f"{mode};16L")
    return high.astype(np.uint16) << 8 | low


def correct_transparent_level(image: Image.Image) -> None:
    """Brings the transparent level of a grey PNG, not loaded yet, to the 8 bits that Pillow brings its samples to.

    Pillow leaves that of 2 or 4 bits as stored, its earlier versions that of 1 bit, too: another level would be
    transparent. Other kinds of picture stay as they are.
    """
    raw_mode = image.tile[0].args if image.format == "PNG" and image.tile else None
    level = image.info.get("transparency")
    if raw_mode in _TOPS and isinstance(level, int):
        image.info["transparency"] = (level & _TOPS[raw_mode]) * (255 // _TOPS[raw_mode])


def png_without_pixels(file: BinaryIO) -> BinaryIO:
    """A PNG's other chunks, those behind the pixels as well: EXIF and texts are often put there."""
    file.seek(0)
    parts = [file.read(8)]
    while len(header := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", header)
        if kind == b"IEND":
            break
        if kind in _PNG_PIXEL_CHUNKS:
            file.seek(length + 4, io.SEEK_CUR)
        else:
            parts += [header, file.read(length + 4)]
    return io.BytesIO(b"".join([*parts, _PNG_END]))


def png_color_chunks(file: BinaryIO) -> tuple[tuple[bytes, bytes], ...]:
    """PNG's own description of its colours: (type, data) of the chunks before the pixels."""
    chunks = []
    file.seek(8)
    while len(header := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", header)
        if kind in (b"IDAT", b"IEND"):
            break
        if kind in _PNG_COLOR_CHUNKS and length <= 32:
            chunks.append((kind, file.read(length)))
            file.seek(4, io.SEEK_CUR)
        else:
            file.seek(length + 4, io.SEEK_CUR)
    return tuple(chunks)
