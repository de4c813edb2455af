"""What Pillow passes over in a file: profile, XMP and EXIF of JPEG 2000, profile and XMP of GIF, the profile of a BMP;
and the names of what is carried by nobody.

Everything here comes from untrusted files: what reaches beyond the file, or makes no sense, is not there.
"""

from __future__ import annotations

import io
import struct
from typing import BinaryIO

from PIL import Image

from sat_sr.image_io.blocks import blocks, boxes, gif_extensions, part

# Identifiers of `uuid` boxes: Adobe's XMP specification, part 3, and ExifTool's way to store EXIF.
_XMP = bytes.fromhex("BE7ACFCB97A942E89C71999491E3AFAC")
_EXIF = b"JpgTiffExif->JP2"
_ICC_METHODS = (2, 3)  # of a `colr` box: a profile of a restricted kind (T.800 I.5.3.3), or of any (T.801 M.11.7.3.2)
_UUID_NAMES = {
    "b14bf8bd083d4b43a5ae8cd7d5a6ce03": "GeoJP2", "33c7a4d2b81d4723a0baf1a3e097ad38": "IPTC",
    "2c4c0100850440b9a03e562148d6dfeb": "Photoshop",
}  # fmt: skip
_GIF_XMP, _GIF_PROFILE = b"XMP DataXMP", b"ICCRGBG1012"  # names of applications
_GIF_XMP_TRAILER = 258  # bytes, which lead those who take the packet for sub-blocks to its end (XMP part 3, 1.1.2)

# Blocks that are the pixels, how they are to be shown or encoded, or, where `image.info` has them, are carried.
_PIXELS = {
    # sBIT to sPLT: of the encoding and its palette. iDOT: where Apple's decoder finds the halves of the pixels, in each
    # of its screenshots. tIME: when the pixels were changed last, which is now.
    "PNG": b"IHDR PLTE IDAT tRNS cHRM gAMA sRGB cICP mDCV cLLI pHYs tEXt zTXt iTXt acTL fcTL fdAT "
    b"sBIT bKGD hIST sPLT iDOT tIME",
    "WEBP": b"VP8X VP8  VP8L ALPH ANIM ANMF",
    "GIF": b"\xf9 \xfe NETSCAPE2.0 ANIMEXTS1.0",
    "JPEG2000": b"jP ftyp jp2h jp2c rreq free",
    "AVIF": b"ftyp meta mdat moov free skip",
}  # fmt: skip
_CARRIED = {
    "PNG": {b"iCCP": "icc_profile", b"eXIf": "exif"},
    "WEBP": {b"ICCP": "icc_profile", b"EXIF": "exif", b"XMP ": "xmp"},
    "GIF": {_GIF_XMP: "xmp", _GIF_PROFILE: "icc_profile"},
}
_NAMES = {
    "PNG": "PNG chunks", "WEBP": "WebP chunks", "GIF": "GIF extensions", "JPEG2000": "JPEG 2000 boxes",
    "AVIF": "AVIF boxes",
}  # fmt: skip
_NAMED_AT_MOST = 10
# Starts of JPEG segments that are carried or noted elsewhere, or of the encoding: Photoshop's, and the JFIF thumbnail.
_JPEG_SEGMENTS = {
    "APP0": (b"JFIF\0", b"JFXX\0"), "APP1": (b"Exif\0", b"http://ns.adobe.com/"), "APP2": (b"ICC_PROFILE\0", b"MPF\0"),
    "APP12": (b"Ducky",), "APP13": (b"Photoshop 3.0\0", b"Adobe_CM"), "APP14": (b"Adobe",), "COM": (b"",),
}  # fmt: skip
_JP2_START = b"\0\0\0\x0cjP  \r\n\x87\n"


