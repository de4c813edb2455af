"""What stands beside the pixels, byte for byte: directories built and read here by the letter of TIFF 6.0 and EXIF."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sat_sr.image_io import check_output, read_picture, write_picture
from sat_sr.image_io.metadata import utf8_as_ascii

BYTE, ASCII, SHORT, LONG, RATIONAL, UNDEFINED, DOUBLE, UTF8 = 1, 2, 3, 4, 5, 7, 12, 129
SIZES = {UTF8: 1, BYTE: 1, ASCII: 1, SHORT: 2, LONG: 4, RATIONAL: 8, UNDEFINED: 1, DOUBLE: 8}
EXIF_DIRECTORY, GPS_DIRECTORY = 34665, 34853

TEXTS = {
    270: "Bäume an der Straße".encode(),  # ImageDescription, UTF-8
    315: "Jörg".encode("latin-1"),  # Artist
    33432: "© Zoë\0© 日本".encode(),  # Copyright: photographer, editor
    269: b"scan 7 \xe9",  # DocumentName
    285: "Seite ü".encode(),  # PageName
}
DETAILS = {42036: "Objektiv Ä".encode(), 42032: b"Andr\xe9", 36867: b"2024:01:02 03:04:05"}  # LensModel, owner, date
PLACE = {29: b"2024:01:02", 18: "WGS-84 ±".encode()}  # GPSDateStamp, GPSMapDatum
XP_TITLE = "Möwe".encode("utf-16-le") + b"\0\0"


def tiff_bytes(tags: dict, pixels: bytes = b"") -> bytes:
    """A little-endian TIFF, or an EXIF block: tag -> (type, data), or a dict, which is a directory below."""
    pixels += b"\0" * (len(pixels) % 2)
    body = bytearray(struct.pack("<2sHI", b"II", 42, 8 + len(pixels)) + pixels)

    def add(directory: dict) -> None:
        at = len(body)
        body.extend(struct.pack("<H", len(directory)) + bytes(12 * len(directory) + 4))
        for index, (tag, value) in enumerate(sorted(directory.items())):
            kind, data = (LONG, struct.pack("<I", len(body))) if isinstance(value, dict) else value
            count = len(data) // SIZES[kind]
            if isinstance(value, dict):
                add(value)
            elif len(data) > 4:
                body.extend(data + b"\0" * (len(data) % 2))
                data = struct.pack("<I", len(body) - len(data) - len(data) % 2)
            struct.pack_into("<HHI4s", body, at + 2 + 12 * index, tag, kind, count, data)

    add(tags)
    return bytes(body)


def entries_of(block: bytes) -> dict[int, tuple[int, bytes]]:
    """tag -> (type, data), of the first directory and of those of EXIF and GPS below it."""
    order = {b"II": "<", b"MM": ">"}[block[:2]]
    entries, starts = {}, [struct.unpack_from(f"{order}I", block, 4)[0]]
    for start in starts:
        for at in range(start + 2, start + 2 + 12 * struct.unpack_from(f"{order}H", block, start)[0], 12):
            tag, kind, count, place = struct.unpack_from(f"{order}HHII", block, at)
            length = count * SIZES[kind]
            data = block[at + 8 : at + 8 + length] if length <= 4 else block[place : place + length]
            entries[tag] = kind, data
            if tag in (EXIF_DIRECTORY, GPS_DIRECTORY):
                starts.append(place)
    return entries


def exif_block(path) -> bytes:
    """The TIFF structure with the EXIF of a written file, found by its mark."""
    data = path.read_bytes()
    mark, skip = {
        ".png": (b"eXIf", 4), ".jpg": (b"Exif\0\0", 6), ".webp": (b"EXIF", 8), ".tif": (b"II", 0),
    }[path.suffix]  # fmt: skip
    return data[data.index(mark) + skip :]


def texts(directory: dict[int, bytes]) -> dict[int, tuple[int, bytes]]:
    return {tag: (ASCII, text + b"\0") for tag, text in directory.items()}


def image_tags(bits: int) -> dict[int, tuple[int, bytes]]:
    """The layout of a grey TIFF of 5 x 4 pixels in one strip from byte 8 on."""
    layout = {256: 5, 257: 4, 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: 4, 279: 20 * bits // 8}
    return {tag: (LONG, struct.pack("<I", value)) for tag, value in layout.items()}


def write_input(path, kind: str, tags: dict) -> None:
    """A picture that carries `tags`: as EXIF, or in the directory of a TIFF of 8 or 16 bits."""
    if kind.startswith("tif"):
        bits = int(kind[3:])
        path.write_bytes(tiff_bytes({**image_tags(bits), **tags}, bytes(20 * bits // 8)))
    else:
        Image.new("L", (5, 4)).save(path, format=kind, exif=b"Exif\0\0" + tiff_bytes(tags))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "tif8", "tif16"])
def test_exif_texts_arrive_byte_for_byte(tmp_path, kind, suffix):
    tags = {**texts(TEXTS), EXIF_DIRECTORY: texts(DETAILS), GPS_DIRECTORY: texts(PLACE), 40091: (BYTE, XP_TITLE)}
    write_input(tmp_path / "in", kind, tags)
    picture = read_picture(tmp_path / "in")
    write_picture(tmp_path / f"out{suffix}", torch.zeros(3, 8, 10), picture, settings={"seed": 1})
    written = entries_of(exif_block(tmp_path / f"out{suffix}"))
    for tag, text in {**TEXTS, **DETAILS, **PLACE}.items():
        assert written[tag] == (ASCII, text + b"\0")
    assert written[40091] == (BYTE, XP_TITLE)
    assert not [note for note in picture.notes if "left out" in note]


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
def test_utf8_texts_of_exif_3_arrive_as_bytes_of_ascii_ones(tmp_path, kind):
    utf8 = {315: "Zoë 日本".encode(), 42036: "Ä".encode(), 18: "±".encode()}
    first, details, place = ({tag: (UTF8, text + b"\0")} for tag, text in utf8.items())
    tags = {**first, 271: (ASCII, b"Maker\0"), EXIF_DIRECTORY: details, GPS_DIRECTORY: place}
    write_input(tmp_path / "in", kind, tags)
    picture = read_picture(tmp_path / "in")
    write_picture(tmp_path / "out.jpg", torch.zeros(3, 8, 10), picture)
    written = entries_of(exif_block(tmp_path / "out.jpg"))
    assert {tag: written[tag] for tag in utf8} == texts(utf8) and written[271] == (ASCII, b"Maker\0")
    assert picture.notes == []


def test_a_directory_that_is_its_own_subdirectory_or_cut_off_ends_the_search(tmp_path):
    block = tiff_bytes({315: (UTF8, b"text\0"), EXIF_DIRECTORY: (LONG, struct.pack("<I", 8))})
    for whole in (block, block[:32]):  # cut off inside the second entry
        read = utf8_as_ascii(b"Exif\0\0" + whole)
        assert len(read) == 6 + len(whole) and struct.unpack_from("<HH", read, 6 + 10) == (315, ASCII)
    for damaged in (b"", b"MM", b"II*\0", b"junk of no order"):
        assert utf8_as_ascii(damaged) == damaged


def test_raw_profiles_of_a_png_are_carried_or_named(tmp_path):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
    info = PngInfo()
    for kind, data in {"xmp": xmp, "iptc": b"8BIM", "8bim": b"8BIM", "icm": b"profile"}.items():
        digits = data.hex()
        lines = [digits[at : at + 72] for at in range(0, len(digits), 72)]
        info.add_text(f"Raw profile type {kind}", "\n".join(["", kind, f"{len(data):8}", *lines, ""]), zip=True)
    info.add_text("Raw profile type APP1", "\nno\nhexadecimal\ndigits")
    Image.new("RGB", (5, 4)).save(tmp_path / "in.png", pnginfo=info)
    picture = read_picture(tmp_path / "in.png")
    assert picture.xmp == xmp.replace(b'"6"', b'"1"')
    assert picture.notes == ["Photoshop/IPTC data is not carried over", "raw profiles APP1, icm: left out"]
    assert picture.text == {}


@pytest.mark.parametrize("kind", ["tif8", "tif16"])
def test_tags_of_a_tiff_that_are_left_out_are_named(tmp_path, kind):
    scale, model = (DOUBLE, struct.pack("<3d", 0.5, 0.5, 0)), (SHORT, struct.pack("<4H", 1, 1, 0, 0))
    tags = {
        33550: scale, 34735: model, 33723: (UNDEFINED, b"\x1c\x02\x05\0\x01a"), 34377: (BYTE, b"8BIM\x04\x04\0\0"),
        65000: (SHORT, b"\x01\0"), 270: (ASCII, b"map\0"), 301: (SHORT, bytes(2 * 256)),
    }  # fmt: skip
    write_input(tmp_path / "in", kind, tags)
    picture = read_picture(tmp_path / "in")
    assert picture.notes == [
        "georeferencing does not fit the enlarged picture (ModelPixelScaleTag, GeoKeyDirectoryTag): left out",
        "TIFF tags TransferFunction, IptcNaaInfo, PhotoshopInfo, 65000: left out",
    ]
    write_picture(tmp_path / "out.tif", torch.zeros(3, 8, 10), picture)
    written = entries_of((tmp_path / "out.tif").read_bytes())
    assert written[270] == (ASCII, b"map\0") and not written.keys() & {33550, 34735, 33723, 34377, 65000}


def test_private_tags_of_a_camera_that_do_not_go_into_a_tiff_are_named(tmp_path):
    write_input(tmp_path / "in", "jpeg", {271: (ASCII, b"Maker\0"), 50341: (UNDEFINED, b"PrintIM\x000300")})
    picture = read_picture(tmp_path / "in")
    assert picture.notes == [] and write_picture(tmp_path / "out.jpg", picture.rgb, picture) == []
    assert write_picture(tmp_path / "out.tif", picture.rgb, picture) == ["TIFF tags PrintImageMatching: left out"]


# --- comments ---------------------------------------------------------------------------------------------------------
def jpeg_with_comments(*comments: bytes) -> bytes:
    """COM segments (T.81 B.2.4.5) after SOI, of a picture of Pillow's."""
    file = io.BytesIO()
    Image.new("RGB", (5, 4)).save(file, format="JPEG")
    segments = b"".join(b"\xff\xfe" + struct.pack(">H", 2 + len(comment)) + comment for comment in comments)
    return file.getvalue()[:2] + segments + file.getvalue()[2:]


