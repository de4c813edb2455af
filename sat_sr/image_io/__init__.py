"""Picture files in and out, exactly.

picture.py    Picture, PictureError, formats; light
reading.py    file -> Picture        decode.py, png.py, own_tiff.py: samples at full depth; embedded.py: profiles, XMP
writing.py    pixels -> file         encode.py: the formats, strip by strip
color.py      profiles, CMYK, transparency          metadata.py   EXIF, XMP, resolution, settings
storage.py    the safe way to the disk; light
"""

from importlib import import_module

# Imported on first use: reading and writing need torch, whose import takes seconds.
_EXPORTS = {
    "Picture": "picture",
    "PictureError": "picture",
    "check_output": "writing",
    "check_output_size": "writing",
    "picture_size": "reading",
    "read_picture": "reading",
    "read_settings": "reading",
    "resize_alpha": "color",
    "write_picture": "writing",
}

__all__ = [*_EXPORTS]


def __getattr__(name: str):
    if name in _EXPORTS:
        return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
