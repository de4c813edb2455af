"""What Pillow leaves to be done for JPEG 2000: samples that do not have 8 bits, the palette, the meaning of channels.

Pillow brings samples to 8 bits by shifts, those of one channel above 8 bits to 16. Of more channels above 8 bits it
adds the half that rounds and cuts what flows over: white becomes black, and nothing tells afterwards.
"""

from __future__ import annotations

import io
import struct
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from sat_sr.image_io.blocks import boxes, part
from sat_sr.image_io.color import cmyk_to_srgb
from sat_sr.image_io.depth import rescale
from sat_sr.image_io.picture import BESIDE, PALETTE, PictureError

_CMYK, _SRGB, _GREY, _SYCC = 12, 16, 17, 18  # EnumCS: T.800 table I.10, T.801 table M.25
_OTHER_SPACES = {0: "bi-level", 14: "CIELab", 15: "bi-level", 19: "CIEJab", 20: "e-sRGB", 21: "ROMM-RGB", 24: "e-sYCC"}
_COLOR, _ALPHA, _PREMULTIPLIED = 0, 1, 2  # Typ of a channel (T.800 I.5.3.6)
_CODESTREAM = b"\xff\x4f\xff\x51"


class _Description(NamedTuple):
    """bits of each component; EnumCS or None; contents of `pclr`, `cmap` and `cdef`, empty where there is none."""

    bits: tuple[int, ...]
    space: int | None
    palette: bytes
    mapping: bytes
    channels: bytes


def decode_jpeg_2000(
    file: BinaryIO, image: Image.Image, name: str, notes: list[str]
) -> tuple[np.ndarray, str, bool]:  # fmt: skip
    """Samples (H, W, C) uint8 or uint16 of a picture that Pillow opened, their mode_kind, and whether the colours are
    premultiplied.

    Raises PictureError for what cannot be had exactly: more than 8 bits where it is not grey alone, colour spaces
    other than sRGB, grey, sYCC and CMYK, palettes above 8 bits.
    """
    stored = _description(file)
    levels = 16 if image.mode.startswith("I;16") else 8
    if max(stored.bits) > levels:
        raise PictureError(
            f"{name} is JPEG 2000 with {len(stored.bits)} channel(s) of {max(stored.bits)} bits, of which white could "
            "come out black here: convert it to 16-bit PNG or TIFF"
        )
    if stored.space not in (None, _CMYK, _SRGB, _GREY, _SYCC):
        space = _OTHER_SPACES.get(stored.space, f"number {stored.space}")
        raise PictureError(f"{name} is JPEG 2000 in the colour space {space}, which is not read: convert it to sRGB")
    if stored.space in (_CMYK, _SYCC) and set(stored.bits) != {8}:
        raise PictureError(f"{name} is CMYK or YCbCr in JPEG 2000 with other than 8 bits a sample: convert it to sRGB")
    if image.mode == "CMYK":
        return np.asarray(cmyk_to_srgb(image, image.info.get("icc_profile"), notes)), "cmyk", False

    samples = np.atleast_3d(np.asarray(image))
    if samples.shape[2] != len(stored.bits):
        raise ValueError(f"{samples.shape[2]} channels in the header, {len(stored.bits)} in the codestream")
    whole = set(stored.bits) == {levels}
    if not whole:  # back to what is stored
        samples = samples >> (levels - np.array(stored.bits)).astype(samples.dtype)
    if stored.palette:
        notes.append(PALETTE)
        table = _table(stored, image, name)
        samples = table[samples[..., 0].clip(max=len(table) - 1)]
    elif not whole:
        samples = rescale(samples, 2 ** np.array(stored.bits) - 1, 2**levels - 1)
    kind = "palette" if stored.palette else "grey" if samples.shape[2] <= 2 else "rgb"
    samples, premultiplied = _in_order(samples, stored.channels, name, notes)
    return samples, kind, premultiplied


def _description(file: BinaryIO) -> _Description:
    end = file.seek(0, io.SEEK_END)
    found = {b"jp2c": 0}
    if part(file, 0, 4, end) != _CODESTREAM:
        for box in boxes(file, 0, end):
            if box.kind == b"jp2c":
                found[b"jp2c"] = box.start
                break
            if box.kind == b"jp2h":
                contents = {inner.kind: part(file, *inner[1:], end) for inner in reversed([*boxes(file, *box[1:])])}
                found = contents | found  # of several boxes of a kind the first one counts
    start = found[b"jp2c"]
    head = part(file, start, start + 42, end)
    if len(head) < 42 or not head.startswith(_CODESTREAM):
        raise ValueError("no JPEG 2000 codestream")
    (count,) = struct.unpack_from(">H", head, 40)
    components = part(file, start + 42, start + 42 + 3 * count, end)  # Ssiz, XRsiz, YRsiz (T.800 A.5.1)
    if not components:
        raise ValueError("no components in the JPEG 2000 codestream")
    color = found.get(b"colr", b"")
    return _Description(
        bits=tuple((depth & 0x7F) + 1 for depth in components[::3]),
        space=struct.unpack_from(">I", color, 3)[0] if color[:1] == b"\1" else None,
        palette=found.get(b"pclr", b""), mapping=found.get(b"cmap", b""), channels=found.get(b"cdef", b""),
    )  # fmt: skip


def _table(stored: _Description, image: Image.Image, name: str) -> np.ndarray:
    """The colours of a palette, (entries, columns) uint8. Pillow's own has every colour once: the others move up."""
    entries, columns = struct.unpack_from(">HB", stored.palette)
    depths, data = stored.palette[3 : 3 + columns], stored.palette[3 + columns :]
    straight = b"".join(struct.pack(">HBB", 0, 1, column) for column in range(columns))
    if image.mode != "P" or columns not in (1, 2, 3, 4) or set(depths) != {7} or stored.mapping != straight:
        raise PictureError(
            f"{name} is JPEG 2000 with a palette that is not read ({columns} columns, over {image.mode}): "
            "save it as PNG"
        )
    return np.frombuffer(data, np.uint8, entries * columns).reshape(entries, columns)


def _in_order(samples: np.ndarray, definition: bytes, name: str, notes: list[str]) -> tuple[np.ndarray, bool]:
    """Colours, then transparency if there is one, as the contents of `cdef` tell; whether it is premultiplied."""
    count = samples.shape[2]
    colors = 3 if count >= 3 else 1
    if not definition:
        return samples, False
    (described,) = struct.unpack_from(">H", definition)
    roles = {}  # (type, association) -> channel
    for index in range(described):
        channel, kind, association = struct.unpack_from(">HHH", definition, 2 + 6 * index)
        roles.setdefault((kind, association), channel)
    order = [roles.get((_COLOR, color), count) for color in range(1, colors + 1)]
    alphas = [kind for kind in (_ALPHA, _PREMULTIPLIED) if (kind, 0) in roles]
    order += [roles[kind, 0] for kind in alphas[:1]]
    if max(order) >= count:
        raise PictureError(
            f"{name} is JPEG 2000 whose channels are not described as {'RGB' if colors == 3 else 'grey'}: "
            "save it as PNG"
        )
    if beside := count - len(order):
        notes.append(BESIDE.format(beside))
    return samples[..., order], alphas[:1] == [_PREMULTIPLIED]
