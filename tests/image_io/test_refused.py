"""Files that are no pictures, and pictures that no file can hold: named, with a way out."""

from __future__ import annotations

import io
import json
import os
import random
import struct
import zlib

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from picture_files import SRGB, XMP, picture_of, png_bytes, random_samples
from PIL import ExifTags, Image

from sat_sr.image_io import (
    Picture,
    PictureError,
    check_output,
    picture_size,
    read_picture,
    read_settings,
    write_picture,
)
from sat_sr.image_io.writing import check_output_size


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
