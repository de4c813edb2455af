"""Every kind of picture becomes upright 8-bit RGB; a damaged EXIF block does not cost the picture."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from sat_sr.data.pictures import ORIENTATION, to_rgb


def jpeg_with_exif(*entries: bytes) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (24, 40, 3), np.uint8)
    exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, len(entries)) + b"".join(entries) + bytes(4)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def orientation_tag(value: int) -> bytes:
    return struct.pack(">HHIHH", ORIENTATION, 3, 1, value, 0)


@pytest.mark.parametrize("turned", range(1, 9))
def test_turned_as_pillow_itself_does(turned):
    data = jpeg_with_exif(orientation_tag(turned))
    rgb, converted = to_rgb(Image.open(io.BytesIO(data)))
    assert converted is None
    assert np.array_equal(rgb, ImageOps.exif_transpose(Image.open(io.BytesIO(data))))


def test_a_damaged_tag_does_not_cost_the_picture():
    """Text where the tag wants a fraction."""
    data = jpeg_with_exif(orientation_tag(6), struct.pack(">HHI4s", 0x011F, 2, 4, b"abc\1"))
    with pytest.raises(TypeError):  # Pillow's own way of turning it
        ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    rgb, _ = to_rgb(Image.open(io.BytesIO(data)))
    assert rgb.size == (24, 40)


def test_an_exif_block_that_breaks_off_is_taken_for_none():
    data = jpeg_with_exif(orientation_tag(6))
    at = data.index(b"Exif\0\0") + 6
    rgb, _ = to_rgb(Image.open(io.BytesIO(data[:at] + b"\xff" * 4 + data[at + 4 :])))
    assert rgb.size == (40, 24)


def png_of_16_bits(values: np.ndarray) -> bytes:
    """(h, w, 3) uint16, by hand: Pillow writes no such file."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_sixteen_bits_are_counted_and_near():
    values = np.random.default_rng(1).integers(0, 65536, (8, 9, 3)).astype(np.uint16)
    rgb, converted = to_rgb(Image.open(io.BytesIO(png_of_16_bits(values))))
    assert converted == "16-bit"
    assert np.abs(np.asarray(rgb) - values / 257).max() <= 1
    grey = Image.fromarray(values[..., 0])
    rgb, converted = to_rgb(grey)
    assert converted == "16-bit"
    assert np.array_equal(np.asarray(rgb)[..., 0], np.round(values[..., 0] / 257))


@pytest.mark.parametrize("values", [np.array([[0, 70000]], np.int32), np.array([[-1, 5]], np.int32)])
def test_integers_without_a_range_are_refused(values):
    with pytest.raises(ValueError, match="more than 16 bits"):
        to_rgb(Image.fromarray(values))
