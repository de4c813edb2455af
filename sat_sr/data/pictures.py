"""Picture files as training data: finding them, and bringing every kind to 8-bit RGB."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"})
ORIENTATION = 0x0112  # EXIF tag
UPRIGHT = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # its values -> Image.Transpose that undoes them
DECODING_ERRORS = (OSError, SyntaxError, ValueError, TypeError, EOFError, struct.error)
"""Pillow's ways to say that a picture is damaged or of no known kind."""
DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I")  # Pillow's modes of 16-bit grey


def find_pictures(paths: Iterable[str | Path]) -> tuple[dict[str, Path], list[Path]]:
    """All picture files among files and folders (searched through), each with a key that names its source.

    A key is the folder's name and the path below it, without the suffix: `holiday/beach/0001` for beach/0001.jpg in
    holiday/. Dots become underscores, as WebDataset ends a key at the first dot. Equal keys get `_2`, `_3`, … appended.

    returns  {key: path} in the order given, folders sorted; and the files whose suffix is not one of SUFFIXES

    Raises FileNotFoundError for a path that is not there.
    """
    pictures: dict[str, Path] = {}
    others: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"{path}: there is no such file or folder")
        root = path.resolve().parent
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if not file.is_file():
                continue
            if file.suffix.lower() not in SUFFIXES:
                others.append(file)
                continue
            parents = path.resolve() / file.relative_to(path) if path.is_dir() else file.resolve()
            name = parents.relative_to(root).with_suffix("").as_posix() if path.is_dir() else file.stem
            key = unique = name.replace(".", "_")
            number = 1
            while unique in pictures:
                number += 1
                unique = f"{key}_{number}"
            pictures[unique] = file
    return pictures, others


def orientation(image: Image.Image) -> int:
    """1 to 8, from EXIF; 1, upright, where there is none or it is damaged: that need not cost the picture."""
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except DECODING_ERRORS:
        return 1
    return found if found in UPRIGHT else 1


def to_rgb(image: Image.Image) -> tuple[Image.Image, str | None]:
    """The picture as 8-bit RGB, upright, and what had to be converted for that.

    returns  image in mode RGB; and None, "grey", "16-bit", "CMYK", "palette", "alpha" or the name of the mode

    image must not be loaded yet. 16-bit grey is rounded to 8 bits; of 16-bit colours Pillow gives the upper 8.
    Transparency is laid over white; CMYK is converted without its profile.

    Raises ValueError for values without a fixed range: floating point, or integers of more than 16 bits.
    """
    deep = any("16" in raw for raw in _raw_modes(image))  # not to be seen once it is loaded
    turned = orientation(image)
    if turned != 1:  # not by ImageOps.exif_transpose: it rewrites the other EXIF tags, and fails if one is damaged
        image = image.transpose(Image.Transpose(UPRIGHT[turned]))
    if image.mode == "RGB":
        return image, "16-bit" if deep else None
    if image.mode == "F":
        raise ValueError("floating-point pictures have no fixed range: store them with 8 or 16 bits")
    if image.mode in DEEP:
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("integers of more than 16 bits have no fixed range: store them with 8 or 16 bits")
        grey = ((values * 255 + 32767) // 65535).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB"), "16-bit"
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB"), "alpha"
    names = {"L": "grey", "1": "grey", "CMYK": "CMYK", "P": "palette"}
    return image.convert("RGB"), names.get(image.mode, image.mode)


def _raw_modes(image: Image.Image) -> list[str]:
    """How the values lie in the file, "RGB;16B" for one."""
    return [args if isinstance(args, str) else str(args[0]) for *_, args in getattr(image, "tile", []) if args]
