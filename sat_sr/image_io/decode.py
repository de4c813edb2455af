"""Picture file -> samples as stored, at full depth.

Pillow decodes everything, but hands out 16-bit colour cut to 8 bits: those are put together in png.py, ppm.py and
own_tiff.py. What it makes of JPEG 2000 is put right in jpeg_2000.py.
"""

from __future__ import annotations

import contextlib
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin

from sat_sr.image_io.color import cmyk_to_srgb, lab_to_srgb
from sat_sr.image_io.decoding_errors import DECODING_ERRORS
from sat_sr.image_io.embedded import not_carried, overlooked
from sat_sr.image_io.jpeg_2000 import decode_jpeg_2000
from sat_sr.image_io.metadata import (
    SETTINGS_KEY,
    is_damaged_exif,
    parse_exif,
    resolution_of,
    settings_of,
    utf8_as_ascii,
)
from sat_sr.image_io.own_tiff import decode_own_tiff, is_own
from sat_sr.image_io.picture import BESIDE, FIRST_ONLY, PALETTE, READ_FORMATS, Decoded, PictureError, check_size
from sat_sr.image_io.png import correct_transparent_level, decode_deep_png, png_color_chunks, png_without_pixels
from sat_sr.image_io.ppm import decode_deep_ppm, ppm_bits, to_16_bits
from sat_sr.image_io.tiff_directory import check_kind, check_tile, exif_of, note_pages, read_directory, segments_of

_EXTENDED_XMP = b"http://ns.adobe.com/xmp/extension/\0"  # start of a JPEG's APP1 segments with it


class Header(NamedTuple):
    """(width, height) in pixels of the upright picture, and the settings that it carries, if any."""

    size: tuple[int, int]
    settings: dict | None


def decode(file: BinaryIO, name: str, max_pixels: int, notes: list[str]) -> Decoded:
    """Decodes the first picture of a seekable binary file.

    Raises PictureError for what is not accepted, and whatever Pillow raises on damaged data.
    """
    directory = read_directory(file)
    if directory is not None and is_own(directory):
        return decode_own_tiff(file, directory, name, max_pixels, notes)
    image = open_image(file)
    check_size(image.size, name, max_pixels)
    if directory is not None:
        check_tile(directory, name, max_pixels)
        if directory.compression == 1:  # with others libtiff looks
            segments_of(directory)
        note_pages(directory, notes)
    elif getattr(image, "is_animated", False):
        notes.append(FIRST_ONLY)
    stored = _stored_exif(image)
    if (raw := image.info.get("exif")) and is_damaged_exif(raw, stored):
        notes.append("EXIF data does not parse: left out")
    exif, orientation = parse_exif(stored, notes, is_tiff=image.format == "TIFF")
    head = _head(file, 4096)
    bits = _bits_stored(image, head)

    decoded = Decoded(np.empty(0), "rgb", image.format or "", orientation, exif=exif)
    if image.format == "PNG":
        decoded.color_chunks = png_color_chunks(file)
    if image.format == "JPEG2000":
        decoded.samples, decoded.mode_kind, decoded.premultiplied = decode_jpeg_2000(file, image, name, notes)
    elif image.format == "PNG" and bits == 16 and head[25] != 0:
        decoded.samples = decode_deep_png(file, head[25])
        image.load()  # the text chunks behind the pixels
    elif image.format == "PPM" and bits > 8 and head.startswith(b"P6"):
        decoded.samples = decode_deep_ppm(file, head)
    else:
        decoded.samples, decoded.mode_kind = _samples(image, bits, name, notes)
    if image.format == "PNG":
        decoded.text = {key: str(value) for key, value in image.text.items()}
    if image.format == "TIFF":
        _note_tiff_losses(image, decoded, notes)
    if bits > (read := 8 * decoded.samples.itemsize):
        notes.append(f"{bits} bits a sample in the file: read at {read}")
    decoded.info = {**image.info, "dpi": _resolution(image, stored)}
    if image.format == "TIFF":  # Pillow turns its pixels itself, but not the resolution
        decoded.orientation = 1
        if orientation >= 5 and decoded.info["dpi"]:
            decoded.info["dpi"] = decoded.info["dpi"][::-1]
    decoded.comment = _comment(image)
    if note := not_carried(file, image):
        notes.append(note)
    if any(data.startswith(_EXTENDED_XMP) for _, data in getattr(image, "applist", ())):
        notes.append("extended XMP, what did not fit into one segment of the JPEG: left out")
    transparent = image.info.get("transparency")
    if decoded.samples.dtype == np.uint16 and transparent is not None:  # PNG's transparent colour, as 16-bit samples
        opaque = (decoded.samples != np.array(transparent, dtype=np.uint16)).any(axis=2, keepdims=True)
        decoded.samples = np.concatenate([decoded.samples, opaque * np.uint16(65535)], axis=2)
    if decoded.samples.shape[2] in (1, 2):
        decoded.mode_kind = "grey"
    return decoded


def _stored_exif(image: Image.Image) -> Image.Exif:
    stored, raw = image.getexif(), image.info.get("exif", b"")
    if (readable := utf8_as_ascii(raw)) != raw:
        orientation = stored.get(ExifTags.Base.Orientation)  # by the XMP, where EXIF has none
        stored.load(readable)
        if orientation is not None:
            stored.setdefault(ExifTags.Base.Orientation, orientation)
    return stored


