"""TIFF that Pillow does not read as it is: of 16 bits, and of 8 bits with the channels stored apart.

Pillow cuts 16-bit colour to 8 bits; of channels stored apart it takes no alpha beside grey and no more than four. Here
the strips or tiles are presented to it as a grey 8-bit picture as many bytes wide as a row has, so that it undoes the
compression and nothing else; samples and predictor are put together here.
The library tifffile would be the natural choice, but without its companion imagecodecs (30 MB of codecs) it does not
read LZW, which editors and scanners write, nor, before Python 3.14, Zstandard.
"""

from __future__ import annotations

import io
from typing import BinaryIO

import numpy as np
from PIL import Image, TiffTags
from PIL import TiffImagePlugin as Tag

from sat_sr.image_io.metadata import parse_exif, resolution_of
from sat_sr.image_io.picture import BESIDE, FIRST_ONLY, Decoded, check_size

TIFF_HEADERS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# None, LZW, deflate (two numbers), packbits, LZMA, Zstandard: codecs of plain bytes
_BYTE_CODECS = {1, 5, 8, 32946, 32773, 34925, 50000}


class Directory(Tag.ImageFileDirectory_v2):
    """The first directory of a TIFF; `big`: of a BigTIFF."""

    big = False

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


def open_own_tiff(file: BinaryIO) -> Directory | None:
    """The directory, if this is a TIFF of unsigned grey or RGB samples that is read here and not by Pillow."""
    file.seek(0)
    header = file.read(16)
    if header[:4] not in TIFF_HEADERS:
        return None
    big = b"+" in header[2:4]
    if big and header.startswith(b"MM"):
        raise NotImplementedError("big-endian BigTIFF")  # Pillow has no parser for it
    directory = Directory(header if big else header[:8])
    directory.big = big
    file.seek(directory.next)
    directory.load(file)
    bits = set(directory.values_of(Tag.BITSPERSAMPLE))
    apart = bits == {8} and directory.separate and directory.value(Tag.COMPRESSION, 1) in _BYTE_CODECS
    own = (
        (bits == {16} or apart)
        and set(directory.values_of(Tag.SAMPLEFORMAT, (1,))) == {1}
        and directory.value(Tag.PHOTOMETRIC_INTERPRETATION, -1) in (0, 1, 2)
    )
    return directory if own else None


def exif_of(file: BinaryIO, directory: Directory) -> Image.Exif:
    """The directory as EXIF, with the directories below it; they are read from `file` when they are asked for."""
    exif = Image.Exif()
    exif.bigtiff, exif.endian = directory.big, ">" if directory.prefix == b"MM" else "<"
    exif.load_from_fp(file, directory.offset)
    return exif


