"""Picture files as training data: finding them, and bringing every kind to 8-bit RGB."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from sat_sr.data.folders import files_below
from sat_sr.image_io.decoding_errors import DECODING_ERRORS
from sat_sr.image_io.png import correct_transparent_level

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"})
ORIENTATION = 0x0112  # EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


def find_pictures(paths: Iterable[str | Path]) -> tuple[dict[str, Path], list[Path]]:
    """All picture files among files and folders (see `files_below`), each with a key that names its source.

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
        for file in files_below(path) if path.is_dir() else [path]:
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


def to_rgb(image: Image.Image) -> tuple[Image.Image, str | None]:
    """The picture as 8-bit RGB, upright, and what had to be converted for that.

    image    opened, not loaded yet: later nothing tells that its colours had 16 bits
    returns  image in mode RGB; and None, "grey", "16-bit", "CMYK", "palette", "alpha" or the name of the mode

    16-bit grey is rounded to 8 bits, of 16-bit colour Pillow keeps the upper 8; transparency is laid over white; CMYK
    is converted without its profile.

    Raises one of DECODING_ERRORS for a damaged picture, ValueError for one of floating-point or 32-bit values.
    """
    deep, tiff = _has_deep_colour(image), image.format == "TIFF"
    correct_transparent_level(image)
    image.load()
    info, turn = image.info, _TURNS.get(orientation(image))  # not earlier: a PNG's EXIF may come after its pixels
    if turn is not None and not tiff:  # Pillow turns TIFF itself
        image = image.transpose(turn)
    if image.mode == "RGB" and "transparency" not in info:
        return image, "16-bit" if deep else None
    if image.mode == "F":
        raise ValueError("floating-point pictures have no fixed range: store them with 8 or 16 bits")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if image.mode == "I" and (tiff or values.min() < 0 or values.max() > 65535):
            raise ValueError("signed and 32-bit values have no fixed white: store them with 8 or 16 bits")
        grey = ((values * 255 + 32767) // 65535).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB"), "16-bit"
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB"), "alpha"
    names = {"L": "grey", "1": "grey", "CMYK": "CMYK", "P": "palette"}
    return image.convert("RGB"), names.get(image.mode, image.mode)


def orientation(image: Image.Image) -> int:
    """EXIF's 1 (upright) to 8; 1 where a picture says nothing, or nothing that can be read: its pixels may be good."""
    try:
        stored = image.getexif().get(ORIENTATION, 1)
    except DECODING_ERRORS:
        return 1
    return stored if stored in _TURNS else 1


def _has_deep_colour(image: Image.Image) -> bool:
    """Whether the file of a picture that is not loaded yet stores colours of 16 bits."""
    stored_as = [tile[3] if isinstance(tile[3], str) else str(tile[3][0]) for tile in image.tile]
    return any(mode.startswith("RGB") and ";16" in mode for mode in stored_as)
