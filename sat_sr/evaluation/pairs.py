"""Sharp pictures from a folder, and the low-resolution inputs made from them."""

from __future__ import annotations

import hashlib
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sat_sr.config import LR_FACTOR
from sat_sr.data.degradation import degrade
from sat_sr.data.degradation_law import parse_degradation, sample_params
from sat_sr.data.order import evenly
from sat_sr.data.pictures import find_pictures, to_rgb
from sat_sr.evaluation.metrics import LEAST_SIDE, downscale
from sat_sr.image_io.decoding_errors import DECODING_ERRORS


@dataclass(frozen=True)
class Pair:
    """An input and what it should become: lr (h, w, 3) and target (H, W, 3), both uint8 RGB."""

    name: str
    target: np.ndarray
    lr: np.ndarray

    @property
    def digest(self) -> str:
        """Changes whenever a pixel of either picture does."""
        digest = hashlib.sha256()
        for picture in (self.target, self.lr):
            digest.update(repr(picture.shape).encode())
            digest.update(np.ascontiguousarray(picture))
        return digest.hexdigest()[:16]


class Pairs:
    """The usable pictures of a folder, each read when asked for.

    images        folder (searched through) of sharp pictures, or one file
    scale         of the upsampling, more than 1
    degradation   "none": antialiased bicubic alone; or what `parse_degradation` takes ("mild", "strong", a mixture)
    seed          of the degradation; every picture draws from its own generator, seeded with this and its name
    limit         use this many usable pictures, spread over the folder: neighbours are often of one scene
    Attributes    names; skipped {name: reason}; ignored (paths without a picture's suffix); cropped (names)

    Raises ValueError for an invalid scale, limit or degradation, and where no picture is usable; FileNotFoundError.
    """

    def __init__(
        self,
        images: str | Path,
        scale: float = 4.0,
        degradation: str = "none",
        seed: int = 0,
        limit: int | None = None,
    ) -> None:
        if not scale > 1:
            raise ValueError(f"scale {scale:g}: must be more than 1")
        if limit is not None and limit < 1:
            raise ValueError(f"limit {limit}: must be at least 1")
        try:
            self.mixture = None if degradation == "none" else parse_degradation(degradation)
        except ValueError as error:
            raise ValueError(f"{error}; or none, antialiased bicubic alone") from None
        if self.mixture and scale != LR_FACTOR:
            raise ValueError(
                f"degradation {degradation} at scale {scale:g}: it is defined for scale {LR_FACTOR} only; "
                "take --degradation none, or that scale"
            )
        self.scale, self.seed = scale, seed
        found, self.ignored = find_pictures([images])
        folder = Path(images).resolve().name + "/"  # a renamed folder gives the same names, hence the same inputs
        paths = {key.removeprefix(folder): path for key, path in found.items()}
        self.skipped: dict[str, str] = {}
        self.cropped: list[str] = []
        self._paths: dict[str, Path] = {}
        for name in _spread_first(list(paths), limit):
            path = paths[name]
            try:
                _, was_cropped = self._read_target(path)
            except DECODING_ERRORS as error:
                self.skipped[name] = str(error).replace(str(path), path.name)
                continue
            if was_cropped:
                self.cropped.append(name)
            self._paths[name] = path
            if len(self._paths) == limit:
                break
        if not self._paths:
            reasons = "".join(f"\n  {name}: {reason}" for name, reason in self.skipped.items())
            raise ValueError(f"{images}: no usable picture among {len(paths)} picture files{reasons}")

    @property
    def names(self) -> list[str]:
        return sorted(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, name: str) -> Pair:
        """The pair of one of `names`, read and made again each time."""
        target, _ = self._read_target(self._paths[name])
        return Pair(name, target, self._make_lr(name, target))

    def _lr_side(self, side: int) -> int:
        return int(side / self.scale)

    def _read_target(self, path: Path) -> tuple[np.ndarray, bool]:
        """The picture, cut at the right and below to `scale` times a whole number of pixels; and whether it was cut."""
        with Image.open(path) as image:
            target = np.asarray(to_rgb(image)[0])
        height, width = target.shape[:2]
        if min(height, width) < LEAST_SIDE:
            raise ValueError(f"{width}x{height} pixels is too small: both sides must have {LEAST_SIDE} or more")
        new_height, new_width = (round(self._lr_side(side) * self.scale) for side in (height, width))
        if not min(self._lr_side(height), self._lr_side(width)):
            raise ValueError(f"{width}x{height} pixels is too small for scale {self.scale:g}")
        return target[:new_height, :new_width], (new_height, new_width) != (height, width)

    def _make_lr(self, name: str, target: np.ndarray) -> np.ndarray:
        """8 bit, as a user's file would be."""
        if self.mixture is None:
            size = tuple(round(side / self.scale) for side in target.shape[:2])
            return np.rint(downscale(target, size)).astype(np.uint8)
        generator = torch.Generator().manual_seed(zlib.crc32(os.fsencode(f"{self.seed} {name}")))
        batch = torch.tensor(target).permute(2, 0, 1)[None].float() / 255
        lr = degrade(batch, sample_params(self.mixture, 1, generator), generator)
        return lr[0].permute(1, 2, 0).mul(255).round().byte().numpy()


def spread(names: list[str], count: int) -> list[str]:
    """`count` names, or all if there are fewer, at equal distances over the list."""
    return [names[at] for at in evenly(len(names), count)]


def _spread_first(names: list[str], count: int | None) -> list[str]:
    """All names, `count` of them that are spread evenly over the list before the rest."""
    chosen = names if count is None else spread(names, count)
    taken = set(chosen)
    return [*chosen, *(name for name in names if name not in taken)]


def interpolate(lr: np.ndarray, size: tuple[int, int], method: Image.Resampling) -> np.ndarray:
    """The baselines: Pillow's resize of (h, w, 3) uint8 to (H, W)."""
    return np.asarray(Image.fromarray(lr).resize((size[1], size[0]), method))
