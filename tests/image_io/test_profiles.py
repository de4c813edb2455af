"""ICC profiles and XMP, wherever a format puts them: files built here by the letter of their standards."""

from __future__ import annotations

import zlib

from picture_files import SRGB, large_profile, png_bytes, random_samples
from PIL import PngImagePlugin

from sat_sr.image_io import read_picture, read_settings, write_picture


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
