"""Samples -> picture file, strip by strip: a huge picture is never held a second time.

PNG and TIFF are written here, because no library of Python's both takes rows as they come and writes 16 bits. JPEG and
WebP, which end at 65,500 and 16,383 px a side, are by Pillow: it holds its own copy, 4 bytes a pixel, and the file.
Strips are uint8 or uint16 arrays (rows, W, C), C = 1 grey, 2 grey + alpha, 3 RGB, 4 RGB + alpha.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, TiffTags
from PIL import TiffImagePlugin as Tag

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # Pillow's names, by channels
COMPRESSION_LEVEL = 6
CLASSIC_TIFF_BYTES = 0xF0000000  # of samples; leaves room below 4 GiB for tags and strips that do not compress


def write_png(
    file: BinaryIO, strips: Iterable[np.ndarray], *, size: tuple[int, int], channels: int, bit_depth: int,
    chunks: Iterable[tuple[bytes, bytes]],
) -> None:  # fmt: skip
    """PNG (ISO/IEC 15948). `chunks`: (type, data) of what stands before the pixels, in the standard's order."""
    color_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    file.write(b"\x89PNG\r\n\x1a\n")
    _write_chunk(file, b"IHDR", struct.pack(">IIBBBBB", *size, bit_depth, color_type, 0, 0, 0))
    for kind, data in chunks:
        _write_chunk(file, kind, data)
    compressor = zlib.compressobj(COMPRESSION_LEVEL, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_FILTERED)
    above = np.zeros(size[0] * channels * bit_depth // 8, np.uint8)
    for strip in strips:
        rows = np.ascontiguousarray(strip.astype(">u2") if bit_depth == 16 else strip).view(np.uint8)
        rows = rows.reshape(len(strip), -1)
        data = compressor.compress(_filter_rows(rows, above, channels * bit_depth // 8))
        above = rows[-1]
        if data:
            _write_chunk(file, b"IDAT", data)
    _write_chunk(file, b"IDAT", compressor.flush())
    _write_chunk(file, b"IEND", b"")


def _write_chunk(file: BinaryIO, kind: bytes, data: bytes) -> None:
    file.write(struct.pack(">I4s", len(data), kind))
    file.write(data)
    file.write(struct.pack(">I", zlib.crc32(data, zlib.crc32(kind))))


def _filter_rows(rows: np.ndarray, above: np.ndarray, pixel_bytes: int) -> bytes:
    """PNG's row filters; per row the one with the least sum of |differences|, as the standard advises.

    rows (R, bytes a row) uint8, `above`: the row before them -> R rows of a filter byte and the differences.
    """
    up = np.concatenate([above[None], rows[:-1]])
    left, up_left = np.zeros_like(rows), np.zeros_like(rows)
    left[:, pixel_bytes:] = rows[:, :-pixel_bytes]
    up_left[:, pixel_bytes:] = up[:, :-pixel_bytes]
    wide_left, wide_up, wide_up_left = (part.astype(np.int16) for part in (left, up, up_left))
    distance_left, distance_up = abs(wide_up - wide_up_left), abs(wide_left - wide_up_left)
    distance_up_left = abs(wide_left + wide_up - 2 * wide_up_left)
    paeth = np.where(
        (distance_left <= distance_up) & (distance_left <= distance_up_left), left,
        np.where(distance_up <= distance_up_left, up, up_left),
    )  # fmt: skip
    average = ((wide_left + wide_up) >> 1).astype(np.uint8)

    best, best_cost, number = rows, np.abs(rows.view(np.int8).astype(np.int16)).sum(1), np.zeros(len(rows), np.uint8)
    for index, prediction in enumerate((left, up, average, paeth), start=1):
        difference = rows - prediction  # wraps modulo 256 as the standard wants
        cost = np.abs(difference.view(np.int8).astype(np.int16)).sum(1)
        better = cost < best_cost
        best = np.where(better[:, None], difference, best)
        best_cost = np.where(better, cost, best_cost)
        number[better] = index
    return np.concatenate([number[:, None], best], axis=1).tobytes()


def write_tiff(
    file: BinaryIO, strips: Iterable[np.ndarray], *, size: tuple[int, int], channels: int, bit_depth: int,
    tags: Mapping[int, Any], rows_per_strip: int,
) -> None:  # fmt: skip
    """TIFF 6.0, little-endian, deflate with horizontal differences; BigTIFF where 4 GiB may not do.

    `tags`: what the first directory carries besides the layout (a dict as value: a directory of its own). Each strip
    must have `rows_per_strip` rows, the last one what is left. The directory goes in front: its length is known before
    the strips are.
    """
    width, height = size
    count = -(-height // rows_per_strip)
    big = width * height * channels * bit_depth // 8 > CLASSIC_TIFF_BYTES
    header = b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0" if big else b"II*\0\x08\0\0\0"
    directory = Tag.ImageFileDirectory_v2(header)
    for tag, value in tags.items():
        directory[tag] = value
    directory[Tag.IMAGEWIDTH], directory[Tag.IMAGELENGTH] = size
    directory[Tag.BITSPERSAMPLE] = (bit_depth,) * channels
    directory[Tag.SAMPLESPERPIXEL] = channels
    directory[Tag.PHOTOMETRIC_INTERPRETATION] = 2 if channels >= 3 else 1
    directory[Tag.PLANAR_CONFIGURATION] = 1
    directory[Tag.COMPRESSION], directory[Tag.PREDICTOR] = 8, 2
    directory[Tag.ROWSPERSTRIP] = rows_per_strip
    if channels in (2, 4):
        directory[Tag.EXTRASAMPLES] = 2  # straight alpha
    for tag in (Tag.STRIPOFFSETS, Tag.STRIPBYTECOUNTS):
        directory.tagtype[tag] = TiffTags.LONG8 if big else TiffTags.LONG
        directory[tag] = (0,) * count

    file.write(header)
    file.write(bytes(len(directory.tobytes(len(header)))))
    lengths = []
    for strip in strips:
        differences = strip.copy()
        differences[:, 1:] -= strip[:, :-1]  # wraps as TIFF 6.0 section 14 wants
        data = zlib.compress(differences.astype(differences.dtype.newbyteorder("<")).tobytes(), COMPRESSION_LEVEL)
        data += b"\0" * (len(data) % 2)  # offsets are even
        file.write(data)
        lengths.append(len(data))
    assert len(lengths) == count, f"{len(lengths)} strips written, {count} announced"
    # Pillow moves the offsets behind the directory when it turns it into bytes.
    directory[Tag.STRIPOFFSETS] = tuple(np.cumsum([0, *lengths[:-1]]).tolist())
    directory[Tag.STRIPBYTECOUNTS] = tuple(lengths)
    file.seek(len(header))
    file.write(directory.tobytes(len(header)))


def write_by_pillow(
    file: BinaryIO, strips: Iterable[np.ndarray], *, size: tuple[int, int], channels: int, format: str, **options: Any
) -> None:
    """JPEG or WebP from 8-bit strips; `options` are Pillow's for the format."""
    image, top = Image.new(MODES[channels], size), 0
    for strip in strips:
        part = Image.fromarray(strip[..., 0] if channels == 1 else strip)
        image.paste(part, (0, top))
        top += part.height
    encoded = io.BytesIO()  # into a file itself Pillow passes over a write that a full disk cuts short
    image.save(encoded, format=format, **options)
    file.write(encoded.getbuffer())
