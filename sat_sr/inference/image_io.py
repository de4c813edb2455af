"""Picture files in and out, exactly: the names to import.

reading.py    file -> Picture        decode.py, deep_tiff.py: samples at full depth
writing.py    pixels -> file         encode.py: the formats, strip by strip
color.py      profiles, CMYK, transparency          metadata.py   EXIF, XMP, resolution, settings
picture.py    Picture, PictureError, formats        storage.py    the safe way to the disk
"""

from sat_sr.inference.color import resize_alpha
from sat_sr.inference.picture import Picture, PictureError
from sat_sr.inference.reading import picture_size, read_picture, read_settings
from sat_sr.inference.writing import check_output, check_output_size, write_picture

__all__ = [
    "Picture", "PictureError", "check_output", "check_output_size", "picture_size", "read_picture", "read_settings",
    "resize_alpha", "write_picture",
]  # fmt: skip
