"""TIFF beyond grey and RGB: read as the file says, or refused by its kind; which page; which way up."""

from __future__ import annotations

import itertools
import struct

import numpy as np
import pytest
import tifffile
from picture_files import XMP, random_samples, samples
from PIL import Image

from sat_sr.image_io import PictureError, picture_size, read_picture

BESIDE = "1 channel(s) beside colour and transparency: left out"
PREMULTIPLIED = "premultiplied transparency: written as straight transparency"


def write(path, array: np.ndarray, planarconfig: str = "contig", **options):
    data = np.moveaxis(array, -1, 0) if planarconfig == "separate" else array
    tifffile.imwrite(path, data, planarconfig=planarconfig, metadata=None, **options)
    return path


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("codec", [{}, {"compression": "zlib", "predictor": 2}], ids=["raw", "zlib"])
@pytest.mark.parametrize("photometric", ["rgb", "separated"])
def test_colours_and_channels_beside_them_are_what_the_file_says(tmp_path, photometric, codec, dtype, planar):
    colors, top = (3, 4)[photometric == "separated"], np.iinfo(dtype).max
    for extra in ((), (0,), (1,), (2,), (0, 2), (1, 0)):
        array = random_samples(colors + len(extra), dtype, height=37, width=50)
        array[..., colors:] |= 1 + top // 16  # nothing fully transparent: colours stay
        path = write(tmp_path / "in.tif", array, planar, photometric=photometric, extrasamples=extra, **codec)
        picture = read_picture(path)

        values = array / top
        wanted, tolerance = values[..., :3], 1e-6
        if photometric == "separated":  # at 8 bits in between
            wanted, tolerance = (1 - values[..., :3]) * (1 - values[..., 3:4]), 1.6 / 255
        alphas = [colors + index for index, meaning in enumerate(extra) if meaning]
        assert (picture.alpha is not None) == bool(alphas)
        if alphas:
            alpha = values[..., alphas]
            np.testing.assert_allclose(picture.alpha.permute(1, 2, 0), alpha, rtol=0, atol=min(tolerance, 0.5 / 255))
            if 1 in extra:
                wanted, tolerance = np.minimum(wanted / alpha, 1), tolerance / alpha + 1e-6
        assert (abs((picture.rgb.double().permute(1, 2, 0).numpy() + 1) / 2 - wanted) <= tolerance).all(), extra
        assert (PREMULTIPLIED in picture.notes) == (1 in extra)
        assert (BESIDE in picture.notes) == (0 in extra)


@pytest.mark.parametrize("codec", [None, "zlib"])
def test_lab_with_its_channels_apart_is_read_like_together(tmp_path, codec):
    array = random_samples(3, np.uint8, height=37, width=50)
    together = read_picture(write(tmp_path / "a.tif", array, photometric="cielab", compression=codec))
    apart = read_picture(write(tmp_path / "b.tif", array, "separate", photometric="cielab", compression=codec))
    np.testing.assert_array_equal(apart.rgb, together.rgb)
    assert apart.mode_kind == together.mode_kind == "lab" and apart.notes == together.notes


