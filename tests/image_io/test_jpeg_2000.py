"""JPEG 2000: depths, palettes and the meaning of channels, in files built by the letter of T.800."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from picture_files import samples
from PIL import Image

from sat_sr.image_io import PictureError, read_picture

SRGB, GREY = 16, 17
RGB_ROLES = [(0, 0, 1), (1, 0, 2), (2, 0, 3)]  # of `cdef`: channel, type, association


def box(kind: bytes, contents: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(contents), kind) + contents


def codestream(array: np.ndarray, bits: int = 8) -> bytes:
    """Lossless, of 8-bit samples (H, W, C) below 2**bits, declared (Ssiz) as `bits`.

    Unsigned samples are coded as differences from half of their range, which is where the two have to meet.
    """
    shifted = (array.squeeze().astype(int) + 128 - 2 ** (bits - 1)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(shifted).save(file, format="JPEG2000", no_jp2=True, mct=0)
    data = bytearray(file.getvalue())
    for component in range(array.shape[2]):
        data[data.index(b"\xff\x51") + 40 + 3 * component] = bits - 1
    return bytes(data)


def jp2(array: np.ndarray, space: int = SRGB, roles: list | None = None, before: bytes = b"", bits: int = 8) -> bytes:
    height, width, channels = array.shape
    header = box(b"ihdr", struct.pack(">IIHBBBB", height, width, channels, bits - 1, 7, 0, 0)) + before
    header += box(b"colr", b"\1\0\0" + struct.pack(">I", space))
    if roles:
        header += box(b"cdef", struct.pack(">H", len(roles)) + b"".join(struct.pack(">3H", *role) for role in roles))
    start = box(b"jP  ", b"\r\n\x87\n") + box(b"ftyp", b"jp2 \0\0\0\0jp2 ")
    return start + box(b"jp2h", header) + box(b"jp2c", codestream(array, bits))


def flat(*color: int) -> np.ndarray:
    return np.full((8, 8, len(color)), color, np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("bits", [1, 2, 4, 7])
def test_samples_below_8_bits_span_the_full_range(tmp_path, bits, channels):
    top = 2**bits - 1
    levels = np.arange(16 * 16).reshape(16, 16, 1).repeat(channels, axis=2) % (top + 1)
    levels[..., -1] = levels[::-1, :, -1]
    (tmp_path / "in.j2k").write_bytes(codestream(levels, bits))
    picture = read_picture(tmp_path / "in.j2k")
    np.testing.assert_array_equal(
        samples(picture.rgb, 8), np.broadcast_to(np.floor(levels * 255 / top + 0.5), (16, 16, 3))
    )
    assert picture.bit_depth == 8


@pytest.mark.parametrize("bits", [9, 10, 12, 15, 16])
@pytest.mark.parametrize("channels", [2, 3, 4])
def test_more_than_one_channel_above_8_bits_is_refused_with_a_way_out(tmp_path, channels, bits):
    data = bytearray(jp2(flat(*[255] * channels), SRGB if channels > 2 else GREY))
    sizes = data.index(b"\xff\x51")
    data[sizes + 40 : sizes + 40 + 3 * channels : 3] = bytes([bits - 1] * channels)
    (tmp_path / "in.jp2").write_bytes(data)
    with pytest.raises(PictureError, match=f"{channels} channel.*{bits} bits.*convert it to 16-bit PNG or TIFF"):
        read_picture(tmp_path / "in.jp2")


def test_channels_are_what_the_file_says_that_they_are(tmp_path):
    def read(array, roles):
        (tmp_path / "in.jp2").write_bytes(jp2(array, roles=roles))
        picture = read_picture(tmp_path / "in.jp2")
        color = samples(picture.rgb, 8)[4, 4].tolist()
        return color, None if picture.alpha is None else round(picture.alpha[0, 4, 4].item() * 255), picture.notes

    assert read(flat(200, 100, 50), None) == ([200, 100, 50], None, [])
    assert read(flat(200, 100, 50), [(0, 0, 3), (1, 0, 2), (2, 0, 1)]) == ([50, 100, 200], None, [])
    assert read(flat(90, 200, 100, 50), [(0, 1, 0), (1, 0, 1), (2, 0, 2), (3, 0, 3)]) == ([200, 100, 50], 90, [])
    color, alpha, notes = read(flat(100, 50, 25, 127), [*RGB_ROLES, (3, 2, 0)])
    assert (color, alpha) == ([201, 100, 50], 127) and "premultiplied" in notes[0]  # 100 * 255 / 127 = 200.8
    color, alpha, notes = read(flat(100, 50, 25, 127), [*RGB_ROLES, (3, 65535, 65535)])
    assert (color, alpha, notes) == ([100, 50, 25], None, ["1 channel(s) beside colour and transparency: left out"])
    with pytest.raises(PictureError, match="not described as RGB"):
        read(flat(200, 100, 50), [(0, 0, 1), (1, 0, 2)])


@pytest.mark.parametrize(("space", "word"), [(14, "CIELab"), (20, "e-sRGB"), (99, "number 99")])
def test_colour_spaces_that_are_not_read_are_named(tmp_path, space, word):
    (tmp_path / "in.jp2").write_bytes(jp2(flat(200, 100, 50), space))
    with pytest.raises(PictureError, match=f"{word}.*convert it to sRGB"):
        read_picture(tmp_path / "in.jp2")


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("columns", [3, 4])
def test_a_palette_keeps_its_transparency_and_colours_that_it_has_twice(tmp_path, columns, bits):
    table = np.array([[10, 20, 30, 255], [10, 20, 30, 255], [40, 50, 60, 128], [70, 80, 90, 1]], np.uint8)
    index = (np.arange(64) // 16).reshape(8, 8, 1)
    colors = box(b"pclr", struct.pack(">HB", 4, columns) + b"\7" * columns + table[:, :columns].tobytes())
    mapping = box(b"cmap", b"".join(struct.pack(">HBB", 0, 1, column) for column in range(columns)))
    (tmp_path / "in.jp2").write_bytes(jp2(index, before=colors + mapping, bits=bits))
    picture = read_picture(tmp_path / "in.jp2")
    np.testing.assert_array_equal(samples(picture.rgb, 8), table[index[..., 0], :3])
    assert picture.mode_kind == "palette" and len(picture.notes) == 1
    if columns == 4:
        np.testing.assert_allclose(picture.alpha[0].numpy() * 255, table[index[..., 0], 3], atol=1e-4)
    else:
        assert picture.alpha is None
