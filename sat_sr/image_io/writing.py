"""Picture -> file of the same kind, from the enlarged pixels, strip by strip. The file formats are in encode.py."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL import TiffImagePlugin as Tag

from sat_sr.image_io import encode
from sat_sr.image_io.color import resize_alpha
from sat_sr.image_io.metadata import (
    DESCRIPTIVE_TAGS,
    SETTINGS_KEY,
    comment_text,
    exif_for_output,
    exif_to_bytes,
    note_left_out_tags,
    stored_value,
    valid_dpi,
)
from sat_sr.image_io.picture import FORMAT_CHOICES, WRITE_FORMATS, Picture, PictureError
from sat_sr.image_io.storage import atomic_write

DEFAULT_QUALITY = 95
_MAX_SIDE = {"JPEG": 65_500, "WEBP": 16_383, "PNG": 2**31 - 1, "TIFF": 2**31 - 1}
_MAX_JPEG_BLOCK = 65_533  # bytes of EXIF, XMP or comment that one marker segment takes
_LARGE_PNG_PROFILE = 1 << 20  # bytes; Pillow, for one, refuses a PNG with more
_MAX_JFIF_DENSITY = 65_535  # dots per inch: 16 bits, in which more would wrap
_STRIP_SAMPLES = 1 << 21  # converted at a time
_LUMA = (0.299, 0.587, 0.114)  # Rec. 601, as JPEG and Pillow weigh coded values


def check_output(
    path: str | os.PathLike, like: Picture, size: tuple[int, int], *, format: str | None = None,
    quality: int | None = None,
) -> list[str]:  # fmt: skip
    """What writing `like`, enlarged to `size` = (W, H), to `path` will substitute or leave out.

    PictureError if it cannot be done at all. Ask before the work; write_picture asks again. Arguments as there.
    """
    return _Plan(path, like, size, format, quality).notes


def check_output_size(path: str | os.PathLike, size: tuple[int, int]) -> None:
    """PictureError if the suffix of `path` names no format that is written, or one that cannot hold `size` = (W, H)."""
    _check_sides(path, _format_by(Path(path), None), size)


def write_picture(
    path: str | os.PathLike, rgb: torch.Tensor, like: Picture, *, format: str | None = None, quality: int | None = None,
    settings: Mapping[str, Any] | None = None, replace: bool = True,
) -> list[str]:  # fmt: skip
    """Writes the enlarged picture as the kind of picture that `like` is, atomically, converting strip by strip.

    rgb       (3, H, W) float in [-1, 1], values beyond are clipped, then rounded to 8 or 16 bits; on any device
    like      what was read: gives grey or RGB, bit depth, alpha (resized by Lanczos to W×H), profile, EXIF, XMP, texts,
              comment, and the dots per inch, which grow with the picture
    format    "png", "jpg", "webp", "tiff"; None: by the suffix of `path`
    quality   1 to 100 for JPEG and WebP (default 95; WebP at 100 is lossless), without effect on the others
    settings  stored as JSON (PNG text chunk, else EXIF UserComment) for read_settings
    replace   whether an existing file is replaced; if not, storage.NameTaken is raised
    Returns what was substituted or left out, for the user to read. Raises PictureError, and leaves no file, if the
    format cannot hold the picture, the disk is full, `path` is the file that `like` came from, or rgb is not finite.
    """
    if rgb.ndim != 3 or rgb.shape[0] != 3 or 0 in rgb.shape or not rgb.is_floating_point():
        raise ValueError(f"rgb is {tuple(rgb.shape)} {rgb.dtype}, wanted (3, H, W) float in [-1, 1]")
    height, width = rgb.shape[1:]
    plan = _Plan(path, like, (width, height), format, quality)
    notes = plan.notes
    dpi = valid_dpi((like.dpi[0] * width / like.size[0], like.dpi[1] * height / like.size[1])) if like.dpi else None
    exif = exif_for_output(
        like.exif, plan.size, dpi, settings if plan.format != "PNG" else None, notes,
        add_resolution=_needs_exif_for(dpi, plan.format),
    )  # fmt: skip

    rows = min(height, max(1, _STRIP_SAMPLES // (width * plan.channels)))
    strips = _strips(rgb, like, plan, rows)
    with atomic_write(path, replace=replace) as file:
        if plan.format == "PNG":
            chunks = _png_chunks(like, dpi, exif, settings)
            encode.write_png(
                file, strips, size=plan.size, channels=plan.channels, bit_depth=plan.bit_depth, chunks=chunks
            )
        elif plan.format == "TIFF":
            encode.write_tiff(
                file, strips, size=plan.size, channels=plan.channels, bit_depth=plan.bit_depth,
                tags=_tiff_tags(like, dpi, exif, notes), rows_per_strip=rows,
            )  # fmt: skip
        else:
            options = _pillow_options(plan, like, dpi, exif, settings, notes)
            encode.write_by_pillow(file, strips, size=plan.size, channels=plan.channels, format=plan.format, **options)
    return notes


class _Plan:
    """What kind of file is written, and what it cannot hold."""

    def __init__(
        self, path: str | os.PathLike, like: Picture, size: tuple[int, int], format: str | None, quality: int | None
    ) -> None:
        self.path, self.size, self.notes = Path(path), size, []
        self.format = _format_by(self.path, format)
        if quality is not None and not 1 <= quality <= 100:
            raise PictureError(f"quality {quality} is outside 1 to 100: choose a value in between")
        if quality is not None and self.format in ("PNG", "TIFF"):
            self.notes.append(f"quality has no effect on {self.format}, which is lossless")
        self.quality = quality or DEFAULT_QUALITY
        if like.path is not None and self.path.exists() and self.path.samefile(like.path):
            raise PictureError(f"{self.path} is the picture that is read: choose another name or folder for the output")
        _check_sides(self.path, self.format, size)
        self.bit_depth = like.bit_depth
        lossy = self.format in ("JPEG", "WEBP")
        if lossy and like.bit_depth == 16:
            self.bit_depth = 8
            self.notes.append(f"{self.format} has 8 bits a sample: 16 bits are rounded to 8")
        self.grey = like.mode_kind == "grey"
        self.flatten = like.alpha is not None and self.format == "JPEG"
        if self.flatten:
            self.notes.append("JPEG has no transparency: the picture is laid on white")
        stores_grey = self.grey and self.format != "WEBP"
        self.channels = (1 if stores_grey else 3) + (like.alpha is not None and not self.flatten)
        self.icc = like.icc
        if self.grey and not stores_grey and like.icc and like.icc[16:20] == b"GRAY":
            self.icc = None
            self.notes.append("WebP has no grey: the grey ICC profile is left out")
        if self.format == "PNG" and like.icc and len(like.icc) > _LARGE_PNG_PROFILE:
            size = f"{len(like.icc) / (1 << 20):.1f} MiB"
            self.notes.append(f"some programs open no PNG with an ICC profile as large as this one, {size}: TIFF does")
        if self.format != "PNG":
            if like.text:
                self.notes.append(f"{len(like.text)} PNG text(s) left out: {', '.join(like.text)}")
            if like.comment and self.format != "JPEG":
                self.notes.append(f"the picture's comment is left out of {self.format}")
            told = {b"sRGB", b"gAMA", b"cHRM"} if like.icc else {b"sRGB"}  # by the profile; by default
            if any(kind not in told for kind, _ in like.color_chunks):
                self.notes.append(f"PNG's gamma, colour space or HDR tags are left out of {self.format}")


def _format_by(path: Path, format: str | None) -> str:
    """Pillow's name of the format that `format` chooses or, if it is None, the suffix of `path`."""
    suffix = path.suffix.lower() if format is None else FORMAT_CHOICES.get(format, format)
    if suffix not in WRITE_FORMATS:
        raise PictureError(
            f"{path}: {suffix or 'no suffix'} is not a format that is written: use {', '.join(FORMAT_CHOICES)}"
        )
    return WRITE_FORMATS[suffix]