@pytest.mark.parametrize(
    ("array", "options", "words"),
    [
        (np.zeros((4, 5), np.int8), {}, "1 x 8-bit signed, BlackIsZero"),
        (np.zeros((4, 5, 3), np.int16), {"photometric": "rgb"}, "3 x 16-bit signed, RGB"),
        (np.zeros((4, 5), np.uint32), {}, "1 x 32-bit unsigned"),
        (np.zeros((4, 5, 3), np.float16), {"photometric": "rgb"}, "3 x 16-bit floating-point, RGB"),
        (np.zeros((4, 5), np.complex64), {}, "1 x 64-bit complex"),
        (np.zeros((4, 5, 3), np.uint16), {"photometric": "cielab"}, "3 x 16-bit unsigned, CieLAB"),
        (np.zeros((4, 6, 3), np.uint8), {"photometric": "ycbcr"}, "subsampling 2x1"),
        (np.zeros((4, 6, 3), np.uint8), {"photometric": "ycbcr", "planarconfig": "separate"}, "channels apart"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_kinds_that_are_not_read_are_named_for_what_they_are(tmp_path, array, options, words):
    path = tmp_path / "in.tif"
    tifffile.imwrite(path, array, **options)
    if words.startswith("subsampling"):  # tifffile writes none without JPEG
        change_tag(path, 530, (2, 1))
    for read in (read_picture, picture_size):
        with pytest.raises(PictureError, match=f"in.tif is of a kind that is not read .*{words}.*: save it as 8- or"):
            read(path)


def test_a_kind_that_cannot_even_be_named_is_damage(tmp_path):
    path = write(tmp_path / "in.tif", np.zeros((4, 5), np.int8))
    content = path.read_bytes()
    count = struct.pack("<HHI", 277, 3, 1)  # SamplesPerPixel, a number
    assert content.count(count) == 1
    path.write_bytes(content.replace(count, struct.pack("<HHI", 277, 2, 1)))  # a text
    for read in (read_picture, picture_size):
        with pytest.raises(PictureError, match=r"in.tif is damaged \(TIFF tag SamplesPerPixel is missing or no number"):
            read(path)


def change_tag(path, tag: int, value: int | tuple[int, ...]) -> None:
    """Overwrites what a tag of the first page holds."""
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages[0].tags[tag].overwrite(value)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(("options", "there", "wanted"), [({"rowsperstrip": 8}, 3, 6), ({"tile": (16, 16)}, 6, 9)])
def test_strips_that_are_missing_are_damage_and_not_black(tmp_path, options, there, wanted, dtype):
    path = write(tmp_path / "in.tif", random_samples(3, dtype, height=24, width=40), photometric="rgb", **options)
    assert read_picture(path).size == (40, 24)
    change_tag(path, 257, 48)  # twice as high
    with pytest.raises(PictureError, match=rf"is damaged \({there} strips or tiles where {wanted} are needed\)"):
        read_picture(path)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_predictor_counts_with_the_codecs_that_have_one(tmp_path, dtype):
    array = random_samples(4, dtype, height=9, width=11)
    options = {"photometric": "rgb", "extrasamples": ["unassalpha"]}
    predictor = [(317, 3, 1, 2, True)]
    picture = read_picture(write(tmp_path / "raw.tif", array, extratags=predictor, **options))  # libtiff: it is ignored
    np.testing.assert_array_equal(samples(picture.rgb, 8 * array.itemsize), array[..., :3])

    path = write(tmp_path / "zip.tif", array, compression="zlib", predictor=2, **options)
    change_tag(path, 317, 3)
    with pytest.raises(PictureError, match="predictor 3"):
        read_picture(path)


@pytest.mark.parametrize(("layout", "dtype"), itertools.product(("contig", "separate"), (np.uint8, np.uint16)))
def test_which_way_up_is_said_by_the_tag_alone(tmp_path, layout, dtype):
    array = random_samples(3, dtype, height=9, width=11)
    xmp = (700, 1, len(XMP), XMP, True)  # it says 6
    for orientation, wanted in ((None, array), (8, np.rot90(array)), (3, np.rot90(array, 2))):
        tag = [(274, 3, 1, orientation, True)] if orientation else []
        write(tmp_path / "in.tif", array, layout, photometric="rgb", extratags=[xmp, *tag])
        picture = read_picture(tmp_path / "in.tif")
        np.testing.assert_array_equal(samples(picture.rgb, 8 * array.itemsize), wanted)
        assert picture_size(tmp_path / "in.tif") == picture.size
        assert b'"6"' not in picture.xmp and b"someone" in picture.xmp


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_thumbnail_in_front_is_passed_over(tmp_path, dtype):
    array = random_samples(3, dtype, height=37, width=50)
    with tifffile.TiffWriter(tmp_path / "in.tif") as tiff:
        tiff.write(array[::4, ::4], photometric="rgb", subfiletype=1, metadata=None)
        tiff.write(array, photometric="rgb", metadata=None)
        tiff.write(array[:5], photometric="rgb", metadata=None)
    picture = read_picture(tmp_path / "in.tif")
    np.testing.assert_array_equal(samples(picture.rgb, 8 * array.itemsize), array)
    assert picture_size(tmp_path / "in.tif") == (50, 37)
    assert picture.notes == [
        "the first page is a reduced copy (a thumbnail): page 2 is read, the others are not"
    ]  # fmt: skip

    with tifffile.TiffWriter(tmp_path / "in.tif") as tiff:  # nothing but reduced copies: the first
        for step in (4, 8):
            tiff.write(array[::step, ::step], photometric="rgb", subfiletype=1, metadata=None)
    np.testing.assert_array_equal(
        samples(read_picture(tmp_path / "in.tif").rgb, 8 * array.itemsize), array[::4, ::4]
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tile_is_as_large_as_a_picture_may_be(tmp_path, dtype):
    path = write(
        tmp_path / "in.tif", np.zeros((16, 16, 3), dtype), photometric="rgb", tile=(16, 16), compression="zlib"
    )
    assert read_picture(path).size == (16, 16)
    for tag in (322, 323):
        change_tag(path, tag, 49_152)
    with pytest.raises(PictureError, match=r"a tile of .*49152x49152 px.*--max-pixels"):
        read_picture(path)


def test_plain_ycbcr_is_read_as_pillow_converts_it(tmp_path):
    array = random_samples(3, np.uint8, height=9, width=11)
    image = Image.frombytes("YCbCr", (11, 9), array.tobytes())
    image.save(tmp_path / "in.tif")
    np.testing.assert_array_equal(samples(read_picture(tmp_path / "in.tif").rgb, 8), np.asarray(image.convert("RGB")))
