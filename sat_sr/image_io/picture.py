"""What a picture file is to this project: its pixels, and all that is needed to write the same kind of file again.

Light on purpose (no torch, no Pillow at import): the command line plans names and answers errors with it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch

# What is read. A fixed list: other readers of Pillow's start external programs (EPS) or take nearly any bytes (TGA).
READ_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "JPEG2000", "PPM")
PICTURE_SUFFIXES = frozenset(
    (".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".tif", ".tiff", ".bmp", ".dib", ".gif",
     ".avif", ".jp2", ".jpx", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm")
)  # fmt: skip
# What is written, by the suffix of the file.
WRITE_FORMATS = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG",
    ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF",
}  # fmt: skip
FORMAT_CHOICES = {"png": ".png", "jpg": ".jpg", "webp": ".webp", "tiff": ".tiff"}

FIRST_ONLY = "more than one picture in the file (animation, pages): only the first is used"  # notes of several decoders
BESIDE = "{} channel(s) beside colour and transparency: left out"
PALETTE = "palette colours: written as full RGB"
DEFAULT_MAX_PIXELS = 1 << 28  # 16384 × 16384: 3 GiB of float32 pixels


class PictureError(ValueError):
    """A picture cannot be read or written; the message is one sentence that names it and says what to do."""


@dataclass
class Picture:
    """A decoded picture, upright, with straight (not premultiplied) colours.

    rgb        (3, H, W) float32 in [-1, 1]: the stored, coded values in the picture's own profile; grey is repeated
    alpha      (1, H, W) float32 in [0, 1], or None
    bit_depth  8 or 16, of the file
    mode_kind  "grey", "rgb", "palette", "cmyk" or "lab": what the file held; grey is written as grey, the others as RGB
    format     Pillow's name of the file format
    name       how messages call it;   path  the file it came from, which is never written to (None: out of an archive)
    icc, exif, xmp   raw bytes or None; EXIF without thumbnail, its orientation already 1
    dpi        (x, y) dots per inch or None
    comment    a JPEG's or GIF's comment as stored, in an encoding that the file does not tell, or None
    text       PNG text chunks, keyword -> text;   color_chunks  PNG's cHRM, gAMA, sRGB, cICP, mDCV, cLLI as stored
    notes      all that was converted, substituted or left out, for the user to read once
    """

    rgb: torch.Tensor
    alpha: torch.Tensor | None
    bit_depth: int
    mode_kind: str
    format: str
    name: str
    path: Path | None = None
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    comment: bytes | None = None
    text: dict[str, str] = field(default_factory=dict)
    color_chunks: tuple[tuple[bytes, bytes], ...] = ()
    notes: list[str] = field(default_factory=list)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.rgb.shape[2], self.rgb.shape[1]

    def crop(self, box: tuple[int, int, int, int]) -> Picture:
        """The part inside `box` = (left, top, right, bottom) in pixels; PictureError if it reaches outside."""
        check_box(box, self.size, self.name)
        left, top, right, bottom = box
        alpha = None if self.alpha is None else self.alpha[:, top:bottom, left:right]
        return dataclasses.replace(self, rgb=self.rgb[:, top:bottom, left:right], alpha=alpha)


@dataclass
class Decoded:
    """samples (H, W, C) uint8 or uint16, C = 1 grey, 2 grey + alpha, 3 RGB, 4 RGB + alpha; not yet turned upright.

    `orientation` is the turn still to be made (EXIF's 1 to 8); `info` is Pillow's dictionary of what the file holds
    besides the pixels (icc_profile, xmp, dpi, …).
    """

    samples: np.ndarray
    mode_kind: str
    format: str
    orientation: int = 1
    premultiplied: bool = False
    exif: bytes | None = None
    comment: bytes | None = None
    info: dict[str, Any] = field(default_factory=dict)
    text: dict[str, str] = field(default_factory=dict)
    color_chunks: tuple[tuple[bytes, bytes], ...] = ()


def check_box(box: tuple[int, int, int, int], size: tuple[int, int], name: str) -> None:
    """Raises PictureError unless box (left, top, right, bottom) is not empty and inside a picture of size (W, H).

    name  of the picture, for the message
    """
    left, top, right, bottom = box
    width, height = size
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise PictureError(
            f"{name} is {width}x{height} px, too small for the crop {box} (left, top, right, bottom): "
            "choose a box inside the picture"
        )


def check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    """Raises PictureError for size (W, H) with an empty side or more than max_pixels pixels.

    name  of the picture, for the message
    """
    width, height = size
    if width < 1 or height < 1:
        raise PictureError(f"{name} says that it is {width}x{height} px: nothing to enlarge, leave it out")
    if width * height > max_pixels:
        raise PictureError(
            f"{name} says that it is {width}x{height} px, {width * height:,} pixels where {max_pixels:,} are allowed "
            "(a small file can claim any size to fill the memory): if you trust it, raise the limit with --max-pixels"
        )