def decode_own_tiff(
    file: BinaryIO, directory: Directory, name: str, max_pixels: int, notes: list[str]
) -> Decoded:  # fmt: skip
    """Samples and what is stored with them, of a directory that open_own_tiff returned."""
    width, height = directory.size
    check_size((width, height), name, max_pixels)
    photometric = directory.value(Tag.PHOTOMETRIC_INTERPRETATION)
    colors = 3 if photometric == 2 else 1
    samples_per_pixel = directory.value(Tag.SAMPLESPERPIXEL, 1)
    if not colors <= samples_per_pixel <= 16:
        raise ValueError(f"{samples_per_pixel} samples a pixel for {colors} colours")
    if directory.next:
        notes.append(FIRST_ONLY)

    planes = samples_per_pixel if directory.separate else 1
    samples = np.concatenate(
        [_decode_plane(file, directory, plane, planes, samples_per_pixel // planes) for plane in range(planes)], axis=2
    )
    if photometric == 0:  # white is zero
        samples = np.concatenate([~samples[..., :1], samples[..., 1:]], axis=2)

    # What the samples beyond the colours are: 0 unspecified, 1 premultiplied alpha, 2 straight alpha.
    extra = (*directory.values_of(Tag.EXTRASAMPLES), *[0] * samples_per_pixel)[: samples_per_pixel - colors]
    has_alpha = bool(extra) and (extra[0] in (1, 2) or Tag.EXTRASAMPLES not in directory)
    if len(extra) > has_alpha:
        notes.append(BESIDE.format(len(extra) - has_alpha))
    samples = samples[..., : colors + has_alpha]

    exif = exif_of(file, directory)
    exif_bytes, orientation = parse_exif(exif, notes, is_tiff=True)
    info = {
        "icc_profile": directory.get(Tag.ICCPROFILE), "xmp": directory.get(Tag.XMP), "dpi": resolution_of(exif),
    }  # fmt: skip
    return Decoded(
        samples, "rgb" if colors == 3 else "grey", "TIFF", orientation,
        premultiplied=has_alpha and extra[0] == 1, exif=exif_bytes, info=info,
    )  # fmt: skip


def _decode_plane(file: BinaryIO, directory: Directory, plane: int, planes: int, channels: int) -> np.ndarray:
    """One plane (all samples of a pixel together, or one where they are stored apart) -> (H, W, channels)."""
    if (codec := directory.value(Tag.COMPRESSION, 1)) not in _BYTE_CODECS:
        raise NotImplementedError(f"16-bit TIFF of compression {codec}")
    (width, height), dtype = directory.size, directory.dtype
    tiled = Tag.TILEOFFSETS in directory
    offset_tag, count_tag = (Tag.TILEOFFSETS, Tag.TILEBYTECOUNTS) if tiled else (Tag.STRIPOFFSETS, Tag.STRIPBYTECOUNTS)
    across = directory.value(Tag.TILEWIDTH) if tiled else width
    down = min(directory.value(Tag.TILELENGTH) if tiled else directory.value(Tag.ROWSPERSTRIP, height), 1 << 30)
    if across < 1 or down < 1:
        raise ValueError(f"TIFF strips or tiles of {across}x{down} px")
    count = -(-width // across) * -(-height // down)
    offsets, lengths = directory.values_of(offset_tag), directory.values_of(count_tag)
    if min(len(offsets), len(lengths)) < count * planes:
        raise ValueError(f"{min(len(offsets), len(lengths))} strips or tiles where {count * planes} are needed")

    segments = []
    end = file.seek(0, io.SEEK_END)
    if sum(lengths) > end + width * height * channels * planes * dtype.itemsize:  # a small file that claims the memory
        raise ValueError("strips or tiles longer than the file")
    for index in range(plane * count, (plane + 1) * count):
        if offsets[index] + lengths[index] > end:
            raise OSError("image file is truncated")
        file.seek(offsets[index])
        segments.append(file.read(lengths[index]))
    pixel = channels * dtype.itemsize
    row_bytes = _bytes_picture(
        segments, codec, (width * pixel, height), (across * pixel, down) if tiled else (0, down),
        directory.value(Tag.FILLORDER, 1),
    )  # fmt: skip
    native = dtype.newbyteorder("=")
    samples = row_bytes.view(dtype).astype(native).reshape(height, width, channels)
    if directory.value(Tag.PREDICTOR, 1) == 2:  # differences along the row of each tile; they wrap as intended
        for left in range(0, width, across):
            part = samples[:, left : left + across]
            np.cumsum(part, axis=1, dtype=native, out=part)
    return samples


def _bytes_picture(
    segments: list[bytes], codec: int, size: tuple[int, int], tile: tuple[int, int], fill_order: int
) -> np.ndarray:
    """Decompresses strips (tile[0] = 0, tile[1] rows each) or tiles as a grey 8-bit TIFF: (H, bytes a row) uint8."""
    directory = Tag.ImageFileDirectory_v2(b"II*\0\x08\0\0\0")
    directory[Tag.IMAGEWIDTH], directory[Tag.IMAGELENGTH] = size
    directory[Tag.BITSPERSAMPLE], directory[Tag.SAMPLESPERPIXEL], directory[Tag.PHOTOMETRIC_INTERPRETATION] = 8, 1, 1
    directory[Tag.COMPRESSION], directory[Tag.FILLORDER] = codec, fill_order
    if tile[0]:
        offset_tag, count_tag = Tag.TILEOFFSETS, Tag.TILEBYTECOUNTS
        directory[Tag.TILEWIDTH], directory[Tag.TILELENGTH] = tile
    else:
        offset_tag, count_tag = Tag.STRIPOFFSETS, Tag.STRIPBYTECOUNTS
        directory[Tag.ROWSPERSTRIP] = min(tile[1], size[1])
    directory.tagtype[offset_tag] = directory.tagtype[count_tag] = TiffTags.LONG
    lengths = [len(segment) for segment in segments]
    directory[count_tag] = tuple(lengths)
    start = 0
    for _ in range(2):  # the length of the directory does not depend on the offsets in it
        ends = np.cumsum([start, *lengths]).tolist()
        directory[offset_tag] = tuple(ends[:-1])
        head = b"II*\0\x08\0\0\0" + directory.tobytes(8)
        start = len(head) if tile[0] else 0  # Pillow itself moves strips behind the directory, but not tiles
    with Image.open(io.BytesIO(b"".join([head, *segments])), formats=["TIFF"]) as image:
        return np.asarray(image)