def comments_of_jpeg(data: bytes) -> list[bytes]:
    """By walking the segments up to the start of the scan."""
    comments, at = [], 2
    while data[at + 1] != 0xDA:
        (length,) = struct.unpack_from(">H", data, at + 2)
        if data[at + 1] == 0xFE:
            comments.append(data[at + 4 : at + 2 + length])
        at += 2 + length
    return comments


@pytest.mark.parametrize(
    ("comments", "text"),
    [
        (["grüßt".encode()], "grüßt"), (["grüßt".encode("latin-1")], "grüßt"), ([b"one", b"two\0"], "one\ntwo"),
    ],
)  # fmt: skip
def test_comment_of_a_jpeg_is_carried_to_jpeg_and_png_and_named_where_it_is_not(tmp_path, comments, text):
    (tmp_path / "in.jpg").write_bytes(jpeg_with_comments(*comments))
    picture = read_picture(tmp_path / "in.jpg")
    assert picture.notes == []
    for name in ("out.jpg", "out.png"):
        assert write_picture(tmp_path / name, picture.rgb, picture) == []
    assert comments_of_jpeg((tmp_path / "out.jpg").read_bytes()) == [b"\n".join(comments)]
    with Image.open(tmp_path / "out.png") as image:
        assert image.text == {"Comment": text}
    for name, format in (("out.webp", "WEBP"), ("out.tif", "TIFF")):
        assert check_output(tmp_path / name, picture, (5, 4)) == [f"the picture's comment is left out of {format}"]


