"""Picture file -> Picture: float pixels and all that is stored with them. Decoding itself is in decode.py."""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import torch
from PIL import Image, ImageCms, PngImagePlugin

from sat_sr.image_io.color import check_profile, fill_transparent, unpremultiply
from sat_sr.image_io.decode import decode, read_header
from sat_sr.image_io.decoding_errors import DECODING_ERRORS
from sat_sr.image_io.metadata import SETTINGS_KEY, raw_profiles, valid_dpi, xmp_to_carry
from sat_sr.image_io.picture import DEFAULT_MAX_PIXELS, READ_FORMATS, Decoded, Picture, PictureError, check_size

_MAX_PNG_CHUNK = 64 << 20  # bytes of a profile or text in a PNG; Pillow's 1 MiB is less than printers' profiles have
_pillow_globals = threading.Lock()


class Openable(Protocol):
    """A picture that is not a file of its own, such as cli.entry.Entry."""

    name: str

    def open(self) -> BinaryIO: ...


Source = str | os.PathLike | Openable


def read_picture(source: Source, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Picture:
    """Reads the first picture of a file: turned upright, at 8 or 16 bits, colours straight and free of matte.

    source      a path, or an object with `name` and `open()`
    max_pixels  largest width × height that is decoded
    Returns a Picture; its `notes` list all that was converted, substituted or left out. CMYK and Lab become sRGB,
    palettes RGB; grey stays grey, profiles stay. Raises PictureError for anything that cannot be read.
    """
    notes: list[str] = []
    with _decoding(source, notes) as (file, name):
        decoded = decode(file, name, max_pixels, notes)
        profiles = raw_profiles(decoded.text)
        if "photoshop" in decoded.info or profiles.keys() & {"iptc", "8bim"}:
            notes.append("Photoshop/IPTC data is not carried over")
        if others := sorted(profiles.keys() - {"exif", "xmp", "iptc", "8bim"}):  # Pillow reads the first
            notes.append(f"raw profiles {', '.join(others)}: left out")
        icc = decoded.info.get("icc_profile")
        if decoded.mode_kind in ("cmyk", "lab"):
            icc = None  # the pixels are sRGB now
        else:
            icc = check_profile(icc, "grey" if decoded.mode_kind == "grey" else "rgb", notes)
    rgb, alpha = _to_tensors(decoded, notes)
    dpi = valid_dpi(decoded.info.get("dpi"))
    return Picture(
        rgb=rgb,
        alpha=alpha,
        bit_depth=8 * decoded.samples.itemsize,
        mode_kind=decoded.mode_kind,
        format="JPEG" if decoded.format == "MPO" else decoded.format,
        name=name,
        path=Path(source) if isinstance(source, (str, os.PathLike)) else None,
        icc=icc,
        exif=decoded.exif,
        xmp=xmp_to_carry(decoded.info.get("xmp") or profiles.get("xmp")),
        dpi=dpi[::-1] if dpi and decoded.orientation >= 5 else dpi,
        comment=decoded.comment,
        text=_own_text(decoded.text),
        color_chunks=decoded.color_chunks,
        notes=list(dict.fromkeys(notes)),
    )


def picture_size(source: Source, *, max_pixels: int | None = None) -> tuple[int, int]:
    """(width, height) in pixels of the upright picture, from its header alone.

    PictureError if it is not a picture, or has more than `max_pixels`: read_picture would refuse it (None: any size).
    """
    with _decoding(source, []) as (file, name):
        size = read_header(file, name).size
        if max_pixels is not None:
            check_size(size, name, max_pixels)
        return size


def read_settings(source: Source) -> dict | None:
    """The settings that write_picture stored in a picture, None if it carries none. They come from a file: check them.

    PictureError if the file is not a picture or its settings are damaged.
    """
    with _decoding(source, []) as (file, name):
        return read_header(file, name).settings


@contextlib.contextmanager
def _decoding(source: Source, notes: list[str]) -> Iterator[tuple[BinaryIO, str]]:
    """Opens a picture; what goes wrong while it is decoded becomes a PictureError, Pillow's warnings become notes."""
    is_path = isinstance(source, (str, os.PathLike))
    name = os.fspath(source).encode("utf-8", "backslashreplace").decode() if is_path else source.name
    if is_path and os.path.isdir(source):
        raise PictureError(f"{name} is a folder where a picture file is wanted: name a file in it")
    if is_path and os.path.exists(source) and not os.path.isfile(source):
        raise PictureError(
            f"{name} is not a regular file (a device, a pipe, a socket): save the picture to a file first"
        )
    try:
        file = open(source, "rb") if is_path else source.open()  # noqa: SIM115 (closed below)
    except FileNotFoundError as error:
        link = is_path and os.path.islink(source)
        what = f"a link to {os.readlink(source)}, which is not there" if link else "not there"
        raise PictureError(f"{name} is {what}: check the path") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PictureError(f"{name} cannot be opened ({reason}): check the path and its permissions") from error

    with file, _pillow_globals, _our_limits(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            if not file.read(1):
                raise PictureError(f"{name} is empty (0 bytes): fetch or save it again")
            yield file, name
        except PictureError:
            raise
        except Image.UnidentifiedImageError as error:
            formats = ", ".join(READ_FORMATS)
            message = f"{name} holds no picture that can be read ({formats}): save it as PNG or JPEG"
            raise PictureError(message) from error
        except MemoryError as error:
            raise PictureError(f"{name} does not fit into the memory that is free: cut it into parts") from error
        except NotImplementedError as error:
            raise PictureError(
                f"{name} is of a kind that is not read ({error}): save it as 8- or 16-bit PNG"
            ) from error
        except (*DECODING_ERRORS, ImageCms.PyCMSError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise PictureError(f"{name} is damaged ({reason}): fetch or save it again") from error
    notes += [f"while reading: {' '.join(str(warning.message).split())}" for warning in caught]


@contextlib.contextmanager
def _our_limits() -> Iterator[None]:
    """Instead of Pillow's, which are global."""
    before = Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK
    Image.MAX_IMAGE_PIXELS = None  # ours is checked instead, with a way out
    PngImagePlugin.MAX_TEXT_CHUNK = _MAX_PNG_CHUNK
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK = before


def _to_tensors(decoded: Decoded, notes: list[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Samples (H, W, C) -> rgb (3, H, W) in [-1, 1] and alpha (1, H, W) in [0, 1] or None, upright."""
    samples = decoded.samples
    top = float(np.iinfo(samples.dtype).max)
    height, width, channels = samples.shape
    values = torch.empty(channels, height, width)
    for channel in range(channels):  # one at a time: no second copy in float
        np.divide(samples[..., channel], top, out=values[channel].numpy(), dtype=np.float32, casting="unsafe")
    if decoded.orientation >= 5:
        values = values.transpose(1, 2)
    flips = {2: [2], 3: [1, 2], 4: [1], 6: [2], 7: [1, 2], 8: [1]}.get(decoded.orientation, [])
    values = values.flip(flips) if flips else values.contiguous()

    colors = values[:1].repeat(3, 1, 1) if channels <= 2 else values[:3]
    if channels in (1, 3):
        return colors.mul_(2).sub_(1), None
    alpha = values[-1:].clone()
    if decoded.premultiplied:
        notes.append("premultiplied transparency: written as straight transparency")
        colors = unpremultiply(colors, alpha)
    return fill_transparent(colors, alpha).mul(2).sub_(1), alpha


def _own_text(text: Mapping[str, str]) -> dict[str, str]:
    """PNG texts that are the user's: no XMP or EXIF in disguise, no settings of an earlier run."""
    return {
        key: value for key, value in text.items()
        if key not in (SETTINGS_KEY, "XML:com.adobe.xmp") and not key.startswith("Raw profile type")
    }  # fmt: skip
