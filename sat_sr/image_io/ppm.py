"""What Pillow leaves to be done for PPM: colours above 8 bits."""

from __future__ import annotations

import re
from typing import BinaryIO

import numpy as np

from sat_sr.image_io.depth import rescale

_GAP = rb"(?:\s|#[^\n]*\n)+"  # between the parts of the header; a comment may stand in any of them
_HEADER = re.compile(_GAP.join([rb"P[2356]", rb"(?P<width>\d+)", rb"(?P<height>\d+)", rb"(?P<maximum>\d{1,5})\s"]))


def ppm_bits(head: bytes) -> int:
    """Bits a sample, by the beginning of the file; 0 if the header reaches beyond it, or if a sample has one bit."""
    header = _HEADER.match(head)
    return int(header["maximum"]).bit_length() if header else 0


def decode_deep_ppm(file: BinaryIO, head: bytes) -> np.ndarray:
    """Binary PPM (P6) above 8 bits -> (H, W, 3) uint16, its maximum as 65535; `head` is the beginning of the file.

    Raises OSError if the file ends early, ValueError for samples above the maximum.
    """
    header = _HEADER.match(head)
    width, height, top = (int(header[name]) for name in ("width", "height", "maximum"))
    file.seek(header.end())
    data = file.read(6 * width * height)
    if len(data) < 6 * width * height:
        raise OSError("image file is truncated")
    samples = np.frombuffer(data, ">u2").reshape(height, width, 3)
    if samples.max() > top:
        raise ValueError(f"samples up to {samples.max()} where the header says {top}")
    return rescale(samples, top, 65535)
