"""What is carried from the input to the output beside the pixels, and what is not, which is noted."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
import torch
from picture_files import SRGB, XMP, cmyk_profile, picture_of, png_bytes, random_samples, read_png, samples
from PIL import ExifTags, Image, ImageOps

from sat_sr.image_io import PictureError, picture_size, read_picture, read_settings, write_picture


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


def _with_exif(array, exif) -> Image.Image:
    file = io.BytesIO()
    Image.fromarray(array).save(file, format="PNG", exif=exif)
    return Image.open(file)


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


def test_png_texts_and_color_chunks_are_carried_to_png(tmp_path):
    colors = {
        b"gAMA": struct.pack(">I", 100000), b"cICP": bytes([9, 16, 0, 1]), b"mDCV": bytes(range(24)),
        b"cLLI": struct.pack(">II", 10_000_000, 2_000_000),
    }  # fmt: skip
    (tmp_path / "in.png").write_bytes(png_bytes(random_samples(3), 2, *colors.items(), (b"tEXt", b"Title\0a dog")))
    picture = read_picture(tmp_path / "in.png")
    write_picture(tmp_path / "out.png", picture.rgb, picture)
    _, written, _ = read_png((tmp_path / "out.png").read_bytes())
    assert {kind: written[kind] for kind in colors} == colors and b"a dog" in written[b"iTXt"]
    notes = write_picture(tmp_path / "out.jpg", picture.rgb, picture)
    assert any("Title" in note for note in notes) and any("gamma" in note for note in notes)


@pytest.mark.parametrize(("kind", "told"), [(b"sRGB", False), (b"gAMA", False), (b"cHRM", False), (b"cICP", True)])
def test_color_chunks_that_a_profile_does_not_replace_are_told_where_they_are_left_out(tmp_path, kind, told):
    length = {b"sRGB": 1, b"gAMA": 4, b"cHRM": 32, b"cICP": 4}[kind]
    profile = (b"iCCP", b"sRGB\0\0" + zlib.compress(SRGB))
    (tmp_path / "in.png").write_bytes(png_bytes(random_samples(3, np.uint8), 2, (kind, bytes(length)), profile))
    picture = read_picture(tmp_path / "in.png")
    assert bool(write_picture(tmp_path / "out.webp", picture.rgb, picture)) == told


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
