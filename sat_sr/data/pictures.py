"""Picture files as training data: finding them, and bringing every kind to 8-bit RGB."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"})
ORIENTATION = 0x0112  # EXIF tag


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


def to_rgb(image: Image.Image) -> tuple[Image.Image, str | None]:
    """The picture as 8-bit RGB, upright, and what had to be converted for that.

    returns  image in mode RGB; and None, "grey", "16-bit", "CMYK", "palette", "alpha" or the name of the mode

    16-bit values are rounded to 8 bits; transparency is laid over white; CMYK is converted without its profile.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "RGB":
        return image, None
    if image.mode.startswith("I") or image.mode == "F":
        if image.mode == "F":
            raise ValueError("floating-point pictures have no fixed range: store them with 8 or 16 bits")
        values = np.asarray(image).astype(np.int64)
        grey = ((values.clip(0, 65535) * 255 + 32767) // 65535).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB"), "16-bit"
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB"), "alpha"
    names = {"L": "grey", "1": "grey", "CMYK": "CMYK", "P": "palette"}
    return image.convert("RGB"), names.get(image.mode, image.mode)
