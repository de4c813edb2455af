"""Picture files for tests: written and read by the letter of the standards, and what the tests compare."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import torch
from PIL import Image, ImageCms

from sat_sr.image_io import Picture, read_picture

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6" dc:creator="someone"/></x:xmpmeta>'


def samples(rgb: torch.Tensor, bit_depth: int) -> np.ndarray:
    """(3, H, W) in [-1, 1] -> (H, W, 3) integers."""
    top = 2**bit_depth - 1
    return ((rgb.double() + 1) / 2 * top).round().permute(1, 2, 0).numpy().astype(np.uint16)


def random_samples(channels: int, dtype=np.uint16, height: int = 19, width: int = 26) -> np.ndarray:
    """Noise that wraps the predictors, smooth parts that each PNG filter wins somewhere; nothing fully transparent."""
    rng = np.random.default_rng(channels)
    top = np.iinfo(dtype).max
    array = rng.integers(0, top + 1, (height, width, channels))
    array[: height // 2] = np.add.outer(np.arange(height // 2) * 900, np.arange(width) * 37)[..., None] % (top + 1)
    if channels in (2, 4):
        array[..., -1] |= 1
    return array.astype(dtype)


def picture_of(path, array: np.ndarray, **options) -> Picture:
    Image.fromarray(array).save(path, **options)
    return read_picture(path)


def png_bytes(array: np.ndarray, color_type: int, *chunks: tuple[bytes, bytes], bits: int | None = None) -> bytes:
    """A PNG by the letter of the standard: (H, W, C) samples, and chunks before the pixels.

    bits  a sample, below 8: packed into bytes; None: as many as the array's type has
    """
    height, width = array.shape[:2]
    bits = bits or 8 * array.itemsize

    def packed(row):
        if bits >= 8:
            return row.astype(array.dtype.newbyteorder(">")).tobytes()
        return np.packbits(np.unpackbits(row.reshape(-1, 1), axis=1)[:, 8 - bits :]).tobytes()

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + packed(row) for row in array)
    head = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*part) for part in [(b"IHDR", head), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    )


def read_png(data: bytes) -> tuple[np.ndarray, dict[bytes, bytes], set[int]]:
    """By the letter of the standard: (H, W, C) samples, the chunks, the filters in use."""
    chunks, at = {}, 8
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", data, at + 8 + length)[0] == zlib.crc32(kind + body)
        chunks[kind] = chunks.get(kind, b"") + body
        at += 12 + length
    width, height, depth, color_type = struct.unpack_from(">IIBB", chunks[b"IHDR"])
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[color_type]
    step, stride = channels * depth // 8, width * channels * depth // 8
    raw = zlib.decompress(chunks[b"IDAT"])
    above, out, filters = bytes(stride), bytearray(), set()
    for y in range(height):
        kind, *line = raw[y * (stride + 1) : (y + 1) * (stride + 1)]
        filters.add(kind)
        for x in range(stride):
            left, corner = (line[x - step], above[x - step]) if x >= step else (0, 0)
            estimate = left + above[x] - corner
            paeth = min((left, above[x], corner), key=lambda value, estimate=estimate: abs(estimate - value))
            line[x] = (line[x] + (0, left, above[x], (left + above[x]) // 2, paeth)[kind]) % 256
        above = line
        out += bytes(line)
    dtype = ">u2" if depth == 16 else "u1"
    return np.frombuffer(out, dtype).reshape(height, width, channels), chunks, filters


def large_profile(profile: bytes, size: int) -> bytes:
    """A profile with `size` bytes behind its tags, which nothing refers to; the header (ICC.1 7.2) counts them."""
    noise = np.random.default_rng(0).bytes(size // 2) + bytes(size - size // 2)
    return struct.pack(">I", len(profile) + size) + profile[4:] + noise


def cmyk_profile(corners: np.ndarray) -> bytes:
    """A CMYK printer profile: `corners` (16, 3) is Lab at the 16 corners C, M, Y, K (K fastest), linear in between."""
    identity = bytes(range(256))
    encoded = np.clip(np.round(corners * (2.55, 1, 1) + (0, 128, 128)), 0, 255).astype(np.uint8)
    matrix = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + matrix + identity * 4 + encoded.tobytes() + identity * 3
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    text = b"text\0\0\0\0none\0"
    description = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(4 + 4 + 2 + 1 + 67)
    tags = {b"A2B0": table, b"cprt": text, b"desc": description, b"wtpt": white}
    offset, directory, body = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        directory += name + struct.pack(">II", offset + len(body), len(data))
        body += data
    date = struct.pack(">6H", 2020, 1, 1, 0, 0, 0)
    head = bytes(8) + b"\x02\x40\0\0prtrCMYKLab " + date + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    profile = head.ljust(128, b"\0") + directory + body
    return struct.pack(">I", len(profile)) + profile[4:]
