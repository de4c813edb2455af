"""TIFF that Pillow does not read as it is: of 16 bits; of 8 with the channels apart, or with some beside the colours.

Pillow cuts 16-bit colour to 8 bits. Of channels stored apart it takes no alpha beside grey and no more than four, and
mistakes those of Lab. Premultiplied colours it makes straight by truncation, and it knows few combinations of channels
beside the colours. YCbCr without compression it calls cut off before version 13. Here the strips or tiles are presented
to it as a grey 8-bit picture as many bytes wide as a row has, so that it undoes the compression and nothing else;
samples and predictor are put together here.
The library tifffile would be the natural choice, but without its companion imagecodecs (30 MB of codecs) it does not
read LZW, which editors and scanners write, nor, before Python 3.14, Zstandard.
"""

from __future__ import annotations

import io
from typing import BinaryIO

import numpy as np
from PIL import Image, TiffTags
from PIL import TiffImagePlugin as Tag

from sat_sr.image_io.color import cmyk_to_srgb, lab_to_srgb
from sat_sr.image_io.metadata import parse_exif, resolution_of
from sat_sr.image_io.picture import BESIDE, Decoded, check_size
from sat_sr.image_io.tiff_directory import YCBCR, Directory, check_tile, exif_of, note_pages, segments_of

# None, LZW, deflate (two numbers), packbits, LZMA, Zstandard: codecs of plain bytes
_BYTE_CODECS = {1, 5, 8, 32946, 32773, 34925, 50000}
_PREDICTING_CODECS = _BYTE_CODECS - {1, 32773}  # beside the others the tag means nothing, and libtiff ignores it
_GREY, _RGB, _CMYK, _LAB = "grey", "rgb", "cmyk", "lab"
_KINDS = {  # photometric: mode_kind, colours
    0: (_GREY, 1), 1: (_GREY, 1), 2: (_RGB, 3), 5: (_CMYK, 4), YCBCR: (_RGB, 3), 8: (_LAB, 3),
}  # fmt: skip
_UNSPECIFIED, _PREMULTIPLIED, _STRAIGHT = 0, 1, 2  # what a sample beyond the colours is


def is_own(directory: Directory) -> bool:
    """Whether the picture is read here and not by Pillow: which see above."""
    bits, photometric = set(directory.values_of(Tag.BITSPERSAMPLE)), directory.photometric
    if set(directory.values_of(Tag.SAMPLEFORMAT, (1,))) != {1} or photometric not in _KINDS:
        return False
    if photometric == YCBCR:
        plain = directory.compression == 1 and not directory.separate and directory.subsampling == (1, 1)
        return plain and bits == {8}
    if bits == {16}:
        return photometric != 8
    extra = {_UNSPECIFIED, _PREMULTIPLIED, _STRAIGHT}.intersection(directory.values_of(Tag.EXTRASAMPLES))
    return bits == {8} and bool(directory.separate or extra) and directory.compression in _BYTE_CODECS


def decode_own_tiff(
    file: BinaryIO, directory: Directory, name: str, max_pixels: int, notes: list[str]
) -> Decoded:  # fmt: skip
    """Samples and what is stored with them, of a directory that is_own."""
    width, height = directory.size
    check_size((width, height), name, max_pixels)
    check_tile(directory, name, max_pixels)
    note_pages(directory, notes)
    kind, colors = _KINDS[directory.photometric]
    samples_per_pixel = directory.value(Tag.SAMPLESPERPIXEL, 1)
    if not colors <= samples_per_pixel <= 16:
        raise ValueError(f"{samples_per_pixel} samples a pixel for {colors} colours")

    planes = samples_per_pixel if directory.separate else 1
    samples = np.concatenate(
        [_decode_plane(file, directory, plane, planes, samples_per_pixel // planes) for plane in range(planes)], axis=2
    )
    extra = (*directory.values_of(Tag.EXTRASAMPLES), *[_UNSPECIFIED] * samples_per_pixel)[: samples_per_pixel - colors]
    if extra and Tag.EXTRASAMPLES not in directory:
        extra = (_STRAIGHT, *extra[1:])
    alphas = [index for index, meaning in enumerate(extra) if meaning in (_PREMULTIPLIED, _STRAIGHT)][:1]
    if beside := len(extra) - len(alphas):
        notes.append(BESIDE.format(beside))
    alpha = samples[..., [colors + index for index in alphas]]
    samples = samples[..., :colors]
    if directory.photometric == 0:  # white is zero
        samples = ~samples
    elif kind == _CMYK:
        samples, alpha = _to_8_bits(samples, notes), _to_8_bits(alpha, [])
        image = Image.frombytes("CMYK", (width, height), samples.tobytes())
        samples = np.asarray(cmyk_to_srgb(image, directory.get(Tag.ICCPROFILE), notes))
    elif kind == _LAB:
        image = Image.frombytes("LAB", (width, height), samples.tobytes())
        samples = np.asarray(lab_to_srgb(image, notes))
    elif directory.photometric == YCBCR:
        samples = np.asarray(Image.frombytes("YCbCr", (width, height), samples.tobytes()).convert("RGB"))
    if alphas:
        samples = np.concatenate([samples, alpha], axis=2)

    exif = exif_of(file, directory)
    exif_bytes, orientation = parse_exif(exif, notes, is_tiff=True)
    info = {
        "icc_profile": directory.get(Tag.ICCPROFILE), "xmp": directory.get(Tag.XMP), "dpi": resolution_of(exif),
    }  # fmt: skip
    return Decoded(
        samples, kind, "TIFF", orientation,
        premultiplied=[extra[index] for index in alphas] == [_PREMULTIPLIED], exif=exif_bytes, info=info,
    )  # fmt: skip


def _to_8_bits(samples: np.ndarray, notes: list[str]) -> np.ndarray:
    """Rounded, if they have 16."""
    if samples.dtype == np.uint8:
        return samples
    notes.append("16 bits a sample in the file: read at 8")
    return ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _decode_plane(file: BinaryIO, directory: Directory, plane: int, planes: int, channels: int) -> np.ndarray:
    """One plane (all samples of a pixel together, or one where they are stored apart) -> (H, W, channels)."""
    if (codec := directory.compression) not in _BYTE_CODECS:
        raise NotImplementedError(str(directory))
    predictor = directory.value(Tag.PREDICTOR, 1) if codec in _PREDICTING_CODECS else 1
    if predictor not in (1, 2):  # 3: of floating-point samples
        raise NotImplementedError(f"{directory}, predictor {predictor}")
    (width, height), dtype = directory.size, directory.dtype
    tiled = Tag.TILEOFFSETS in directory
    (across, down), count, offsets = segments_of(directory)
    lengths = directory.values_of(Tag.TILEBYTECOUNTS if tiled else Tag.STRIPBYTECOUNTS)
    if len(lengths) < count * planes:
        raise ValueError(f"lengths of {len(lengths)} strips or tiles where {count * planes} are needed")

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
    if predictor == 2:  # differences along the row of each tile; they wrap as intended
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
