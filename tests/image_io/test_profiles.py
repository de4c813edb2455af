"""ICC profiles and XMP, wherever a format puts them: files built here by the letter of their standards."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from picture_files import SRGB, XMP, large_profile, png_bytes, random_samples, samples
from PIL import Image, PngImagePlugin

from sat_sr.image_io import picture_size, read_picture, read_settings, write_picture


def test_profile_and_texts_of_more_than_a_mebibyte_are_carried_through_png(tmp_path):
    profile, text = large_profile(SRGB, 3 << 19), "x" * (3 << 19)
    limit = PngImagePlugin.MAX_TEXT_CHUNK
    iccp, ztxt = b"print\0\0" + zlib.compress(profile), b"workflow\0\0" + zlib.compress(text.encode())
    (tmp_path / "in.png").write_bytes(png_bytes(random_samples(3), 2, (b"iCCP", iccp), (b"zTXt", ztxt)))
    picture = read_picture(tmp_path / "in.png")
    assert picture.icc == profile and picture.text == {"workflow": text} and picture.notes == []

    (note,) = write_picture(tmp_path / "out.png", picture.rgb, picture, settings={"seed": 4})
    assert "ICC profile" in note and "1.5 MiB" in note and "TIFF" in note
    again = read_picture(tmp_path / "out.png")
    assert again.icc == profile and again.text == picture.text and read_settings(tmp_path / "out.png") == {"seed": 4}
    assert not [note for note in write_picture(tmp_path / "out.tif", picture.rgb, picture) if "profile" in note]
    assert limit == PngImagePlugin.MAX_TEXT_CHUNK  # Pillow's own is back


# --- boxes of JPEG 2000 (T.800 annex I) -------------------------------------------------------------------------------
ENUMERATED = b"\1\0\0" + struct.pack(">I", 16)  # contents of a `colr` box: sRGB
RESTRICTED = b"\2\0\0" + SRGB
XMP_UUID = bytes.fromhex("BE7ACFCB97A942E89C71999491E3AFAC")


def box(kind: bytes, contents: bytes, *, long: bool = False) -> bytes:
    if long:
        return struct.pack(">I4sQ", 1, kind, 16 + len(contents)) + contents
    return struct.pack(">I4s", 8 + len(contents), kind) + contents


def jp2_bytes(*colors: bytes, before: bytes = b"", behind: bytes = b"") -> bytes:
    """A JP2 file of 6x4 px with those `colr` boxes, and boxes around the codestream, which is Pillow's and lossless."""
    file = io.BytesIO()
    Image.new("RGB", (6, 4), (9, 8, 7)).save(file, format="JPEG2000", no_jp2=True)
    header = box(b"ihdr", struct.pack(">IIHBBBB", 4, 6, 3, 7, 7, 0, 0))
    header += b"".join(box(b"colr", contents) for contents in colors)
    start = box(b"jP  ", b"\r\n\x87\n") + box(b"ftyp", b"jp2 \0\0\0\0jp2 ")
    return start + box(b"jp2h", header) + before + box(b"jp2c", file.getvalue()) + behind


@pytest.mark.parametrize(
    ("colors", "profile"),
    [
        ([RESTRICTED], SRGB),
        ([RESTRICTED, ENUMERATED], SRGB),
        ([ENUMERATED, RESTRICTED], None),
        ([ENUMERATED], None),
    ],
)
def test_profile_of_a_jpeg_2000_is_that_of_the_first_description_of_its_colors(tmp_path, colors, profile):
    (tmp_path / "in.jp2").write_bytes(jp2_bytes(*colors))
    picture = read_picture(tmp_path / "in.jp2")
    assert picture.icc == profile and picture.notes == []
    assert (samples(picture.rgb, 8) == (9, 8, 7)).all()


@pytest.mark.parametrize("long", [False, True])
def test_xmp_and_exif_of_a_jpeg_2000_are_carried_and_turn_it(tmp_path, long):
    exif = Image.Exif()
    exif[271], exif[274] = "Maker", 6
    xmp_box = box(b"uuid", XMP_UUID + XMP, long=long)
    exif_box = box(b"uuid", b"JpgTiffExif->JP2" + exif.tobytes().removeprefix(b"Exif\0\0"), long=long)
    (tmp_path / "in.jp2").write_bytes(jp2_bytes(ENUMERATED, before=xmp_box, behind=exif_box))
    picture = read_picture(tmp_path / "in.jp2")
    assert picture.xmp == XMP.replace(b'"6"', b'"1"') and picture.notes == []
    assert picture.size == picture_size(tmp_path / "in.jp2") == (4, 6)
    write_picture(tmp_path / "out.png", picture.rgb, picture)
    with Image.open(tmp_path / "out.png") as image:
        assert image.getexif()[271] == "Maker" and image.getexif().get(274, 1) == 1


