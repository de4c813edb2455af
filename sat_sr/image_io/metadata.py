"""What travels with the pixels: EXIF, XMP, resolution, comments, the settings that made a picture.

Everything here comes from untrusted files: what does not parse is left out and noted, never an error.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping
from typing import Any

from PIL import ExifTags, Image, TiffTags

from sat_sr.image_io.decoding_errors import EXIF_ERRORS
from sat_sr.image_io.picture import PictureError

SETTINGS_KEY = "sat-sr"  # keyword of the PNG text chunk; outer key of the JSON in an EXIF UserComment

Base, IFD = ExifTags.Base, ExifTags.IFD
# The tags of a TIFF's first directory that describe the picture and not the layout of its file.
DESCRIPTIVE_TAGS = (
    Base.DocumentName, Base.ImageDescription, Base.Make, Base.Model, Base.PageName, Base.Software, Base.DateTime,
    Base.Artist, Base.HostComputer, Base.Rating, Base.RatingPercent, Base.Copyright, IFD.Exif, IFD.GPSInfo,
    Base.XPTitle, Base.XPComment, Base.XPAuthor, Base.XPKeywords, Base.XPSubject,
)  # fmt: skip
_ASCII, _UTF8 = 2, 129  # types of an entry, EXIF 3.0, section 4.6.2
_RAW_PROFILE = "Raw profile type "  # keyword of PNG texts with hexadecimal data, as ImageMagick writes them
_FIRST_PRIVATE_TAG = 32768  # TIFF 6.0, section 8; those below that are not descriptive are the layout of the file
# Below that, and not of the layout: what the samples mean where there is no ICC profile.
_COLORIMETRY_TAGS = {Base.TransferFunction, Base.WhitePoint, Base.PrimaryChromaticities}
_GEOTIFF_TAGS = {33550, 33920, 33922, 34264, 34735, 34736, 34737}
_ORIENTATION_IN_XMP = re.compile(rb"""(tiff:Orientation(?:\s*=\s*["']|>)\s*)[0-9](?=\s*["'<])""")

# The pointer from a JPEG's XMP to the part that did not fit into its segment (XMP specification part 3, 1.1.3.1).
_EXTENDED_XMP = re.compile(
    rb"""\sxmpNote:HasExtendedXMP\s*=\s*(?:"[^"<]*"|'[^'<]*')|<(xmpNote:HasExtendedXMP)>[^<]*</\1>"""
)


class _StoredText(str):
    """Text of an EXIF entry that is written byte for byte as it was read: files hold UTF-8 or Latin-1 there, Pillow
    reads either as Latin-1, which loses nothing, but would write ASCII, with "?" for all else."""

    def encode(self, *_: str) -> bytes:
        return super().encode("latin-1")


def parse_exif(exif: Image.Exif, notes: list[str], *, is_tiff: bool = False) -> tuple[bytes | None, int]:
    """Orientation (1 to 8) and EXIF as bytes with the orientation set to 1; (None, 1) where there is none or it does
    not parse. The thumbnail (of the small picture) is left out. `is_tiff`: `exif` is a TIFF's own first directory."""
    try:
        if not len(exif):
            return None, 1
        orientation = exif.get(Base.Orientation, 1)
        if is_tiff:
            note_left_out_tags(exif, notes)
            carried = Image.Exif()
            carried.endian = exif.endian  # of the text in Unicode comments
            for tag in DESCRIPTIVE_TAGS:
                if tag in exif:
                    carried[tag] = stored_value(exif, tag)
            exif = carried
        elif Base.Orientation in exif:
            exif[Base.Orientation] = 1
        exif_bytes = exif_to_bytes(exif) or None
    except EXIF_ERRORS as error:
        notes.append(f"EXIF data does not parse ({error}): left out")
        return None, 1
    if orientation not in range(1, 9):
        notes.append(f"EXIF orientation {orientation!r} has no meaning: the picture is taken as upright")
        orientation = 1
    return exif_bytes, orientation


def note_left_out_tags(exif: Image.Exif, notes: list[str]) -> None:
    """Names in `notes` what is not carried of a TIFF's first directory, or into one from a picture's EXIF."""
    named = {tag for tag in exif if tag >= _FIRST_PRIVATE_TAG or tag in _COLORIMETRY_TAGS}
    left_out = named - {*DESCRIPTIVE_TAGS, Base.InterColorProfile}
    if places := left_out & _GEOTIFF_TAGS:
        notes.append(f"georeferencing does not fit the enlarged picture ({_names_of(places)}): left out")
    if others := left_out - _GEOTIFF_TAGS:
        notes.append(f"TIFF tags {_names_of(others)}: left out")


def _names_of(tags: set[int]) -> str:
    names = {**ExifTags.TAGS, **TiffTags.TAGS, **{tag: info.name for tag, info in TiffTags.TAGS_V2.items()}}
    return ", ".join(names.get(tag, str(tag)) for tag in sorted(tags))


def utf8_as_ascii(raw: bytes) -> bytes:
    """EXIF whose texts of the type UTF-8, which is new in EXIF 3.0 and which Pillow drops, are of the type ASCII: the
    bytes are the same, and those of an ASCII text are carried whatever they are."""
    head = len(raw) - len(raw.removeprefix(b"Exif\0\0"))
    tiff = bytearray(raw[head:])
    order = {b"II": "<", b"MM": ">"}.get(bytes(tiff[:2]))
    if order is None:
        return raw
    try:
        starts = [*struct.unpack_from(f"{order}I", tiff, 4)]
        for start in starts:  # of directories; longer by those that are found below them
            (entries,) = struct.unpack_from(f"{order}H", tiff, start)
            for entry in range(start + 2, start + 2 + 12 * entries, 12):
                tag, kind, _, place = struct.unpack_from(f"{order}HHII", tiff, entry)
                if kind == _UTF8:
                    struct.pack_into(f"{order}H", tiff, entry + 2, _ASCII)
                elif tag in (IFD.Exif, IFD.GPSInfo) and place not in starts:
                    starts.append(place)
    except struct.error:
        pass  # damaged from here on: Pillow reads no further either
    return raw[:head] + bytes(tiff)


def raw_profiles(text: Mapping[str, str]) -> dict[str, bytes]:
    """Profiles that stand as hexadecimal text in a PNG, by their type, such as "iptc"; damaged ones are empty."""
    profiles = {}
    for keyword, value in text.items():
        if keyword.startswith(_RAW_PROFILE):
            try:  # an empty line, the type, the number of bytes, then these
                profiles[keyword.removeprefix(_RAW_PROFILE)] = bytes.fromhex("".join(value.split("\n")[3:]))
            except ValueError:
                profiles[keyword.removeprefix(_RAW_PROFILE)] = b""
    return profiles


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


def xmp_to_carry(xmp: Any) -> bytes | None:
    """XMP packet with its own orientation entry, if any, set to 1, and without a pointer to a JPEG's extended XMP."""
    if isinstance(xmp, str):
        xmp = xmp.encode("utf-8", "surrogateescape")
    if not isinstance(xmp, bytes) or not xmp.strip(b"\0 \r\n"):
        return None
    return _EXTENDED_XMP.sub(b"", _ORIENTATION_IN_XMP.sub(rb"\g<1>1", xmp))


def valid_dpi(dpi: Any) -> tuple[float, float] | None:
    """(x, y) as floats if both are usable resolutions, else None (files hold 0, 1 and 0/0 for "unknown")."""
    try:
        x, y = (float(value) for value in dpi)
    except EXIF_ERRORS:
        return None
    return (x, y) if all(math.isfinite(value) and 1 < value < 1e6 for value in (x, y)) else None


def resolution_of(exif: Image.Exif) -> tuple[float, float] | None:
    """(x, y) dots per inch as EXIF or a TIFF's directory has them, None if it has none that are usable."""
    try:
        per_inch = {2: 1.0, 3: 2.54}[exif.get(Base.ResolutionUnit, 2)]  # inch, cm; 1 is no unit
        return valid_dpi([float(exif[tag]) * per_inch for tag in (Base.XResolution, Base.YResolution)])
    except EXIF_ERRORS:
        return None


def comment_text(comment: bytes) -> str:
    """A JPEG's or GIF's comment, of which the file does not say the encoding: UTF-8, or else Latin-1."""
    comment = comment.replace(b"\0", b"")
    try:
        return comment.decode("utf-8")
    except UnicodeDecodeError:
        return comment.decode("latin-1")


def exif_for_output(
    exif_bytes: bytes | None, size: tuple[int, int], dpi: tuple[float, float] | None, settings: Mapping | None,
    notes: list[str], *, add_resolution: bool = False,
) -> Image.Exif:  # fmt: skip
    """EXIF for the enlarged picture: pixel dimensions and resolution brought up to date, the settings as UserComment.

    `add_resolution`: the file has no other place for dpi, so it is put here even where there was none.
    Empty if there is nothing to carry. A user's own comment is replaced by the settings, which is noted.
    """
    exif = Image.Exif()
    if exif_bytes:
        exif.load(exif_bytes)
    details = stored_value(exif, IFD.Exif) if IFD.Exif in exif else {}
    for width_tag, height_tag, directory in (
        (Base.ImageWidth, Base.ImageLength, exif),
        (Base.ExifImageWidth, Base.ExifImageHeight, details),
    ):
        if width_tag in directory or height_tag in directory:
            directory[width_tag], directory[height_tag] = size
    if dpi and (add_resolution or Base.XResolution in exif or Base.YResolution in exif):
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
        except EXIF_ERRORS:
            return None  # EXIF that does not parse cannot be ours
    try:
        settings = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise PictureError(f"{name}: the settings stored in it are damaged: give them as flags instead")
    return settings


def exif_to_bytes(exif: Image.Exif) -> bytes:
    """`exif` as files hold it, texts byte for byte as they were read; empty if it has no entries."""
    if not len(exif):
        return b""
    stored = Image.Exif()
    stored.endian = exif.endian
    for tag in exif:
        stored[tag] = stored_value(exif, tag)
    return stored.tobytes()


def stored_value(exif: Image.Exif, tag: int) -> Any:
    """A tag's value to be written again; for EXIF and GPS the directory itself, with the one below it, and not its
    place in the file."""
    value = exif[tag]
    if tag in (IFD.Exif, IFD.GPSInfo) and not isinstance(value, dict):
        value = dict(exif.get_ifd(tag))
        if IFD.Interop in value:
            value[IFD.Interop] = exif.get_ifd(IFD.Interop)
    return _with_stored_texts(value)


def _with_stored_texts(value: Any) -> Any:
    if isinstance(value, dict):
        return {tag: _with_stored_texts(entry) for tag, entry in value.items()}
    return _StoredText(value) if isinstance(value, str) else value