def test_comment_of_a_gif_is_carried_unless_it_is_too_long_for_jpeg(tmp_path):
    for length, carried in ((65_533, True), (65_534, False)):
        Image.new("L", (5, 4)).save(tmp_path / "in.gif", comment=b"a" * length)
        picture = read_picture(tmp_path / "in.gif")
        notes = write_picture(tmp_path / "out.jpg", picture.rgb, picture)
        assert comments_of_jpeg((tmp_path / "out.jpg").read_bytes()) == ([b"a" * length] if carried else [])
        too_long = f"the picture's comment of {length} bytes does not fit into JPEG: left out"
        assert [note for note in notes if "comment" in note] == ([] if carried else [too_long])


def test_the_encoders_name_in_a_jpeg_2000_is_no_comment_but_the_users_is(tmp_path):
    for options, wanted in (({}, None), ({"comment": "mine"}, b"mine")):
        Image.new("L", (5, 4)).save(tmp_path / "in.jp2", **options)
        assert read_picture(tmp_path / "in.jp2").comment == wanted


# --- resolution -------------------------------------------------------------------------------------------------------
def resolution(x: int, y: int, unit: int) -> dict[int, tuple[int, bytes]]:
    return {
        282: (RATIONAL, struct.pack("<II", x, 1)), 283: (RATIONAL, struct.pack("<II", y, 1)),
        296: (SHORT, struct.pack("<H", unit)),
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["jpeg", "webp", "avif", "tif16"])
@pytest.mark.parametrize(("unit", "dpi"), [(1, None), (2, (100, 50)), (3, (254, 127))])
def test_resolution_in_exif_is_read_in_its_unit(tmp_path, kind, unit, dpi):
    write_input(tmp_path / "in", kind, resolution(100, 50, unit))
    assert read_picture(tmp_path / "in").dpi == (dpi and pytest.approx(dpi))