def _check_sides(path: str | os.PathLike, format: str, size: tuple[int, int]) -> None:
    if max(size) > _MAX_SIDE[format]:
        raise PictureError(
            f"{path}: {format} ends at {_MAX_SIDE[format]:,} px a side, the picture is {size[0]}x{size[1]} px: "
            "use --format png or tiff"
        )


def _strips(rgb: torch.Tensor, like: Picture, plan: _Plan, rows: int) -> Iterator[np.ndarray]:
    """rgb (3, H, W) -> strips (rows, W, channels) uint8 or uint16 from the top."""
    top = 2**plan.bit_depth - 1
    luma = torch.tensor(_LUMA, dtype=torch.float64)
    for first in range(0, plan.size[1], rows):
        end = min(first + rows, plan.size[1])
        values = rgb[:, first:end].to("cpu", torch.float32).clamp(-1, 1)
        if not torch.isfinite(values).all():
            raise PictureError(f"{plan.path} is not written: the picture has NaN in rows {first} to {end - 1}")
        if plan.channels <= 2:
            values = torch.einsum("c,chw->hw", luma, values.double())[None]
        values = (values + 1) / 2  # (C, rows, W) in [0, 1]
        if like.alpha is not None:
            alpha = resize_alpha(like.alpha, plan.size, (first, end))
            values = values * alpha + (1 - alpha) if plan.flatten else torch.cat([values, alpha.to(values.dtype)])
        samples = (values * top).round_().permute(1, 2, 0).numpy()
        yield np.ascontiguousarray(samples.astype(np.uint16 if plan.bit_depth == 16 else np.uint8))


