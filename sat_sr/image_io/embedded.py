"""What Pillow passes over in a file: the profile, XMP and EXIF of JPEG 2000, the profile of a BMP.

Everything here comes from untrusted files: what reaches beyond the file, or makes no sense, is not there.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import BinaryIO

# Identifiers of `uuid` boxes: Adobe's XMP specification, part 3, and ExifTool's way to store EXIF.
_XMP = bytes.fromhex("BE7ACFCB97A942E89C71999491E3AFAC")
_EXIF = b"JpgTiffExif->JP2"
_ICC_METHODS = (2, 3)  # of a `colr` box: a profile of a restricted kind (T.800 I.5.3.3), or of any (T.801 M.11.7.3.2)
_JP2_START = b"\0\0\0\x0cjP  \r\n\x87\n"


def overlooked(file: BinaryIO, format: str | None) -> dict[str, bytes]:
    """What the file holds, under Pillow's names: "icc_profile", "xmp", "exif".  `format`: Pillow's name too."""
    read = {"JPEG2000": _of_jpeg_2000, "BMP": _of_bmp}.get(format or "")
    return read(file, file.seek(0, io.SEEK_END)) if read else {}


def _of_jpeg_2000(file: BinaryIO, end: int) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    if _part(file, 0, 12, end) != _JP2_START:  # a codestream without boxes
        return found
    for kind, start, stop in _boxes(file, 0, end):
        if kind == b"jp2h" and "icc_profile" not in found:
            # Of several descriptions of the colours the first one counts (T.800 I.5.3.3).
            places = [place for box, *place in _boxes(file, start, stop) if box == b"colr"]
            description = _part(file, *places[0], end) if places else b""
            if description and description[0] in _ICC_METHODS:
                found["icc_profile"] = description[3:]
        elif kind == b"uuid":
            name = {_XMP: "xmp", _EXIF: "exif"}.get(_part(file, start, start + 16, stop))
            if name and name not in found:
                found[name] = _part(file, start + 16, stop, end)
    return found


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """The boxes between two places in the file (T.800 I.4): type, and where the contents start and end."""
    while end - start >= 8:
        length, kind = struct.unpack(">I4s", _part(file, start, start + 8, end))
        head = 8
        if length == 1 and end - start >= 16:
            head, length = 16, *struct.unpack(">Q", _part(file, start + 8, start + 16, end))
        elif length == 0:  # to the end of the file
            length = end - start
        if not head <= length <= end - start:
            return
        yield kind, start + head, start + length
        start += length


def _of_bmp(file: BinaryIO, end: int) -> dict[str, bytes]:
    """The embedded profile of a BITMAPV5HEADER, which is 124 bytes long and begins at byte 14."""
    header = _part(file, 14, 14 + 124, end)
    if len(header) < 124 or header[:4] != struct.pack("<I", 124) or header[56:60] != b"DEBM":  # 'MBED', little-endian
        return {}
    offset, length = struct.unpack_from("<II", header, 112)
    profile = _part(file, 14 + offset, 14 + offset + length, end)
    return {"icc_profile": profile} if profile else {}


def _part(file: BinaryIO, start: int, stop: int, end: int) -> bytes:
    """The bytes from start to stop; none, if they reach beyond `end`."""
    if stop > end:
        return b""
    file.seek(start)
    return file.read(stop - start)
