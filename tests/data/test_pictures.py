"""Bringing every kind of picture to 8-bit RGB: depths, orientations, and EXIF that is damaged."""

from __future__ import annotations

import io
import struct
import zlib
from collections import Counter

import numpy as np
import pytest
import tifffile
from picture_files import png_bytes
from PIL import Image

from sat_sr.data.pictures import find_pictures, to_rgb
from sat_sr.data.samples import Unusable, decode

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)


def jpeg(exif: bytes | Image.Exif = b"") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def directory(*entries: tuple[int, int, int, bytes], byteorder: str = ">") -> bytes:
    """An EXIF block of (tag, type, count, the four bytes of the value), by the letter of TIFF 6.0."""
    head = b"MM\0*" if byteorder == ">" else b"II*\0"
    body = b"".join(struct.pack(f"{byteorder}HHI", *entry[:3]) + entry[3] for entry in entries)
    count = struct.pack(f"{byteorder}H", len(entries))
    return b"Exif\0\0" + head + struct.pack(f"{byteorder}I", 8) + count + body + b"\0" * 4


ORIENTATION = (0x0112, 3, 1, struct.pack(">HH", 6, 0))
DAMAGED = {
    "text where Pillow writes fractions": directory((0x011A, 2, 3, b"ab\0\0"), ORIENTATION),
    "more entries than bytes": directory(ORIENTATION)[:14] + b"\xff\x03" + directory(ORIENTATION)[16:],
    "no header": b"Exif\0\0MX\0*" + bytes(20),
    "cut short": directory(ORIENTATION)[:17],
}


@pytest.mark.parametrize("exif", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_exif_block_does_not_cost_the_picture(exif):
    found = decode({"__key__": "a", "jpg": jpeg(exif)}, 40, Counter()).image
    plain = decode({"__key__": "a", "jpg": jpeg()}, 40, Counter()).image
    upright = found if found.shape == plain.shape else found.rot90(1, (1, 2))  # its orientation may be readable still
    assert upright.equal(plain)


@pytest.mark.parametrize("orientation", range(1, 10))
def test_every_orientation_is_turned_upright_as_the_standard_has_it(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG", exif=exif)
    with Image.open(buffer) as image:
        found = np.asarray(to_rgb(image)[0])
    # Where row 0 and column 0 of what is stored belong (EXIF 2.3, 4.6.4 A): 5 to 8 swap rows and columns.
    turned = PIXELS.swapaxes(0, 1) if 5 <= orientation <= 8 else PIXELS
    if orientation in (2, 3, 6, 7):
        turned = turned[:, ::-1]
    if orientation in (3, 4, 7, 8):
        turned = turned[::-1]
    assert np.array_equal(found, turned)


def png16(values: np.ndarray) -> bytes:
    """(H, W, 3) uint16 as a PNG by the letter of the standard."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff16(values: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, photometric="rgb", **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "store",
    [
        png16,
        tiff16,
        lambda values: tiff16(values, byteorder=">"),
        lambda values: tiff16(values, compression="zlib"),
        lambda values: tiff16(values, byteorder=">", compression="zlib", rowsperstrip=3),
    ],
)
def test_16_bit_colour_is_brought_to_8_bits_and_counted(store):
    values = np.random.default_rng(0).integers(0, 65536, (20, 30, 3), dtype=np.uint16)
    counts = Counter()
    found = decode({"__key__": "a", "png": store(values)}, 1, counts).image.permute(1, 2, 0).numpy()
    assert np.array_equal(found, values >> 8)
    assert counts == {"converted: 16-bit": 1}


def test_16_bit_grey_is_rounded_and_counted():
    values = np.random.default_rng(0).integers(0, 65536, (20, 30), dtype=np.uint16)
    buffer, counts = io.BytesIO(), Counter()
    Image.fromarray(values).save(buffer, "PNG")
    found = decode({"__key__": "a", "png": buffer.getvalue()}, 1, counts).image.numpy()
    assert np.array_equal(found, np.broadcast_to(np.rint(values / 257), (3, 20, 30)))
    assert counts == {"converted: 16-bit": 1}


def test_transparent_level_of_a_grey_png_of_few_bits_is_the_one_that_is_laid_on_white():
    levels = np.arange(16, dtype=np.uint8).reshape(1, 16, 1)
    file = io.BytesIO(png_bytes(levels, 0, (b"tRNS", struct.pack(">H", 1)), bits=4))
    rgb, converted = to_rgb(Image.open(file))
    assert converted == "alpha"
    assert np.asarray(rgb)[0, :, 0].tolist() == [0, 255, *range(2 * 17, 256, 17)]


def test_values_of_32_bits_have_no_white_and_are_not_guessed():
    buffer = io.BytesIO()
    Image.fromarray(np.linspace(0, 2**31 - 1, 48 * 48).reshape(48, 48).astype(np.int32)).save(buffer, "TIFF")
    with pytest.raises(Unusable, match="undecodable"):
        decode({"__key__": "a", "jpg": buffer.getvalue()}, 1, Counter())


def test_pictures_of_a_linked_folder_are_found_under_the_link_s_name(tmp_path):
    for name in ("photos/own.jpg", "disk/beach/0001.png", "disk/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "photos" / "holiday").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "back").symlink_to(tmp_path / "photos")
    pictures, others = find_pictures([tmp_path / "photos"])
    linked = tmp_path / "photos" / "holiday"
    assert pictures == {
        "photos/holiday/beach/0001": linked / "beach" / "0001.png", "photos/own": tmp_path / "photos" / "own.jpg"
    }  # fmt: skip
    assert others == [linked / "notes.txt"]