def overlooked(file: BinaryIO, format: str | None) -> dict[str, bytes]:
    """What the file holds, under Pillow's names: "icc_profile", "xmp", "exif".  `format`: Pillow's name too."""
    read = {"JPEG2000": _of_jpeg_2000, "GIF": _of_gif, "BMP": _of_bmp}.get(format or "")
    return read(file, file.seek(0, io.SEEK_END)) if read else {}


def not_carried(file: BinaryIO, image: Image.Image) -> str | None:
    """A sentence that names the blocks that neither `image.info` has nor the pixels are made of."""
    format = "JPEG" if image.format == "MPO" else image.format
    if format == "JPEG":
        kind = "JPEG segments"
        names = [
            f"{marker} {_printable(data)}".strip()
            for marker, data in image.applist
            if not data.startswith(_JPEG_SEGMENTS.get(marker, ()))
        ]
    else:
        kind, carried = _NAMES.get(format), _CARRIED.get(format, {})
        known = {*_PIXELS.get(format, b"").split(), *(name for name, key in carried.items() if key in image.info)}
        names = [_name(file, *block) for block in blocks(file, format) if not {block.kind, block.kind.strip()} & known]
    names = [name for name in dict.fromkeys(names) if name]
    if more := names[_NAMED_AT_MOST:]:
        names[_NAMED_AT_MOST:] = [f"{len(more)} more"]
    return f"{kind} {', '.join(names)}: left out" if names else None


def _name(file: BinaryIO, kind: bytes, start: int, stop: int) -> str | None:
    """What a message calls a block; None for one that is carried."""
    if kind == b"uuid":
        identifier = part(file, start, start + 16, stop)
        name = identifier.hex()
        return None if identifier in (_XMP, _EXIF) else f"uuid {_UUID_NAMES.get(name, name)}"
    return "caption" if kind == b"\x01" else _printable(kind)  # GIF's plain text


def _printable(data: bytes) -> str:
    """The identifier that data begins with, as ASCII."""
    text = data[:32].partition(b"\0")[0].decode("latin-1").strip()
    return text if text.isascii() and text.isprintable() else text.encode("unicode_escape").decode()


def _of_gif(file: BinaryIO, end: int) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for name, start, stop in gif_extensions(file, end):
        if name == _GIF_XMP:
            found.setdefault("xmp", part(file, start, max(stop - _GIF_XMP_TRAILER, start), end))
        elif name == _GIF_PROFILE:
            data, profile = io.BytesIO(part(file, start, stop, end)), []
            while length := data.read(1)[0]:
                profile.append(data.read(length))
            found.setdefault("icc_profile", b"".join(profile))
    return found


def _of_jpeg_2000(file: BinaryIO, end: int) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    if part(file, 0, 12, end) != _JP2_START:  # a codestream without boxes
        return found
    for kind, start, stop in boxes(file, 0, end):
        if kind == b"jp2h" and "icc_profile" not in found:
            # Of several descriptions of the colours the first one counts (T.800 I.5.3.3).
            places = [place for box, *place in boxes(file, start, stop) if box == b"colr"]
            description = part(file, *places[0], end) if places else b""
            if description and description[0] in _ICC_METHODS:
                found["icc_profile"] = description[3:]
        elif kind == b"uuid":
            name = {_XMP: "xmp", _EXIF: "exif"}.get(part(file, start, start + 16, stop))
            if name and name not in found:
                found[name] = part(file, start + 16, stop, end)
    return found


def _of_bmp(file: BinaryIO, end: int) -> dict[str, bytes]:
    """The embedded profile of a BITMAPV5HEADER, which is 124 bytes long and begins at byte 14."""
    header = part(file, 14, 14 + 124, end)
    if len(header) < 124 or header[:4] != struct.pack("<I", 124) or header[56:60] != b"DEBM":  # 'MBED', little-endian
        return {}
    offset, length = struct.unpack_from("<II", header, 112)
    profile = part(file, 14 + offset, 14 + offset + length, end)
    return {"icc_profile": profile} if profile else {}