def _png_chunks(
    like: Picture, dpi: tuple[float, float] | None, exif: Image.Exif, settings: Mapping[str, Any] | None
) -> Iterator[tuple[bytes, bytes]]:
    """The chunks between IHDR and IDAT, in the standard's order."""
    yield from like.color_chunks
    if like.icc:
        yield b"iCCP", b"ICC Profile\0\0" + zlib.compress(like.icc)
    if dpi:
        yield b"pHYs", struct.pack(">IIB", *(round(value / 0.0254) for value in dpi), 1)  # pixels a metre
    if exif_bytes := exif_to_bytes(exif):
        yield b"eXIf", exif_bytes.removeprefix(b"Exif\0\0")
    texts = dict(like.text)
    if like.comment:
        texts.setdefault("Comment", comment_text(like.comment))
    if like.xmp:
        texts["XML:com.adobe.xmp"] = like.xmp.decode("utf-8", "replace")
    if settings is not None:
        texts[SETTINGS_KEY] = json.dumps(dict(settings))
    for keyword, text in texts.items():
        yield b"iTXt", keyword.encode("latin-1", "replace") + b"\0\0\0\0\0" + text.encode("utf-8", "replace")


def _tiff_tags(
    like: Picture, dpi: tuple[float, float] | None, exif: Image.Exif, notes: list[str]
) -> dict[int, Any]:  # fmt: skip
    note_left_out_tags(exif, notes)
    tags: dict[int, Any] = {tag: stored_value(exif, tag) for tag in DESCRIPTIVE_TAGS if tag in exif}
    if like.icc:
        tags[Tag.ICCPROFILE] = like.icc
    if like.xmp:
        tags[Tag.XMP] = like.xmp
    if dpi:
        tags[Tag.X_RESOLUTION], tags[Tag.Y_RESOLUTION], tags[Tag.RESOLUTION_UNIT] = *dpi, 2
    return tags


def _needs_exif_for(dpi: tuple[float, float] | None, format: str) -> bool:
    """Whether the format has no place of its own for a resolution, or none for one as high."""
    return format == "WEBP" or (format == "JPEG" and dpi is not None and max(dpi) > _MAX_JFIF_DENSITY)


def _pillow_options(
    plan: _Plan, like: Picture, dpi: tuple[float, float] | None, exif: Image.Exif, settings: Mapping[str, Any] | None,
    notes: list[str],
) -> dict[str, Any]:  # fmt: skip
    options: dict[str, Any] = {"quality": plan.quality}
    exif_bytes, xmp = exif_to_bytes(exif), like.xmp
    if plan.format == "JPEG":
        options["subsampling"] = 0  # 4:4:4: the colour edges were just computed
        if dpi and not _needs_exif_for(dpi, plan.format):
            options["dpi"] = tuple(round(value) for value in dpi)
        if len(exif_bytes) > _MAX_JPEG_BLOCK:
            notes.append(f"EXIF of {len(exif_bytes)} bytes does not fit into JPEG: left out")
            alone = _needs_exif_for(dpi, plan.format)
            exif_bytes = exif_to_bytes(
                exif_for_output(None, plan.size, dpi, settings, notes, add_resolution=alone)
            )  # fmt: skip
        if xmp and len(xmp) > _MAX_JPEG_BLOCK - 29:  # its signature
            notes.append(f"XMP of {len(xmp)} bytes does not fit into JPEG: left out")
            xmp = None
        if like.comment and len(like.comment) > _MAX_JPEG_BLOCK:
            notes.append(f"the picture's comment of {len(like.comment)} bytes does not fit into JPEG: left out")
        elif like.comment:
            # As a marker (COM) of our own: Pillow's option for it fails with a large EXIF before version 13.
            options["extra"] = struct.pack(">HH", 0xFFFE, 2 + len(like.comment)) + like.comment
    elif plan.quality == 100:
        options["lossless"] = True
    if plan.format == "WEBP":
        options["exact"] = True  # colours under transparency stay
    if plan.icc:
        options["icc_profile"] = plan.icc
    if exif_bytes:
        options["exif"] = exif_bytes
    if xmp:
        options["xmp"] = xmp
    return options
