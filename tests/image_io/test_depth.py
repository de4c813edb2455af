"""Samples of 8 to 16 bits: what goes in comes out, checked against other readers and closed forms."""

from __future__ import annotations

import io
import itertools
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import tifffile
import torch
from picture_files import picture_of, png_bytes, random_samples, read_png, samples
from PIL import Image

from sat_sr.image_io import PictureError, read_picture, read_settings, write_picture, writing


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


@pytest.mark.parametrize(("codec", "predictor"), [(None, None), ("zlib", None), ("zlib", 2)])
@pytest.mark.parametrize("extra", [[], ["unassalpha"], ["assocalpha"], ["unassalpha", "unspecified"]])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite", "rgb"])
def test_8_bit_tiff_with_its_channels_apart_reads_what_tifffile_wrote(
    tmp_path, photometric, extra, codec, predictor
):  # fmt: skip
    colors = 3 if photometric == "rgb" else 1
    array = random_samples(colors + len(extra), np.uint8, height=37, width=50)
    array[..., colors:] |= 1  # nothing fully transparent: colours stay
    for tile, byteorder in itertools.product((None, (16, 32)), "<>"):
        tifffile.imwrite(
            tmp_path / "in.tif", np.moveaxis(array, 2, 0), photometric=photometric, extrasamples=extra or None,
            planarconfig="separate" if len(array[0, 0]) > 1 else None, tile=tile, byteorder=byteorder,
            compression=codec, predictor=predictor, rowsperstrip=None if tile else 7, metadata=None,
        )  # fmt: skip
        picture = read_picture(tmp_path / "in.tif")
        wanted = array[..., :colors].astype(float)
        wanted = 255 - wanted if photometric == "miniswhite" else wanted
        if extra:
            np.testing.assert_array_equal((picture.alpha[0].double().numpy() * 255).round(), array[..., colors])
        if extra == ["assocalpha"]:
            wanted = np.minimum(wanted * 255 / array[..., colors : colors + 1], 255)
        found = (picture.rgb[:colors].double().permute(1, 2, 0).numpy() + 1) / 2 * 255
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-3)
        assert picture.bit_depth == 8 and picture.mode_kind == ("rgb" if colors == 3 else "grey")
        assert [note for note in picture.notes if "premultiplied" not in note] == (
            ["1 channel(s) beside colour and transparency: left out"] if len(extra) == 2 else []
        )


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


@pytest.mark.parametrize(
    ("kind", "bits"), [("tiff", 12), ("zip", 12), ("j2k", 12), ("j2k", 10), ("pgm", 12), ("pgm", 16)]
)
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


@pytest.mark.parametrize("header", [b"P6 50 37 %d\n", b"P6\n# one\n50 # two\n37\n#three\n%d\n"])
@pytest.mark.parametrize("top", [1023, 65535])
def test_ppm_above_8_bits_is_read_in_full(tmp_path, header, top):
    array = random_samples(3, height=37, width=50) & top
    (tmp_path / "in.ppm").write_bytes(header % top + array.astype(">u2").tobytes())
    picture = read_picture(tmp_path / "in.ppm")
    np.testing.assert_array_equal(samples(picture.rgb, 16), np.round(array / top * 65535))
    assert picture.bit_depth == 16 and picture.mode_kind == "rgb" and not picture.notes

    (tmp_path / "in.ppm").write_bytes(header % top + array.astype(">u2").tobytes()[:-1])
    with pytest.raises(PictureError, match="truncated"):
        read_picture(tmp_path / "in.ppm")


def test_ppm_samples_above_its_maximum_are_damage(tmp_path):
    (tmp_path / "in.ppm").write_bytes(b"P6 1 1 1000\n\x03\xe8\x03\xe9\0\0")
    with pytest.raises(PictureError, match=r"damaged \(samples up to 1001 where the header says 1000"):
        read_picture(tmp_path / "in.ppm")


def test_depth_that_is_lost_on_reading_is_noted(tmp_path):
    (tmp_path / "a.ppm").write_bytes(b"P3\n# plain\n2 # wide\n1\n65535\n 0 1 2 3 4 65535\n")
    assert read_picture(tmp_path / "a.ppm").notes == ["16 bits a sample in the file: read at 8"]
    for format in ("AVIF", "JPEG2000", "PPM", "BMP"):
        Image.new("RGB", (32, 32), "red").save(tmp_path / "c", format=format)
        assert read_picture(tmp_path / "c").notes == []


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
