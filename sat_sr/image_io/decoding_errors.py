"""What Pillow raises on a damaged picture: not only OSError, but whatever its decoders and parsers stumble over."""

from __future__ import annotations

import struct
import zlib

from PIL import Image

# On damaged or oddly typed entries of EXIF, which it parses and writes without decoding pixels.
EXIF_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, OverflowError, AttributeError,
    ZeroDivisionError, struct.error,
)  # fmt: skip
DECODING_ERRORS = (
    *EXIF_ERRORS, EOFError, AssertionError, RuntimeError, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
