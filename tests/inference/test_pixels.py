"""PIL images in and out: upright, with a profile that fits."""

from __future__ import annotations

import io
import logging

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from sat_sr.inference.pixels import to_tensor

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GREY = SRGB[:16] + b"GRAY" + SRGB[20:]  # as far as the header goes
CMYK = SRGB[:16] + b"CMYK" + SRGB[20:]

# EXIF 2.3, 4.6.4: which sides of the picture row 0 and column 0 of the stored one are
UPRIGHT = {
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1), 6: lambda a: a[::-1].swapaxes(0, 1), 7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),
}  # fmt: skip


@pytest.mark.parametrize("format", ["PNG", "TIFF"])  # Pillow turns TIFF itself when it loads it
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_a_pil_image_is_turned_upright_with_its_transparency(orientation, format):
    array = np.random.default_rng(0).integers(0, 256, (3, 5, 4), np.uint8)
    file, exif = io.BytesIO(), Image.Exif()
    exif[274] = orientation
    Image.fromarray(array).save(file, format=format, exif=exif.tobytes())
    tensor, restore = to_tensor(Image.open(file))
    output = restore(tensor)
    np.testing.assert_array_equal(np.asarray(output), UPRIGHT[orientation](array))
    assert output.getexif().get(274, 1) == 1


@pytest.mark.parametrize("dtype", ["|u1", "<u2", ">u2", "<f4", ">f4", "<f8"])
def test_arrays_of_either_byte_order_come_back_as_they_were_and_in_one_piece(dtype):
    levels = np.random.default_rng(0).integers(0, 256, (5, 7, 3))
    array = (levels / 255 if "f" in dtype else levels).astype(dtype)
    tensor, restore = to_tensor(array)
    top = {"|u1": 255, "<u2": 65535, ">u2": 65535}.get(dtype, 1)
    wanted = torch.from_numpy(array.astype(np.float32)).permute(2, 0, 1)[None] / top * 2 - 1
    torch.testing.assert_close(tensor, wanted, rtol=0, atol=1e-6)
    output = restore(tensor)
    assert output.dtype == array.dtype and output.flags.c_contiguous
    np.testing.assert_allclose(output, array, rtol=0, atol=1e-6)


def test_exif_that_does_not_parse_leaves_the_picture_as_it_is(caplog):
    image = Image.new("RGB", (5, 3), (9, 99, 199))
    image.info["exif"] = b"Exif\0\0garbage garbage"
    tensor, restore = to_tensor(image)
    assert restore(tensor).getpixel((4, 2)) == (9, 99, 199) and "EXIF data does not parse" in caplog.text


def _with_transparency(kind: str) -> tuple[Image.Image, np.ndarray]:
    """A PIL image of a kind, and what it looks like: (H, W, 4) RGBA."""
    rng = np.random.default_rng(1)
    grey = rng.integers(0, 4, (5, 7), np.uint8) * 60
    rgb = grey[..., None] * np.array([1, 1, 1] if kind.startswith("L") else [1, 0, 1], np.uint8)
    alpha = np.where(grey == 60, 0, 255).astype(np.uint8)
    if kind in ("LA", "RGBA"):
        image = Image.fromarray(np.dstack([rgb, alpha])).convert(kind)
    elif kind == "PA":  # by hand: Pillow 11 makes other colours, and no alpha
        image = Image.fromarray(grey // 60)
        image.putpalette([0, 0, 0, 60, 0, 60, 120, 0, 120, 180, 0, 180])
        image = image.convert("PA")
        image.putalpha(Image.fromarray(alpha))
    elif kind == "L transparency":
        image = Image.fromarray(grey)
        image.info["transparency"] = 60
    elif kind == "RGB transparency":
        image = Image.fromarray(rgb)
        image.info["transparency"] = (60, 0, 60)
    else:
        image = Image.fromarray(grey // 60)
        image.putpalette([0, 0, 0, 60, 0, 60, 120, 0, 120, 180, 0, 180])
        image.info["transparency"] = {"P transparency": 1, "P transparencies": bytes([255, 0, 255, 255])}[kind]
    return image, np.dstack([rgb, alpha])


@pytest.mark.parametrize(
    "kind", ["RGBA", "LA", "PA", "L transparency", "RGB transparency", "P transparency", "P transparencies"]
)
def test_transparency_is_kept_however_pil_stores_it(kind, caplog):
    image, wanted = _with_transparency(kind)
    tensor, restore = to_tensor(image)
    output = restore(tensor)
    assert output.mode == "RGBA"
    output, seen = np.asarray(output), wanted[..., 3] > 0
    np.testing.assert_array_equal(output[..., 3], wanted[..., 3])
    np.testing.assert_array_equal(output[seen], wanted[seen])
    assert caplog.messages == (
        [] if kind == "RGBA" else
        [f"a picture of mode {image.mode} with transparency is upscaled as RGBA; "
         "read files with image_io to keep more"]
    )  # fmt: skip


def test_colours_that_nobody_sees_do_not_reach_the_model():
    pixels = np.full((9, 9, 4), (200, 100, 50, 255), np.uint8)
    pixels[2:6, 3:8] = (0, 255, 0, 0)
    tensor, _ = to_tensor(Image.fromarray(pixels))
    wanted = torch.tensor([200, 100, 50]).view(3, 1, 1) / 127.5 - 1
    torch.testing.assert_close(tensor[0], wanted.expand(3, 9, 9), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("mode", "profile", "kept"),
    [
        ("RGB", SRGB, True), ("RGBA", SRGB, True), ("L", GREY, True), ("P", SRGB, True),
        ("RGB", GREY, False), ("LA", GREY, False), ("CMYK", CMYK, False), ("RGB", b"garbage", False),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else None,  # they hold the time at which they were made
)  # fmt: skip
def test_the_output_keeps_a_profile_that_fits_and_says_if_it_does_not(mode, profile, kept, caplog):
    image = Image.new(mode, (5, 3))
    image.info["icc_profile"] = profile
    tensor, restore = to_tensor(image)
    file = io.BytesIO()
    restore(torch.nn.functional.interpolate(tensor, scale_factor=2)).save(file, format="PNG")
    with Image.open(file) as written:
        assert written.size == (10, 6) and written.info.get("icc_profile") == (profile if kept else None)
    assert any("ICC profile" in message for message in caplog.messages) != kept
    assert all(record.levelno == logging.WARNING for record in caplog.records)
