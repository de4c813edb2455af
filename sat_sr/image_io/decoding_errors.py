"""What Pillow raises on a damaged picture: not only OSError, whatever its decoders and parsers stumble over."""

from __future__ import annotations

import struct
import zlib

from PIL import Image

DECODING_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, OverflowError, EOFError, AttributeError,
    ZeroDivisionError, AssertionError, RuntimeError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
