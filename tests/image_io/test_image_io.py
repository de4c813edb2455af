"""Picture files: what goes in comes out, checked against other readers and closed forms."""

from __future__ import annotations

import io
import itertools
import json
import os
import random
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageCms, ImageOps

from sat_sr.image_io import (
    Picture,
    PictureError,
    check_output,
    picture_size,
    read_picture,
    read_settings,
    resize_alpha,
    write_picture,
    writing,
)
from sat_sr.image_io.color import fill_transparent
from sat_sr.image_io.writing import check_output_size

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


# --- a PNG reader and writer by the letter of the standard ------------------------------------------------------------
def png_bytes(array: np.ndarray, color_type: int, *chunks: tuple[bytes, bytes]) -> bytes:
    height, width = array.shape[:2]

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(array.dtype.newbyteorder(">")).tobytes() for row in array)
    head = struct.pack(">IIBBBBB", width, height, 8 * array.itemsize, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*part) for part in [(b"IHDR", head), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    )


def read_png(data: bytes) -> tuple[np.ndarray, dict[bytes, bytes], set[int]]:
    """(H, W, C) samples, the chunks, the filters in use."""
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


# --- 16 bits ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("channels", "color_type"), [(1, 0), (2, 4), (3, 2), (4, 6)])
def test_png_16_bit_round_trip_is_exact(tmp_path, monkeypatch, channels, color_type):
    monkeypatch.setattr(writing, "_STRIP_SAMPLES", 26 * channels * 4)  # strips of 4 rows
    array = random_samples(channels)
    (tmp_path / "in.png").write_bytes(png_bytes(array, color_type))
    picture = read_picture(tmp_path / "in.png")
    color = array[..., :3] if channels >= 3 else array[..., :1].repeat(3, axis=2)
    np.testing.assert_array_equal(samples(picture.rgb, 16), color)
    assert picture.bit_depth == 16 and picture.mode_kind == ("grey" if channels <= 2 else "rgb") and not picture.notes

    assert write_picture(tmp_path / "out.png", picture.rgb, picture) == []
    written, _, filters = read_png((tmp_path / "out.png").read_bytes())
    np.testing.assert_array_equal(written, array)
    assert len(filters) >= 3