def test_resolution_of_a_jpeg_is_that_of_jfif_or_else_of_exif_and_never_made_up(tmp_path):
    exif = b"Exif\0\0" + tiff_bytes(resolution(100, 150, 2))
    for options, wanted in (
        ({"exif": exif, "dpi": (20, 30)}, (20, 30)),
        ({"exif": exif}, (100, 150)),
        ({"exif": b"Exif\0\0" + tiff_bytes({271: (ASCII, b"Maker\0")})}, None),
    ):
        Image.new("RGB", (5, 4)).save(tmp_path / "in.jpg", **options)
        assert read_picture(tmp_path / "in.jpg").dpi == wanted


@pytest.mark.parametrize("kind", ["jpeg", "webp", "tif8", "tif16"])
@pytest.mark.parametrize(("orientation", "dpi"), [(1, (100, 150)), (3, (100, 150)), (5, (150, 100)), (6, (150, 100))])
def test_resolution_is_turned_with_the_picture(tmp_path, kind, orientation, dpi):
    tags = {274: (SHORT, struct.pack("<H", orientation)), **resolution(100, 150, 2)}
    write_input(tmp_path / "in", kind, tags)
    picture = read_picture(tmp_path / "in")
    assert picture.dpi == dpi and picture.size == ((4, 5) if orientation >= 5 else (5, 4))
    if orientation == 6:
        write_picture(tmp_path / "out.tif", torch.zeros(3, 10, 16), picture)
        with Image.open(tmp_path / "out.tif") as image:
            assert image.info["dpi"] == (600, 200) and image.getexif().get(274, 1) == 1


def test_resolution_above_what_jfif_can_say_stands_in_the_exif_of_a_jpeg(tmp_path):
    # JFIF 1.02: the unit and two densities of 16 bits follow "JFIF\\0" and the version
    for dpi, unit in ((65_535, 1), (65_536, 0), (280_000, 0)):
        Image.new("RGB", (5, 4)).save(tmp_path / "in.tif", dpi=(dpi / 4, 300))
        picture = read_picture(tmp_path / "in.tif")
        assert write_picture(tmp_path / "out.jpg", torch.zeros(3, 16, 20), picture) == []
        data = (tmp_path / "out.jpg").read_bytes()
        jfif = struct.unpack_from(">BHH", data, data.index(b"JFIF\0") + 7)
        assert jfif == ((1, 65_535, 1200) if unit else (0, 1, 1))
        if unit:
            assert b"Exif" not in data
        else:
            written = entries_of(exif_block(tmp_path / "out.jpg"))
            assert [np.divide(*struct.unpack(">II", written[tag][1])) for tag in (282, 283)] == [dpi, 1200]
        assert read_picture(tmp_path / "out.jpg").dpi == (dpi, 1200)


def test_webp_carries_the_resolution_in_exif(tmp_path):
    Image.new("RGB", (5, 4)).save(tmp_path / "in.png", dpi=(100, 200))
    picture = read_picture(tmp_path / "in.png")
    assert write_picture(tmp_path / "out.webp", torch.zeros(3, 8, 10), picture) == []
    written = entries_of(exif_block(tmp_path / "out.webp"))
    assert int.from_bytes(written[296][1][:2], "big") == 2  # inch; Pillow's blocks are big-endian
    found = [np.divide(*struct.unpack(">II", written[tag][1])) for tag in (282, 283)]
    assert found == pytest.approx([200, 400], rel=1e-3)
    assert read_picture(tmp_path / "out.webp").dpi == pytest.approx(found)

    Image.new("RGB", (5, 4)).save(tmp_path / "plain.png")
    picture = read_picture(tmp_path / "plain.png")
    write_picture(tmp_path / "plain.webp", picture.rgb, picture)
    assert b"EXIF" not in (tmp_path / "plain.webp").read_bytes()
