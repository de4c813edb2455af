"""The directory of a TIFF's picture: which one that is, and what kind of picture it describes."""

from __future__ import annotations

from typing import BinaryIO

import numpy as np
from PIL import Image, TiffTags
from PIL import TiffImagePlugin as Tag

from sat_sr.image_io.picture import FIRST_ONLY, check_size

_HEADERS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_NEW_SUBFILE_TYPE, _REDUCED = 254, 1  # bit 0: a smaller copy of another page (TIFF 6.0, section 8)
_SUBSAMPLING = 530
_WEBP = 50001  # which the libtiff in Pillow's own packages does not have
YCBCR = 6
_FORMATS = {1: "unsigned", 2: "signed", 3: "floating-point", 4: "undefined", 5: "complex integer", 6: "complex"}
_PHOTOMETRICS = {number: name for name, number in TiffTags.TAGS_V2[Tag.PHOTOMETRIC_INTERPRETATION].enum.items()}
_BIG_TILE = 1 << 20  # pixels; a smaller tile may well be larger than the picture


class Directory(Tag.ImageFileDirectory_v2):
    """A directory of a TIFF; `big`: of a BigTIFF; `page`: how many stand before it."""

    big = False
    page = 0

    @property
    def dtype(self) -> np.dtype:
        """Of the samples, in the file's byte order."""
        bits = self.value(Tag.BITSPERSAMPLE)
        return np.dtype(f"{'>' if self.prefix == b'MM' else '<'}u{bits // 8}")

    @property
    def separate(self) -> bool:
        """Whether each channel is stored for itself."""
        return self.value(Tag.PLANAR_CONFIGURATION, 1) == 2

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels as stored."""
        return self.value(Tag.IMAGEWIDTH), self.value(Tag.IMAGELENGTH)

    @property
    def photometric(self) -> int:
        """What the samples mean; -1 where the file does not say it."""
        return self.value(Tag.PHOTOMETRIC_INTERPRETATION, -1)

    @property
    def compression(self) -> int:
        """TIFF's number of the codec."""
        return self.value(Tag.COMPRESSION, 1)

    @property
    def subsampling(self) -> tuple:
        """Of the colour differences of YCbCr, across and down."""
        return self.values_of(_SUBSAMPLING, (2, 2))

    def values_of(self, tag: int, default: tuple = ()) -> tuple:
        """All values of a tag, always as a tuple."""
        value = self.get(tag, default)
        return value if isinstance(value, tuple) else (value,)

    def value(self, tag: int, default: int | None = None) -> int:
        """The first value of a tag. Raises ValueError when it is missing and there is no default, or not an integer."""
        values = self.values_of(tag, () if default is None else (default,))
        if not values or not isinstance(values[0], int):
            raise ValueError(f"TIFF tag {TiffTags.lookup(tag).name} is missing or no number")
        return values[0]

    def __str__(self) -> str:
        """Its kind of picture, for messages."""
        formats = [_FORMATS.get(number, f"format {number}") for number in self.values_of(Tag.SAMPLEFORMAT, (1,))]
        bits = "/".join(str(bits) for bits in dict.fromkeys(self.values_of(Tag.BITSPERSAMPLE, (1,))))
        words = [
            f"{self.value(Tag.SAMPLESPERPIXEL, 1)} x {bits}-bit {'/'.join(dict.fromkeys(formats))}",
            _PHOTOMETRICS.get(self.photometric, f"colours {self.photometric}"),
            f"compression {Tag.COMPRESSION_INFO.get(self.compression, 'unknown')} ({self.compression})",
        ]
        if kinds := self.values_of(Tag.EXTRASAMPLES):
            words.append(f"{len(kinds)} channel(s) beside the colours")
        if self.photometric == YCBCR:
            words.append("subsampling {}x{}".format(*(*self.subsampling, "?")[:2]))
        return f"TIFF: {', '.join(words)}{', channels apart' if self.separate else ''}"


def read_directory(file: BinaryIO) -> Directory | None:
    """The directory of the first page that is not a reduced copy of another; None if the file is not a TIFF.

    If all are, that of the first page.
    """
    file.seek(0)
    header = file.read(16)
    if header[:4] not in _HEADERS:
        return None
    big = b"+" in header[2:4]
    if big and header.startswith(b"MM"):
        raise NotImplementedError("big-endian BigTIFF")  # Pillow has no parser for it
    header = header if big else header[:8]
    first, page, places = None, 0, set()
    place = Directory(header).next
    while place and place not in places:
        places.add(place)
        directory = Directory(header)
        directory.big, directory.page = big, page
        file.seek(place)
        directory.load(file)
        if not directory.value(_NEW_SUBFILE_TYPE, 0) & _REDUCED:
            return directory
        first, page, place = first or directory, page + 1, directory.next
    return first or Directory(header)


def note_pages(directory: Directory, notes: list[str]) -> None:
    """Says which of several pages is read."""
    if directory.page:
        notes.append(
            f"the first page is a reduced copy (a thumbnail): page {directory.page + 1} is read, the others are not"
        )
    elif directory.next:
        notes.append(FIRST_ONLY)


def check_kind(directory: Directory) -> None:
    """Raises NotImplementedError for a kind of picture that Pillow would decode wrongly or call damaged."""
    formats, bits = directory.values_of(Tag.SAMPLEFORMAT, (1,)), directory.values_of(Tag.BITSPERSAMPLE, (1,))
    codec = directory.compression
    if (
        set(formats) != {1}
        or max(bits) > 16
        or codec not in Tag.COMPRESSION_INFO
        or codec == _WEBP
        or (directory.photometric == YCBCR and codec == 1)  # but for what own_tiff.py reads
    ):  # fmt: skip
        raise NotImplementedError(str(directory))


def check_tile(directory: Directory, name: str, max_pixels: int) -> None:
    """Raises PictureError for tiles that would not be decoded if they were the picture: a decoder takes them whole."""
    if Tag.TILEOFFSETS in directory:
        across, down = directory.value(Tag.TILEWIDTH), directory.value(Tag.TILELENGTH)
        if across * down > _BIG_TILE:
            check_size((across, down), f"a tile of {name}", max_pixels)


def segments_of(directory: Directory) -> tuple[tuple[int, int], int, tuple]:
    """(width, height) of a strip or tile, how many of them a plane of samples has, and where those of all planes are.

    Raises ValueError where some are missing: of uncompressed ones Pillow makes black without a word.
    """
    width, height = directory.size
    if Tag.TILEOFFSETS in directory:
        across, down, tag = directory.value(Tag.TILEWIDTH), directory.value(Tag.TILELENGTH), Tag.TILEOFFSETS
    else:
        across, down, tag = width, min(directory.value(Tag.ROWSPERSTRIP, height), 1 << 30), Tag.STRIPOFFSETS
    if across < 1 or down < 1:
        raise ValueError(f"TIFF strips or tiles of {across}x{down} px")
    count, offsets = -(-width // across) * -(-height // down), directory.values_of(tag)
    planes = directory.value(Tag.SAMPLESPERPIXEL, 1) if directory.separate else 1
    if len(offsets) < count * planes:
        raise ValueError(f"{len(offsets)} strips or tiles where {count * planes} are needed")
    return (across, down), count, offsets


def exif_of(file: BinaryIO, directory: Directory) -> Image.Exif:
    """The directory as EXIF, with the directories below it; they are read from `file` when they are asked for."""
    exif = Image.Exif()
    exif.bigtiff, exif.endian = directory.big, ">" if directory.prefix == b"MM" else "<"
    exif.load_from_fp(file, directory.offset)
    return exif