@pytest.mark.parametrize("layout", ["strips", "tiles", "planes"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_tiff_16_bit_reads_what_tifffile_wrote_and_back(tmp_path, channels, byteorder, layout):
    array = random_samples(channels, height=37, width=50)
    planes = layout == "planes" and channels > 1
    for compression, predictor, big in itertools.product((None, "zlib"), (None, 2), (False, True)):
        if (predictor and not compression) or (big and byteorder == ">"):
            continue
        tifffile.imwrite(
            tmp_path / "in.tif", np.moveaxis(array, 2, 0) if planes else array.squeeze(),
            byteorder=byteorder, bigtiff=big, photometric="rgb" if channels >= 3 else "minisblack",
            planarconfig="separate" if planes else None,
            compression=compression, predictor=predictor, extrasamples=["unassalpha"] if channels in (2, 4) else None,
            tile=(16, 32) if layout == "tiles" else None, rowsperstrip=None if layout == "tiles" else 7, metadata=None,
        )  # fmt: skip
        picture = read_picture(tmp_path / "in.tif")
        color = array[..., :3] if channels >= 3 else array[..., :1].repeat(3, axis=2)
        np.testing.assert_array_equal(samples(picture.rgb, 16), color)
        assert picture.bit_depth == 16 and not picture.notes
        if channels in (2, 4):
            alpha = (picture.alpha[0].double().numpy() * 65535).round()
            np.testing.assert_array_equal(alpha, array[..., -1])

    write_picture(tmp_path / "out.tif", picture.rgb, picture)
    with tifffile.TiffFile(tmp_path / "out.tif") as tiff:
        np.testing.assert_array_equal(tiff.asarray().reshape(array.shape), array)
        assert tiff.pages[0].photometric == (2 if channels >= 3 else 1)
    again = read_picture(tmp_path / "out.tif")
    assert torch.equal(again.rgb, picture.rgb) and again.mode_kind == picture.mode_kind


@pytest.mark.parametrize("codec", ["raw", "tiff_lzw", "packbits", "tiff_adobe_deflate", "tiff_deflate", "lzma", "zstd"])
def test_16_bit_tiff_in_every_lossless_codec_of_pillow(tmp_path, codec):
    array = random_samples(1, height=37, width=50)[..., 0]
    try:
        Image.fromarray(array).save(tmp_path / "in.tif", compression=codec)
    except OSError as error:
        pytest.skip(f"this Pillow is built without {codec}: {error}")
    picture = read_picture(tmp_path / "in.tif")
    np.testing.assert_array_equal(samples(picture.rgb, 16)[..., 0], array)
    assert picture.bit_depth == 16 and not picture.notes


def test_tiff_strips_and_bigtiff_layout(tmp_path, monkeypatch):
    array = random_samples(3)
    Image.fromarray((array >> 8).astype(np.uint8)).save(tmp_path / "in.png")
    picture = read_picture(tmp_path / "in.png")
    monkeypatch.setattr(writing, "_STRIP_SAMPLES", 26 * 3 * 4)
    monkeypatch.setattr(writing.encode, "CLASSIC_TIFF_BYTES", 100)
    write_picture(tmp_path / "out.tif", picture.rgb, picture, settings={"seed": 3})
    with tifffile.TiffFile(tmp_path / "out.tif") as tiff:
        assert tiff.is_bigtiff and len(tiff.pages[0].dataoffsets) == 5
        np.testing.assert_array_equal(tiff.asarray(), array >> 8)
    assert read_settings(tmp_path / "out.tif") == {"seed": 3}


def test_premultiplied_and_white_is_zero_tiff(tmp_path):
    alpha = np.full((4, 4, 1), 32768, np.uint16)
    color = np.full((4, 4, 3), 16384, np.uint16)
    data = np.concatenate([color, alpha], axis=2)
    tifffile.imwrite(tmp_path / "p.tif", data, photometric="rgb", extrasamples=["assocalpha"])
    picture = read_picture(tmp_path / "p.tif")
    assert torch.allclose(picture.rgb, torch.tensor(2 * 16384 / 32768 - 1), atol=1e-6)
    assert any("premultiplied" in note for note in picture.notes)

    tifffile.imwrite(tmp_path / "w.tif", color[..., 0], photometric="miniswhite")
    assert (samples(read_picture(tmp_path / "w.tif").rgb, 16) == 65535 - 16384).all()


def grey_tiff(levels: np.ndarray, bits: int, compression: int = 1) -> bytes:
    """TIFF 6.0 of one strip: grey samples (H, W) packed at `bits` bits, rows from whole bytes on."""
    rows = ["".join(f"{level:0{bits}b}" for level in row) for row in levels]
    strip = b"".join(int(row.ljust(-(-len(row) // 8) * 8, "0"), 2).to_bytes(-(-len(row) // 8), "big") for row in rows)
    strip = zlib.compress(strip) if compression == 8 else strip
    height, width = levels.shape
    tags = {256: width, 257: height, 258: bits, 259: compression, 262: 1, 273: 8, 277: 1, 278: height, 279: len(strip)}
    strip += b"\0" * (len(strip) % 2)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return struct.pack("<2sHI", b"II", 42, 8 + len(strip)) + strip + struct.pack("<H", len(tags)) + entries + bytes(4)


def grey_jpeg2000(levels: np.ndarray, bits: int) -> bytes:
    """A lossless codestream of grey samples below 2**bits: encoded as 16 bits and then declared (Ssiz) as `bits`.

    Unsigned samples are coded as differences from half of their range, which is where the two have to meet.
    """
    file = io.BytesIO()
    Image.fromarray((levels + 2**15 - 2 ** (bits - 1)).astype(np.uint16)).save(file, format="JPEG2000", no_jp2=True)
    data = bytearray(file.getvalue())
    data[data.index(b"\xff\x51") + 40] = bits - 1
    return bytes(data)


@pytest.mark.parametrize(("kind", "bits"), [("tiff", 12), ("zip", 12), ("j2k", 12), ("j2k", 10), ("pgm", 12)])
def test_grey_between_8_and_16_bits_spans_the_full_range(tmp_path, kind, bits):
    top = 2**bits - 1
    levels = np.linspace(0, top, 37 * 51).astype(int).reshape(37, 51)
    (tmp_path / "in").write_bytes(
        {
            "tiff": lambda: grey_tiff(levels, bits),
            "zip": lambda: grey_tiff(levels, bits, compression=8),
            "j2k": lambda: grey_jpeg2000(levels, bits),
            "pgm": lambda: b"P5\n51 37\n%d\n" % top + levels.astype(">u2").tobytes(),
        }[kind]()
    )
    picture = read_picture(tmp_path / "in")
    np.testing.assert_array_equal(samples(picture.rgb, 16)[..., 0], np.round(levels / top * 65535))
    assert picture.bit_depth == 16 and picture.mode_kind == "grey" and not picture.notes


def test_16_bit_png_transparent_color(tmp_path):
    array = np.full((8, 8, 3), 40000, np.uint16)
    array[2, 3] = (1, 2, 3)
    array[2, 4] = (1, 2, 4)  # differs in the low byte only
    (tmp_path / "t.png").write_bytes(png_bytes(array, 2, (b"tRNS", struct.pack(">3H", 1, 2, 3))))
    alpha = read_picture(tmp_path / "t.png").alpha[0]
    assert alpha[2, 3] == 0 and alpha.sum() == 63


# --- 8 bits, rounding, grey -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("mode", "channels", "suffix"),
    [(mode, channels, suffix) for mode, channels in (("L", 1), ("LA", 2), ("RGB", 3), ("RGBA", 4))
     for suffix in (".png", ".tif", ".webp") if suffix != ".webp" or channels > 2],
)  # fmt: skip
def test_8_bit_round_trip_is_exact(tmp_path, mode, channels, suffix):
    array = random_samples(channels, np.uint8)
    Image.fromarray(array.squeeze()).save(tmp_path / f"in{suffix}", lossless=True)
    picture = read_picture(tmp_path / f"in{suffix}")
    write_picture(tmp_path / f"out{suffix}", picture.rgb, picture, quality=100)
    with Image.open(tmp_path / f"out{suffix}") as image:
        assert image.mode == mode
        np.testing.assert_array_equal(np.asarray(image).reshape(array.shape), array)


def test_values_are_rounded_and_clipped(tmp_path):
    like = picture_of(tmp_path / "in.png", np.zeros((1, 8, 3), np.uint8))
    levels = torch.tensor([-3.0, 0.49, 0.51, 100.49, 100.51, 254.49, 254.51, 900.0])
    write_picture(tmp_path / "out.png", (levels / 127.5 - 1).expand(3, 1, 8), like)
    assert np.asarray(Image.open(tmp_path / "out.png"))[0, :, 0].tolist() == [0, 0, 1, 100, 101, 254, 255, 255]


def test_grey_output_weighs_colors_as_pillow_does(tmp_path):
    like = picture_of(tmp_path / "in.png", np.zeros((9, 9), np.uint8))
    array = random_samples(3, np.uint8)
    write_picture(tmp_path / "out.png", torch.from_numpy(array).permute(2, 0, 1) / 127.5 - 1, like)
    written, wanted = Image.open(tmp_path / "out.png"), Image.fromarray(array).convert("L")
    assert written.mode == "L"
    assert np.abs(np.asarray(written, int) - np.asarray(wanted, int)).max() <= 1  # Pillow truncates


@pytest.mark.parametrize("mode", ["1", "P", "L", "LA", "RGBA"])
def test_modes_read_as_pillow_converts_them(tmp_path, mode):
    image = Image.fromarray(random_samples(4, np.uint8)).convert("RGBA" if mode == "RGBA" else "RGB").convert(mode)
    image.save(tmp_path / "in.png")
    picture = read_picture(tmp_path / "in.png")
    np.testing.assert_array_equal(samples(picture.rgb, 8), np.asarray(image.convert("RGB")))
    assert picture.mode_kind == {"1": "grey", "L": "grey", "LA": "grey", "P": "palette"}.get(mode, "rgb")
    assert bool(picture.notes) == (mode == "P")


def test_palette_with_transparency(tmp_path):
    image = Image.new("P", (4, 2), 1)
    image.putpalette([0, 0, 0, 250, 100, 50, 9, 9, 9])
    image.putpixel((0, 0), 0)
    image.putpixel((1, 0), 2)
    image.save(tmp_path / "in.png", transparency=bytes([0, 255, 128]))
    picture = read_picture(tmp_path / "in.png")
    assert (picture.alpha[0, 0, :3] * 255).tolist() == [0, 128, 255]
    assert samples(picture.rgb, 8)[0, 1].tolist() == [9, 9, 9]
    assert samples(picture.rgb, 8)[0, 0].min() >= 9  # filled from its neighbours, not black


# --- transparency -----------------------------------------------------------------------------------------------------
def test_fill_transparent_keeps_what_is_seen_and_takes_the_rest_from_around():
    rng = torch.Generator().manual_seed(0)
    alpha = (torch.rand(1, 33, 47, generator=rng) > 0.7).float()
    rgb = torch.where(alpha > 0, torch.tensor([0.6, -0.2, 0.1]).view(3, 1, 1), torch.tensor(-1.0))
    filled = fill_transparent(rgb, alpha)
    assert torch.allclose(filled, torch.tensor([0.6, -0.2, 0.1]).view(3, 1, 1).expand_as(filled), atol=1e-5)

    noise = torch.rand(3, 33, 47, generator=rng)
    filled = fill_transparent(noise, alpha)
    assert torch.equal(filled[:, alpha[0] > 0], noise[:, alpha[0] > 0])
    assert filled.min() >= noise[:, alpha[0] > 0].min() - 1e-6 and filled.max() <= noise[:, alpha[0] > 0].max() + 1e-6
    assert torch.equal(fill_transparent(noise, torch.zeros(1, 33, 47)), noise)


def test_resize_alpha_in_strips_equals_the_whole_and_keeps_flat_parts():
    alpha = torch.zeros(1, 20, 30)
    alpha[:, :, 15:] = 1
    whole = resize_alpha(alpha, (90, 70))
    parts = [resize_alpha(alpha, (90, 70), (first, min(first + 9, 70))) for first in range(0, 70, 9)]
    assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-6)
    assert whole.shape == (1, 70, 90) and whole.min() == 0 and whole.max() == 1
    assert torch.allclose(whole[0, :, 5], torch.tensor(0.0)) and torch.allclose(whole[0, :, 85], torch.tensor(1.0))
    # Lanczos-3 at a step edge, output pixel 45 = input 14.8333 (centres): closed form
    taps = np.arange(12, 18) + 0.5 - (45 + 0.5) / 3
    weights = np.sinc(taps) * np.sinc(taps / 3)
    assert abs(whole[0, 30, 45].item() - weights[3:].sum() / weights.sum()) < 1e-5


def test_transparency_is_enlarged_and_laid_on_white_for_jpeg(tmp_path):
    array = np.zeros((8, 8, 4), np.uint8)
    array[:, 4:] = (200, 10, 10, 255)
    like = picture_of(tmp_path / "in.png", array)
    big = torch.nn.functional.interpolate(like.rgb[None], scale_factor=4)[0]
    write_picture(tmp_path / "out.png", big, like)
    written = np.asarray(Image.open(tmp_path / "out.png"))
    assert written.shape == (32, 32, 4) and (written[:, :4, 3] == 0).all() and (written[:, 28:, 3] == 255).all()
    assert (written[..., 0] == 200).all()  # no dark rim under the edge

    notes = write_picture(tmp_path / "out.jpg", big, like)
    assert any("white" in note for note in notes)
    flat = np.asarray(Image.open(tmp_path / "out.jpg")).astype(int)
    assert np.abs(flat[:, :4] - 255).max() <= 2 and np.abs(flat[:, 28:] - (200, 10, 10)).max() <= 3


# --- colour -----------------------------------------------------------------------------------------------------------
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


def srgb_of_lab(lab: np.ndarray) -> np.ndarray:
    """Lab (D50) -> 8-bit sRGB by the definitions of CIE Lab and IEC 61966-2-1, Bradford-adapted matrix."""
    fy = (lab[0] + 16) / 116
    f = np.array([fy + lab[1] / 500, fy, fy - lab[2] / 200])
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * (0.9642, 1, 0.8249)
    linear = np.array([[3.13386, -1.61687, -0.49061], [-0.97877, 1.91614, 0.03345], [0.07195, -0.22899, 1.40524]]) @ xyz
    linear = linear.clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def test_cmyk_is_converted_by_its_profile_or_by_the_plain_formula(tmp_path):
    inks = list(itertools.product((0, 1), repeat=4))
    corners = np.array([[100 - 30 * (c + m + y), 30 * (m - c), 30 * y] if not k else [0, 0, 0] for c, m, y, k in inks])
    profile = cmyk_profile(corners)
    for index, ink in enumerate(inks):
        image = Image.new("CMYK", (16, 16), tuple(255 * value for value in ink))
        image.save(tmp_path / "with.jpg", icc_profile=profile, quality=100)
        picture = read_picture(tmp_path / "with.jpg")
        wanted = srgb_of_lab(np.round(corners[index] * (2.55, 1, 1)) / (2.55, 1, 1))
        assert np.abs(samples(picture.rgb, 8)[8, 8] - wanted).max() <= 2, ink
        assert picture.icc is None and any("by its profile (test)" in note for note in picture.notes)

        image.save(tmp_path / "without.jpg", quality=100)
        picture = read_picture(tmp_path / "without.jpg")
        wanted = [255 * (1 - value) * (1 - ink[3]) for value in ink[:3]]
        assert np.abs(samples(picture.rgb, 8)[8, 8] - wanted).max() <= 2
        assert picture.mode_kind == "cmyk" and any("approximate" in note for note in picture.notes)
    write_picture(tmp_path / "out.tif", picture.rgb, picture)
    assert Image.open(tmp_path / "out.tif").mode == "RGB"


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_profile_xmp_exif_and_resolution_are_carried(tmp_path, suffix):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Copyright] = "Maker", "someone"
    exif[ExifTags.IFD.GPSInfo] = {1: "N", 2: (52.0, 30.0, 1.5)}
    exif[ExifTags.IFD.Exif] = {
        ExifTags.Base.ExifImageWidth: 12, ExifTags.Base.ExifImageHeight: 8, ExifTags.Base.MakerNote: b"secret\0\xff",
        ExifTags.IFD.Interop: {1: "R98"}, ExifTags.Base.ExposureTime: 0.004,
    }  # fmt: skip
    Image.new("RGB", (12, 8)).save(
        tmp_path / "in.jpg", exif=exif, icc_profile=SRGB, xmp=XMP, dpi=(100, 150), comment="x", quality=90
    )
    picture = read_picture(tmp_path / "in.jpg")
    assert picture.size == (8, 12) and picture.dpi == (150, 100) and picture.icc == SRGB

    path = tmp_path / f"out{suffix}"
    write_picture(path, torch.zeros(3, 36, 16), picture, settings={"seed": 1, "name": "ä"})
    with Image.open(path) as image:
        assert image.size == (16, 36)
        assert image.info["icc_profile"] == SRGB
        assert b'tiff:Orientation="1"' in image.info["xmp"] and b"someone" in image.info["xmp"]
        carried = image.getexif()
        assert carried.get(ExifTags.Base.Orientation, 1) == 1
        assert carried[ExifTags.Base.Make] == "Maker" and carried[ExifTags.Base.Copyright] == "someone"
        details = carried.get_ifd(ExifTags.IFD.Exif)
        assert (details[ExifTags.Base.ExifImageWidth], details[ExifTags.Base.ExifImageHeight]) == (16, 36)
        assert details[ExifTags.Base.MakerNote] == b"secret\0\xff"
        assert float(details[ExifTags.Base.ExposureTime]) == 0.004
        assert carried.get_ifd(ExifTags.IFD.Interop) == {1: "R98"}
        assert carried.get_ifd(ExifTags.IFD.GPSInfo)[2] == (52.0, 30.0, 1.5)
        dpi = (carried[282], carried[283]) if suffix == ".webp" else image.info["dpi"]  # XResolution, YResolution
        np.testing.assert_allclose([float(value) for value in dpi], (300, 300), rtol=1e-3)
    assert read_settings(path) == {"seed": 1, "name": "ä"}
    assert read_settings(tmp_path / "in.jpg") is None


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif", "tif16"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_as_pillow_does(tmp_path, orientation, kind):
    array = random_samples(3, np.uint8, 6, 10)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = tmp_path / f"in.{kind[:3] if kind != 'webp' else 'webp'}"
    if kind == "tif16":
        data = array.astype(np.uint16) * 257
        tifffile.imwrite(path, data, photometric="rgb", extratags=[(274, "H", 1, orientation, True)], metadata=None)
        wanted = np.asarray(ImageOps.exif_transpose(_with_exif(array, exif))).astype(np.uint16) * 257
        bit_depth = 16
    else:
        Image.fromarray(array).save(path, exif=exif.tobytes(), lossless=True)
        with Image.open(path) as image:
            wanted = np.asarray(ImageOps.exif_transpose(image))
        bit_depth = 8
    picture = read_picture(path)
    np.testing.assert_array_equal(samples(picture.rgb, bit_depth), wanted)
    assert picture_size(path) == picture.size == ((10, 6) if orientation <= 4 else (6, 10))


def test_header_of_a_png_is_read_whole_but_not_its_pixels(tmp_path):
    exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"  # orientation 6
    data = png_bytes(random_samples(1), 0, (b"eXIf", exif), (b"tEXt", b'sat-sr\0{"seed": 5}'))
    pixels, end = data.index(b"IDAT") - 4, data.index(b"IEND") - 4
    head, chunks = data[:33], data[33:pixels]
    (tmp_path / "in.png").write_bytes(head + data[pixels:end] + chunks + data[end:])
    assert picture_size(tmp_path / "in.png") == read_picture(tmp_path / "in.png").size == (19, 26)
    assert read_settings(tmp_path / "in.png") == {"seed": 5}

    undecodable = data[pixels : pixels + 8] + bytes(64) + data[pixels + 72 : end]
    (tmp_path / "in.png").write_bytes(head + undecodable + chunks + data[end:])
    assert picture_size(tmp_path / "in.png") == (19, 26) and read_settings(tmp_path / "in.png") == {"seed": 5}
    with pytest.raises(PictureError, match="damaged"):
        read_picture(tmp_path / "in.png")


@pytest.mark.parametrize("change", ["no end", "behind the end", "damaged chunk"])
def test_header_of_a_png_that_is_read_all_the_same(tmp_path, change):
    data = png_bytes(random_samples(1), 0, (b"tEXt", b'sat-sr\0{"seed": 5}'))
    end = data.index(b"IEND") - 4
    damaged = struct.pack(">I", 3) + b"tIMEabc" + bytes(4)
    data = {
        "no end": data[:end],
        "behind the end": data + struct.pack(">I", 2**31) + b"what" + bytes(1000),
        "damaged chunk": data[:end] + damaged + data[end:],
    }[change]
    (tmp_path / "in.png").write_bytes(data)
    assert picture_size(tmp_path / "in.png") == read_picture(tmp_path / "in.png").size == (26, 19)
    assert read_settings(tmp_path / "in.png") == {"seed": 5}


def _with_exif(array, exif) -> Image.Image:
    file = io.BytesIO()
    Image.fromarray(array).save(file, format="PNG", exif=exif)
    return Image.open(file)


def test_png_texts_and_color_chunks_are_carried_to_png(tmp_path):
    chunks = [(b"gAMA", struct.pack(">I", 100000)), (b"cICP", bytes([9, 16, 0, 1])), (b"tEXt", b"Title\0a dog")]
    (tmp_path / "in.png").write_bytes(png_bytes(random_samples(3), 2, *chunks))
    picture = read_picture(tmp_path / "in.png")
    write_picture(tmp_path / "out.png", picture.rgb, picture)
    _, written, _ = read_png((tmp_path / "out.png").read_bytes())
    assert written[b"gAMA"] == chunks[0][1] and written[b"cICP"] == chunks[1][1] and b"a dog" in written[b"iTXt"]
    notes = write_picture(tmp_path / "out.jpg", picture.rgb, picture)
    assert any("Title" in note for note in notes) and any("gamma" in note for note in notes)


@pytest.mark.parametrize(
    ("options", "word"),
    [({"icc_profile": b"garbage"}, "ICC"), ({"exif": b"Exif\0\0garbage garbage"}, "EXIF"),
     ({"exif": b"Exif\0\0MM\0*garbage garbage"}, "EXIF"), ({"exif": b"Exif\0\0II*\0\x08\0\0\0\x05\0short"}, "EXIF"),
     ({"icc_profile": cmyk_profile(np.zeros((16, 3)))}, "CMYK"),
     ({"exif": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0"}, "orientation 99")],
)  # fmt: skip
def test_metadata_that_makes_no_sense_is_noted_and_left_out(tmp_path, options, word):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "in.jpg", **options)
    picture = read_picture(tmp_path / "in.jpg")
    assert any(word in note for note in picture.notes) and picture.icc is None
    write_picture(tmp_path / "out.jpg", picture.rgb, picture)
    assert "icc_profile" not in Image.open(tmp_path / "out.jpg").info


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "avif"])
def test_exif_without_entries_is_no_damage(tmp_path, suffix):
    path = tmp_path / f"in.{suffix}"
    Image.new("RGB", (8, 8), "red").save(path, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0")
    assert read_picture(path).notes == []


def test_depth_that_is_lost_on_reading_is_noted(tmp_path):
    (tmp_path / "a.ppm").write_bytes(b"P6\n# deep\n2 1\n65535\n" + bytes(range(12)))
    (tmp_path / "b.pgm").write_bytes(b"P5 2 1 65535\n\x01\x02\xff\xff")
    assert read_picture(tmp_path / "a.ppm").notes == ["16 bits a sample in the file: read at 8"]
    deep = read_picture(tmp_path / "b.pgm")
    assert samples(deep.rgb, 16)[0, :, 0].tolist() == [0x0102, 0xFFFF] and deep.bit_depth == 16 and not deep.notes
    for format in ("AVIF", "JPEG2000", "PPM", "BMP"):
        Image.new("RGB", (32, 32), "red").save(tmp_path / "c", format=format)
        assert read_picture(tmp_path / "c").notes == []


@pytest.mark.parametrize(
    ("shape", "dtype", "options", "note"),
    [
        ((5, 6, 4), np.uint16, {"photometric": "separated"}, "16 bits a sample in the file: read at 8"),
        ((5, 6, 5), np.uint8, {"photometric": "rgb"}, "2 channel(s) beside colour and transparency: left out"),
        ((5, 6, 4), np.uint8, {"photometric": "rgb", "extrasamples": ["unspecified"]}, "1 channel(s) beside colour"),
        ((5, 6, 5), np.uint16, {"photometric": "rgb"}, "channel(s) beside colour and transparency: left out"),
        ((2, 5, 6), np.uint16, {"photometric": "minisblack"}, "more than one picture in the file"),
        ((5, 6, 4), np.uint8, {"photometric": "separated"}, None),
        ((5, 6, 4), np.uint8, {"photometric": "rgb", "extrasamples": ["unassalpha"]}, None),
        ((5, 6), np.uint8, {"photometric": "minisblack"}, None),
    ],
)
def test_what_is_left_out_of_a_tiff_is_noted(tmp_path, shape, dtype, options, note):
    tifffile.imwrite(tmp_path / "in.tif", np.full(shape, 9, dtype), metadata=None, **options)
    notes = [text for text in read_picture(tmp_path / "in.tif").notes if "CMYK" not in text]
    assert len(notes) == (note is not None) and all(note in text for text in notes)


def test_first_frame_of_an_animation_is_used_and_noted(tmp_path):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    for name in ("a.gif", "a.png", "a.webp", "a.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        picture = read_picture(tmp_path / name)
        assert samples(picture.rgb, 8)[4, 4].tolist() == [255, 0, 0]
        assert sum("only the first" in note for note in picture.notes) == 1


def test_settings_of_an_earlier_run_do_not_travel_on(tmp_path):
    like = picture_of(tmp_path / "in.jpg", np.zeros((8, 8, 3), np.uint8))
    for suffix in ("png", "jpg"):
        write_picture(tmp_path / f"one.{suffix}", like.rgb, like, settings={"seed": 1})
        first = read_picture(tmp_path / f"one.{suffix}")
        for other in ("png", "jpg"):
            assert write_picture(tmp_path / f"two.{other}", first.rgb, first) == []
            assert read_settings(tmp_path / f"two.{other}") is None
    (tmp_path / "bad.png").write_bytes(png_bytes(random_samples(1), 0, (b"tEXt", b"sat-sr\0{not json")))
    with pytest.raises(PictureError, match=r"bad\.png.*settings.*damaged"):
        read_settings(tmp_path / "bad.png")


# --- what cannot be ---------------------------------------------------------------------------------------------------
def test_unreadable_files_are_named_with_a_way_out(tmp_path):
    (tmp_path / "text.png").write_text("not a picture, but a note")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "pipe.png")
    whole = io.BytesIO()
    Image.fromarray(random_samples(3, np.uint8, 64, 64)).save(whole, format="JPEG")
    (tmp_path / "short.jpg").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    (tmp_path / "short16.png").write_bytes(png_bytes(random_samples(3), 2)[:-400])
    tifffile.imwrite(tmp_path / "float.tif", np.zeros((4, 4), np.float32))
    (tmp_path / "eps.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(touch x) print\n%%EOF\n")
    for name, word in {
        "text.png": "no picture", "empty.png": "empty", "folder.png": "folder", "link.png": "link",
        "pipe.png": "regular", "short.jpg": "truncated", "short16.png": "damaged", "float.tif": "16-bit",
        "eps.png": "no picture", "missing.png": "not there", "nul\0.png": "opened",
    }.items():  # fmt: skip
        with pytest.raises(PictureError) as caught:
            read_picture(tmp_path / name)
        message = str(caught.value)
        assert name in message and word in message and ": " in message and "\n" not in message


def test_a_bomb_is_refused_by_its_header_with_size_and_way_out(tmp_path):
    data = bytearray(png_bytes(np.zeros((1, 1, 3), np.uint8), 2))
    data[16:24] = struct.pack(">II", 50_000, 40_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "bomb.png").write_bytes(data)
    with pytest.raises(PictureError, match=r"50000x40000 px, 2,000,000,000 pixels.*--max-pixels"):
        read_picture(tmp_path / "bomb.png")
    like = picture_of(tmp_path / "a.png", np.zeros((4, 5, 3), np.uint8))
    with pytest.raises(PictureError, match="5x4"):
        read_picture(tmp_path / "a.png", max_pixels=19)
    assert read_picture(tmp_path / "a.png", max_pixels=20).size == like.size
    assert picture_size(tmp_path / "bomb.png") == (50_000, 40_000)
    with pytest.raises(PictureError, match=r"50000x40000 px, 2,000,000,000 pixels.*--max-pixels"):
        picture_size(tmp_path / "bomb.png", max_pixels=1_999_999_999)
    assert picture_size(tmp_path / "a.png", max_pixels=20) == (5, 4)
    assert Image.MAX_IMAGE_PIXELS is not None  # Pillow's own limit is back


def test_formats_that_cannot_hold_the_picture_say_so_before_the_work(tmp_path):
    like = picture_of(tmp_path / "in.png", np.zeros((2, 2), np.uint8))
    for suffix, side in (("jpg", 65_501), ("webp", 16_384)):
        with pytest.raises(PictureError, match=f"{side - 1:,} px.*--format png"):
            check_output(tmp_path / f"out.{suffix}", like, (side, 8))
        with pytest.raises(PictureError, match=f"{side - 1:,} px.*8x{side} px.*--format png"):
            check_output_size(tmp_path / f"out.{suffix}", (8, side))
        check_output_size(tmp_path / f"out.{suffix}", (8, side - 1))
        assert check_output(tmp_path / f"out.{suffix}", like, (side - 1, 8)) == []
    with pytest.raises(PictureError, match="suffix"):
        check_output(tmp_path / "out", like, (8, 8))
    with pytest.raises(PictureError, match="suffix"):
        check_output_size(tmp_path / "out", (8, 8))
    with pytest.raises(PictureError, match="quality 101"):
        check_output(tmp_path / "out.jpg", like, (8, 8), quality=101)
    assert "lossless" in check_output(tmp_path / "out.png", like, (8, 8), quality=50)[0]

    (tmp_path / "deep.png").write_bytes(png_bytes(random_samples(3), 2))
    deep = read_picture(tmp_path / "deep.png")
    assert "16 bits are rounded to 8" in write_picture(tmp_path / "out.jpg", deep.rgb, deep)[0]
    Image.new("RGB", (4, 4)).save(tmp_path / "in.bmp")
    bmp = read_picture(tmp_path / "in.bmp")
    assert "BMP" in write_picture(tmp_path / "keep.png", bmp.rgb, bmp, format="keep")[0]


def test_the_input_is_never_written_to_not_even_by_a_link(tmp_path):
    like = picture_of(tmp_path / "in.png", np.zeros((4, 4, 3), np.uint8))
    before = (tmp_path / "in.png").read_bytes()
    (tmp_path / "other.png").symlink_to("in.png")
    for name in ("in.png", "other.png"):
        with pytest.raises(PictureError, match="is the picture that is read"):
            write_picture(tmp_path / name, torch.ones(3, 4, 4), like)
    assert (tmp_path / "in.png").read_bytes() == before


def test_nan_writes_nothing(tmp_path):
    like = picture_of(tmp_path / "in.png", np.zeros((4, 4, 3), np.uint8))
    rgb = torch.zeros(3, 16, 16)
    rgb[1, 9, 3] = float("nan")
    for suffix in ("png", "tif", "jpg", "webp"):
        with pytest.raises(PictureError, match="NaN in rows"):
            write_picture(tmp_path / f"out.{suffix}", rgb, like)
    assert [path.name for path in tmp_path.iterdir()] == ["in.png"]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_writing_needs_no_second_copy_of_the_picture(tmp_path, monkeypatch, suffix):
    like = picture_of(tmp_path / "in.png", np.zeros((4, 4, 3), np.uint8))
    monkeypatch.setattr(writing, "_STRIP_SAMPLES", 1 << 14)
    rgb = torch.zeros(3, 2048, 1024)
    tracemalloc.start()  # counts what numpy and Python allocate
    write_picture(tmp_path / f"out.{suffix}", rgb, like)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * 2048 * 1024 / 4  # a quarter of the 8-bit picture
    assert (np.asarray(Image.open(tmp_path / f"out.{suffix}")) == 128).all()


# --- almost pictures --------------------------------------------------------------------------------------------------
def _seeds() -> list[bytes]:
    rgb, seeds = Image.fromarray(random_samples(3, np.uint8, 9, 11)), []
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.IFD.Exif] = {ExifTags.Base.UserComment: b"ASCII\0\0\0" + json.dumps({"sat-sr": {}}).encode()}
    for format, image in (
        ("PNG", rgb), ("JPEG", rgb), ("JPEG", rgb.convert("CMYK")), ("WEBP", rgb), ("TIFF", rgb), ("GIF", rgb),
        ("BMP", rgb), ("PPM", rgb), ("PNG", rgb.convert("P")), ("JPEG2000", rgb), ("AVIF", rgb),
        ("TIFF", rgb.convert("P")),
    ):  # fmt: skip
        file = io.BytesIO()
        image.save(file, format=format, exif=exif.tobytes(), icc_profile=SRGB, xmp=XMP, dpi=(72, 72))
        seeds.append(file.getvalue())
    for channels, color_type in ((1, 0), (3, 2), (4, 6)):
        seeds.append(png_bytes(random_samples(channels), color_type))
    for options in ({}, {"compression": "zlib", "predictor": 2, "tile": (16, 16)}, {"bigtiff": True}):
        file = io.BytesIO()
        tifffile.imwrite(file, random_samples(3), photometric="rgb", **options)
        seeds.append(file.getvalue())
    return seeds


SEEDS = _seeds()


def damaged(seed: int) -> bytes:
    """A small picture with a few bytes changed, dropped or doubled; sometimes cut, sometimes nothing but its head."""
    rng = random.Random(seed)
    data = bytearray(rng.choice(SEEDS))
    reach = rng.choice((64, 512, len(data)))  # headers are where the harm is
    for _ in range(rng.randint(0, 6)):
        at = rng.randrange(min(reach, len(data)))
        kind = rng.randrange(4)
        if kind == 0:
            data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 1:
            data[at : at + 4] = rng.randbytes(4)
        elif kind == 2:
            del data[at : at + rng.randint(1, 16)]
        else:
            data[at:at] = data[at : at + rng.randint(1, 16)]
        if not data:
            break
    return bytes(data[: rng.randrange(len(data) + 1)] if rng.random() < 0.3 else data)


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.one_of(st.integers(0, 2**32).map(damaged), st.binary(max_size=64)))
def test_almost_pictures_raise_nothing_but_picture_errors(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "almost.png"
    path.write_bytes(data)
    for read in (lambda path: read_picture(path, max_pixels=1 << 16), picture_size, read_settings):
        try:
            result = read(path)
        except PictureError as error:
            assert "almost.png" in str(error) and "\n" not in str(error)
            continue
        if isinstance(result, Picture):
            assert torch.isfinite(result.rgb).all() and result.rgb.abs().max() <= 1
            write_picture(path.with_name("again.png"), result.rgb, result, settings={})
            write_picture(path.with_name("again.tif"), result.rgb, result, settings={})
            write_picture(path.with_name("again.jpg"), result.rgb, result, settings={})
