"""Blocks of files beside the pixels: carried, or named in one sentence. Put in here by the letter of the standards."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import torch
from picture_files import SRGB, XMP, png_bytes
from PIL import Image

from sat_sr.image_io import read_picture, write_picture

PICTURE = Image.new("RGB", (16, 12), (90, 100, 110))


def encoded(format: str, **options) -> bytes:
    file = io.BytesIO()
    PICTURE.save(file, format, **options)
    return file.getvalue()


def png(*chunks) -> bytes:
    return png_bytes(np.zeros((3, 4, 3), np.uint8), 2, *chunks)


def jpeg(*segments) -> bytes:
    data = encoded("JPEG")
    return data[:2] + b"".join(struct.pack(">HH", 0xFFE0 + n, 2 + len(d)) + d for n, d in segments) + data[2:]


def webp(*chunks) -> bytes:
    body = encoded("WEBP")[8:] + b"".join(
        kind + struct.pack("<I", len(d)) + d + b"\0" * (len(d) % 2) for kind, d in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def boxes(format: str, *contents) -> bytes:
    return encoded(format) + b"".join(struct.pack(">I4s", 8 + len(data), kind) + data for kind, data in contents)


def gif(*extensions) -> bytes:
    """Behind the picture, before the trailer."""
    return encoded("GIF")[:-1] + b"".join(extensions) + b";"


def application(name: bytes, data: bytes) -> bytes:
    pieces = [data[at : at + 255] for at in range(0, len(data), 255)]
    return b"\x21\xff\x0b" + name + b"".join(bytes([len(piece)]) + piece for piece in pieces) + b"\0"


GEO, IPTC = (bytes.fromhex(u) for u in ("b14bf8bd083d4b43a5ae8cd7d5a6ce03", "33c7a4d2b81d4723a0baf1a3e097ad38"))
CASES = {
    "PNG chunks oFFs, caBX: left out": png(
        (b"oFFs", bytes(9)), (b"caBX", b"c2pa"), (b"tIME", bytes(7)), (b"sBIT", b"888"), (b"iDOT", bytes(28))
    ),
    "JPEG segments APP2 FPXR, APP11 JP: left out": jpeg(
        (2, b"FPXR\0\1"), (11, b"JP\0\1"), (11, b"JP\0\1"), (12, b"Ducky\0"), (13, b"Adobe_CM\0")
    ),
    "WebP chunks C2PA: left out": webp((b"C2PA", b"odd")),
    "GIF extensions caption, IPTCNAA 1.0: left out": gif(
        b"\x21\x01\x0c" + bytes(12) + b"\x05hello\0",
        application(b"IPTCNAA 1.0", b"x" * 300),
        application(b"NETSCAPE2.0", b"\1\0\0"),
    ),
    "JPEG 2000 boxes xml, asoc, uuid GeoJP2, uuid IPTC, uuid 0102030405060708090a0b0c0d0e0f10: left out": boxes(
        "JPEG2000", (b"xml ", b"<a/>"), (b"asoc", b""), (b"uuid", GEO + b"II"), (b"uuid", IPTC),
        (b"uuid", bytes(range(1, 17))), (b"free", b""),
    ),
    "AVIF boxes uuid 0102030405060708090a0b0c0d0e0f10: left out": boxes("AVIF", (b"uuid", bytes(range(1, 17)))),
    "JPEG 2000 boxes " + ", ".join(f"b{n:03}" for n in range(10)) + ", 990 more: left out": boxes(
        "JPEG2000", *((f"b{n:03}".encode(), b"") for n in range(1000))
    ),
}  # fmt: skip


@pytest.mark.parametrize("note", CASES)
def test_what_is_neither_pixels_nor_carried_is_named_once(tmp_path, note):
    (tmp_path / "in").write_bytes(CASES[note])
    notes = read_picture(tmp_path / "in").notes
    assert [n for n in notes if "palette" not in n] == [note]


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "AVIF", "JPEG2000"])
def test_of_a_picture_with_all_that_is_carried_nothing_is_named(tmp_path, format):
    exif = Image.Exif()
    exif[271] = "Maker"
    options = {"exif": exif.tobytes(), "xmp": XMP, "icc_profile": SRGB, "comment": b"mine"}
    (tmp_path / "in").write_bytes(encoded(format, **options))
    picture = read_picture(tmp_path / "in")
    assert [note for note in picture.notes if "palette" not in note] == []
    if format in ("JPEG", "WEBP", "AVIF"):
        assert picture.exif and picture.xmp and picture.icc == SRGB


def test_xmp_and_profile_of_a_gif_are_carried(tmp_path):
    # The packet stands as it is; 258 bytes lead a reader of sub-blocks to its end, from wherever he comes out of it.
    packet = b"\x21\xff\x0bXMP DataXMP" + XMP + b"\1" + bytes(range(255, -1, -1)) + b"\0"
    (tmp_path / "in.gif").write_bytes(gif(packet, application(b"ICCRGBG1012", SRGB)))
    picture = read_picture(tmp_path / "in.gif")
    assert picture.xmp == XMP.replace(b'"6"', b'"1"') and picture.icc == SRGB
    write_picture(tmp_path / "out.png", torch.zeros(3, 12, 16), picture)
    with Image.open(tmp_path / "out.png") as image:
        assert image.info["xmp"] == picture.xmp and image.info["icc_profile"] == SRGB


def test_blocks_that_reach_beyond_the_file_end_the_search(tmp_path):
    cut = application(b"IPTCNAA 1.0", b"x" * 300)[:-100]
    for data in (
        encoded("JPEG2000") + struct.pack(">I4sQ", 1, b"xml ", 1 << 63),
        encoded("GIF")[:-1] + cut,
        encoded("GIF")[:-1] + b"\x21\xff\x0bXMP DataXMP\x03a",
        webp() + b"C2PA" + struct.pack("<I", 0xFFFFFFFF),
    ):
        (tmp_path / "in").write_bytes(data)
        picture = read_picture(tmp_path / "in")
        assert [note for note in picture.notes if "left out" in note] == [] and picture.xmp is None