def _resolution(image: Image.Image, stored: Image.Exif) -> tuple | None:
    """Dots per inch: the format's own, or else those of EXIF, which is the only place for them in WebP and AVIF."""
    if image.format in ("JPEG", "MPO") and image.info.get("jfif_unit") not in (1, 2):  # inch, cm
        return resolution_of(stored)  # of EXIF Pillow takes x for y, and 72 where there is none
    return image.info.get("dpi") or resolution_of(stored)


def open_image(file: BinaryIO) -> Image.Image:
    """Reads the header. Only formats on our list: Pillow's EPS reader, for one, would start Ghostscript.

    Raises NotImplementedError for a TIFF of a kind that is not read.
    """
    Image.init()
    directory = read_directory(file)
    if directory is not None:
        check_kind(directory)
    file.seek(0)
    try:
        image = Image.open(file, formats=[name for name in READ_FORMATS if name in Image.OPEN])
    except Image.UnidentifiedImageError as error:
        if directory is None:
            raise
        raise NotImplementedError(str(directory)) from error
    if directory is not None:
        image.seek(directory.page)
        # Pillow would turn the picture by its XMP where this tag is missing, which means upright.
        image.getexif()[ExifTags.Base.Orientation] = directory.get(ExifTags.Base.Orientation, 1)
    image.info |= overlooked(file, image.format)
    correct_transparent_level(image)
    return image


def read_header(file: BinaryIO, name: str) -> Header:
    """What can be known without decoding the pixels. PictureError for settings that are damaged."""
    text, directory = None, read_directory(file)
    if directory is not None:
        if not is_own(directory):
            open_image(file)  # kinds that are not read
        exif, size = exif_of(file, directory), directory.size
    else:
        image = open_image(file)
        size = image.size
        if image.format == "PNG":
            with contextlib.suppress(*DECODING_ERRORS):  # chunks behind the pixels may be damaged
                image = open_image(png_without_pixels(file))
            text = image.info.get(SETTINGS_KEY)
            exif = Image.Image.getexif(image)  # PNG's own decodes the pixels, to look behind them
        else:
            exif = image.getexif()
    settings = settings_of(text, exif, name)
    _, orientation = parse_exif(exif, [], is_tiff=directory is not None)
    return Header(size[::-1] if orientation >= 5 else size, settings)


def _head(file: BinaryIO, count: int) -> bytes:
    file.seek(0)
    return file.read(count)


def _samples(image: Image.Image, bits: int, name: str, notes: list[str]) -> tuple[np.ndarray, str]:
    """Loads a picture that Pillow decodes in full: samples (H, W, C) and mode_kind. `bits`: a sample in the file."""
    kind, mode = "rgb", image.mode
    transparent = "transparency" in image.info
    if mode.startswith("I;16"):
        return to_16_bits(np.asarray(image)[..., None], 2 ** (bits or 16) - 1), "grey"
    if mode == "I":  # grey PNM above 8 bits
        return np.asarray(image).astype(np.uint16)[..., None], "grey"
    if mode == "F":
        raise PictureError(f"{name} has floating-point samples without a known range: save it as 16-bit PNG or TIFF")
    if mode == "CMYK":
        kind, image = "cmyk", cmyk_to_srgb(image, image.info.get("icc_profile"), notes)
    elif mode == "LAB":
        kind, image = "lab", lab_to_srgb(image, notes)
    elif mode in ("P", "PA"):
        kind, image = "palette", image.convert("RGBA" if transparent or mode == "PA" else "RGB")
        notes.append(PALETTE)
    elif mode in ("1", "L", "LA", "La"):
        image = image.convert("LA" if transparent or mode in ("LA", "La") else "L")
    else:
        image = image.convert("RGBA" if transparent or mode in ("RGBA", "RGBa") else "RGB")
    samples = np.asarray(image)
    return (samples[..., None] if samples.ndim == 2 else samples), kind


def _note_tiff_losses(image: TiffImagePlugin.TiffImageFile, decoded: Decoded, notes: list[str]) -> None:
    """What Pillow leaves out of a TIFF: channels beyond those of the mode."""
    taken = 4 if decoded.mode_kind == "cmyk" else decoded.samples.shape[2]
    if (beside := image.tag_v2.get(TiffImagePlugin.SAMPLESPERPIXEL, 1) - taken) > 0:
        notes.append(BESIDE.format(beside))


def _bits_stored(image: Image.Image, head: bytes) -> int:
    """Bits a sample in the file, of the formats that may hold more than 8; 0 for the others, or if it is not found."""
    if image.format == "PNG":
        return head[24]
    if image.format == "TIFF":
        return max(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
    if image.format == "AVIF" and (at := head.find(b"av1C")) >= 0 and len(head) > at + 6:
        flags = head[at + 6]  # seq_tier, high_bitdepth, twelve_bit, … (AV1-ISOBMFF 2.3.3)
        return (12 if flags & 0x20 else 10) if flags & 0x40 else 8
    if image.format == "PPM":
        return ppm_bits(head)
    return 0


def _comment(image: Image.Image) -> bytes | None:
    """A JPEG's, GIF's or JPEG 2000's comment as stored; several of them one a line."""
    if image.format in ("JPEG", "MPO"):
        comment = b"\n".join(data for marker, data in image.applist if marker == "COM")
    else:
        comment = image.info.get("comment", b"") if image.format in ("GIF", "JPEG2000") else b""
    if not comment.strip(b"\0 \r\n") or comment.startswith(b"Created by OpenJPEG"):  # of the encoder, in all its files
        return None
    return comment