def test_boxes_of_a_jpeg_2000_that_make_no_sense_are_not_there(tmp_path):
    for behind in (
        box(b"uuid", XMP_UUID),
        box(b"uuid", XMP_UUID[:5]),
        struct.pack(">I4sQ", 1, b"uuid", 2**63) + XMP_UUID + XMP,
        struct.pack(">I4s", 2**32 - 1, b"uuid") + XMP_UUID + XMP,
    ):
        (tmp_path / "in.jp2").write_bytes(jp2_bytes(b"\2\0\0what", behind=behind))
        picture = read_picture(tmp_path / "in.jp2")
        assert picture.xmp is None and picture.icc is None


# --- BMP --------------------------------------------------------------------------------------------------------------
def bmp5_bytes(array: np.ndarray, kind: bytes, profile: bytes, length: int | None = None) -> bytes:
    """A BITMAPV5HEADER by Microsoft's description, 24-bit pixels from the bottom up, the profile behind them."""
    height, width = array.shape[:2]
    pixels = b"".join(row[:, ::-1].tobytes().ljust(-(-width * 3 // 4) * 4, b"\0") for row in array[::-1])
    header = struct.pack("<IiiHHIIiiII", 124, width, height, 1, 24, 0, len(pixels), 3937, 3937, 0, 0) + bytes(16)
    header += kind[::-1] + bytes(36 + 12)  # end points, gamma
    header += struct.pack("<4I", 4, 124 + len(pixels), len(profile) if length is None else length, 0)
    assert len(header) == 124
    whole = header + pixels + profile
    return b"BM" + struct.pack("<IHHI", 14 + len(whole), 0, 0, 14 + 124) + whole


def test_profile_of_a_bmp_is_carried_if_it_is_embedded_and_whole(tmp_path):
    array = random_samples(3, np.uint8)
    for kind, profile, length, wanted in (
        (b"MBED", SRGB, None, SRGB),
        (b"sRGB", SRGB, None, None),
        (b"MBED", SRGB, len(SRGB) + 1, None),
        (b"MBED", SRGB, 2**32 - 1, None),
        (b"MBED", b"", None, None),
    ):
        (tmp_path / "in.bmp").write_bytes(bmp5_bytes(array, kind, profile, length))
        picture = read_picture(tmp_path / "in.bmp")
        assert picture.icc == wanted and picture.notes == []
        np.testing.assert_array_equal(samples(picture.rgb, 8), array)
    (tmp_path / "in.bmp").write_bytes(bmp5_bytes(array, b"MBED", b"garbage"))
    (note,) = read_picture(tmp_path / "in.bmp").notes
    assert "ICC profile does not parse" in note


# --- extended XMP of a JPEG (XMP specification, part 3) ---------------------------------------------------------------
ATTRIBUTE = b' xmpNote:HasExtendedXMP="0123456789ABCDEF0123456789ABCDEF"'
ELEMENT = b"<xmpNote:HasExtendedXMP>0123456789ABCDEF0123456789ABCDEF</xmpNote:HasExtendedXMP>"


@pytest.mark.parametrize(
    ("attribute", "element"), [(ATTRIBUTE, b""), (ATTRIBUTE.replace(b'"', b"'"), b""), (b"", ELEMENT)]
)
def test_extended_xmp_is_told_and_nothing_points_to_it(tmp_path, attribute, element):
    packet = b'<rdf:Description xmlns:xmpNote="note"%s dc:creator="someone">%s</rdf:Description>'
    extension = b"0123456789ABCDEF0123456789ABCDEF" + struct.pack(">II", 9, 0) + b"<x>y</x>\n"
    segments = b""
    for data in (
        b"http://ns.adobe.com/xap/1.0/\0" + packet % (attribute, element),
        b"http://ns.adobe.com/xmp/extension/\0" + extension,
    ):
        segments += b"\xff\xe1" + struct.pack(">H", 2 + len(data)) + data
    file = io.BytesIO()
    Image.new("RGB", (5, 4)).save(file, format="JPEG")
    (tmp_path / "in.jpg").write_bytes(file.getvalue()[:2] + segments + file.getvalue()[2:])
    picture = read_picture(tmp_path / "in.jpg")
    assert picture.notes == ["extended XMP, what did not fit into one segment of the JPEG: left out"]
    write_picture(tmp_path / "out.jpg", picture.rgb, picture)
    with Image.open(tmp_path / "out.jpg") as image:
        assert image.info["xmp"] == packet % (b"", b"")
