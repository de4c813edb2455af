"""Colour and transparency: grey, palettes, alpha, CMYK, checked against Pillow and closed forms."""

from __future__ import annotations

import itertools
import struct

import numpy as np
import pytest
import tifffile
import torch
from picture_files import cmyk_profile, picture_of, png_bytes, random_samples, samples
from PIL import Image

from sat_sr.image_io import read_picture, resize_alpha, write_picture
from sat_sr.image_io.color import fill_transparent


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


def test_16_bit_png_transparent_color(tmp_path):
    array = np.full((8, 8, 3), 40000, np.uint16)
    array[2, 3] = (1, 2, 3)
    array[2, 4] = (1, 2, 4)  # differs in the low byte only
    (tmp_path / "t.png").write_bytes(png_bytes(array, 2, (b"tRNS", struct.pack(">3H", 1, 2, 3))))
    alpha = read_picture(tmp_path / "t.png").alpha[0]
    assert alpha[2, 3] == 0 and alpha.sum() == 63


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_transparent_level_of_a_grey_png_is_compared_as_stored(tmp_path, bits):
    levels = np.arange(2**bits, dtype=np.uint8).reshape(1, -1, 1)
    for level in {0, 1, 2**bits - 1}:
        # The standard (11.3.1.1 of PNG 3): two bytes, of which the sample's lowest bits count.
        chunk = b"tRNS", struct.pack(">H", level | (0x300 if bits == 8 else 0))
        (tmp_path / "in.png").write_bytes(png_bytes(levels, 0, chunk, bits=bits))
        picture = read_picture(tmp_path / "in.png")
        assert torch.equal(picture.alpha[0, 0], (torch.arange(2**bits) != level).float())
        seen = np.arange(2**bits) != level
        wanted = np.arange(2**bits) * 255 // (2**bits - 1)
        np.testing.assert_array_equal(samples(picture.rgb, 8)[0, seen, 0], wanted[seen])


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
