"""What travels beside the pixels: EXIF, XMP, resolution, the settings that made a picture.

Everything here comes from untrusted files: what does not parse is left out and noted, never an error.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping
from typing import Any

from PIL import ExifTags, Image

from sat_sr.inference.picture import PictureError

SETTINGS_KEY = "sat-sr"  # keyword of the PNG text chunk; outer key of the JSON in an EXIF UserComment

Base, IFD = ExifTags.Base, ExifTags.IFD
# What Pillow's EXIF parser and writer raise on damaged or oddly typed entries.
PARSE_ERRORS = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, OverflowError, AttributeError,
                ZeroDivisionError, struct.error)  # fmt: skip
# The tags of a TIFF's first directory that describe the picture and not the layout of its file.
DESCRIPTIVE_TAGS = (
    Base.ImageDescription, Base.Make, Base.Model, Base.Software, Base.DateTime, Base.Artist, Base.HostComputer,
    Base.Copyright, IFD.Exif, IFD.GPSInfo,
)  # fmt: skip
_ORIENTATION_IN_XMP = re.compile(rb"""(tiff:Orientation(?:\s*=\s*["']|>)\s*)[0-9](?=\s*["'<])""")


def parse_exif(exif: Image.Exif, notes: list[str], *, is_tiff: bool = False) -> tuple[bytes | None, int]:
    """Orientation (1 to 8) and EXIF as bytes with the orientation set to 1; (None, 1) where there is none or it does
    not parse. The thumbnail (of the small picture) is left out. `is_tiff`: `exif` is a TIFF's own first directory."""
    try:
        if not len(exif):
            return None, 1
        orientation = exif.get(Base.Orientation, 1)
        if is_tiff:
            carried = Image.Exif()
            for tag in DESCRIPTIVE_TAGS:
                if tag in exif:
                    carried[tag] = directory_of(exif, tag)
            exif = carried
        elif Base.Orientation in exif:
            exif[Base.Orientation] = 1
        exif_bytes = exif.tobytes() if len(exif) else None
    except PARSE_ERRORS as error:
        notes.append(f"EXIF data does not parse ({error}): left out")
        return None, 1
    if orientation not in range(1, 9):
        notes.append(f"EXIF orientation {orientation!r} has no meaning: the picture is taken as upright")
        orientation = 1
    return exif_bytes, orientation


def is_damaged_exif(raw: bytes, exif: Image.Exif) -> bool:
    """Whether `exif`, which Pillow made of `raw`, is empty because raw does not parse: Pillow says nothing then."""
    tiff = raw.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return True
    try:
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, start)
    except struct.error:
        return True
    return entries > 0 and not len(exif)


def upright_xmp(xmp: Any) -> bytes | None:
    """XMP packet with its own orientation entry, if any, set to 1."""
    if isinstance(xmp, str):
        xmp = xmp.encode("utf-8", "surrogateescape")
    if not isinstance(xmp, bytes) or not xmp.strip(b"\0 \r\n"):
        return None
    return _ORIENTATION_IN_XMP.sub(rb"\g<1>1", xmp)


def valid_dpi(dpi: Any) -> tuple[float, float] | None:
    """(x, y) as floats if both are usable resolutions, else None (files hold 0, 1 and 0/0 for "unknown")."""
    try:
        x, y = (float(value) for value in dpi)
    except PARSE_ERRORS:
        return None
    return (x, y) if all(math.isfinite(value) and 1 < value < 1e6 for value in (x, y)) else None


def exif_for_output(
    exif_bytes: bytes | None, size: tuple[int, int], dpi: tuple[float, float] | None, settings: Mapping | None,
    notes: list[str],
) -> Image.Exif:  # fmt: skip
    """EXIF for the enlarged picture: pixel dimensions and resolution brought up to date, the settings as UserComment.

    Empty if there is nothing to carry. A user's own comment gives way to the settings, which is noted.
    """
    exif = Image.Exif()
    if exif_bytes:
        exif.load(exif_bytes)
    details = directory_of(exif, IFD.Exif) if IFD.Exif in exif else {}
    for width_tag, height_tag, directory in (
        (Base.ImageWidth, Base.ImageLength, exif),
        (Base.ExifImageWidth, Base.ExifImageHeight, details),
    ):
        if width_tag in directory or height_tag in directory:
            directory[width_tag], directory[height_tag] = size
    if dpi and (Base.XResolution in exif or Base.YResolution in exif):
        exif[Base.XResolution], exif[Base.YResolution] = dpi
        exif[Base.ResolutionUnit] = 2  # inch

    comment = details.get(Base.UserComment, b"")
    if _settings_of_comment(comment) is not None:  # of an earlier run: it did not make this picture
        del details[Base.UserComment]
        comment = b""
    if settings is not None:
        if isinstance(comment, bytes) and comment[8:].strip(b"\0 "):
            notes.append("the picture's own EXIF comment is replaced by the settings")
        text = json.dumps({SETTINGS_KEY: dict(settings)})  # ASCII by json's own escapes
        details[Base.UserComment] = b"ASCII\0\0\0" + text.encode("ascii")
        details.setdefault(Base.ExifVersion, b"0232")
    if details:
        exif[IFD.Exif] = details
    elif IFD.Exif in exif:
        del exif[IFD.Exif]
    return exif


def _settings_of_comment(comment: Any) -> dict | None:
    """The settings in an EXIF UserComment, None if it is somebody else's."""
    if isinstance(comment, str):
        comment = comment.encode("utf-8", "replace")
    if not isinstance(comment, bytes) or not comment.startswith(b"ASCII\0\0\0"):
        return None
    try:
        value = json.loads(comment[8:].rstrip(b"\0"))
    except (ValueError, RecursionError):
        return None
    settings = value.get(SETTINGS_KEY) if isinstance(value, dict) else None
    return settings if isinstance(settings, dict) else None


def settings_of(text: Any, exif: Image.Exif, name: str) -> dict | None:
    """The settings that an output of this project carries, from its PNG text or its EXIF; None if it carries none.

    PictureError if it carries some that do not parse. They are data from a file: check them before use.
    """
    if text is None:
        try:
            return _settings_of_comment(exif.get_ifd(IFD.Exif).get(Base.UserComment))
        except PARSE_ERRORS:
            return None  # EXIF that does not parse cannot be ours
    try:
        settings = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise PictureError(f"{name}: the settings stored in it are damaged: give them as flags instead")
    return settings


def directory_of(exif: Image.Exif, tag: int) -> Any:
    """A tag's value; for EXIF and GPS the directory itself, with the one below it, and not its place in the file."""
    value = exif[tag]
    if tag in (IFD.Exif, IFD.GPSInfo) and not isinstance(value, dict):
        value = dict(exif.get_ifd(tag))
        if IFD.Interop in value:
            value[IFD.Interop] = exif.get_ifd(IFD.Interop)
    return value
