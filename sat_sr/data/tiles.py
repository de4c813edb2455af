"""Which parts of large photographs are worth training on: tiles chosen by how much detail they hold.

Much of a photograph is blur or sky, from which an upscaler learns little. The measure here is what plain interpolation
loses: reduce a picture 4 times, enlarge it again, and compare (PSNR, the lower the more detail).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from sat_sr.config import LR_FACTOR
from sat_sr.data.tile_grid import tile_starts
from sat_sr.diffusion.resize import resize

CLEAN_JPEG = 80  # pictures of a lower JPEG quality are halved: what compression added would be learnt as detail
STANDARD_LUMINANCE = 57.625  # mean of the luminance table of ITU T.81, annex K


@dataclass(frozen=True)
class Tile:
    """A square of a photograph.

    photo    name of the photograph
    reduced  1, or 2 where the photograph is halved before the tile is cut
    x, y     upper left corner in the (reduced) photograph, pixels
    size     side, pixels
    psnr     of bicubic ×4 on the tile, dB
    """

    photo: str
    reduced: int
    x: int
    y: int
    size: int
    psnr: float

    @property
    def key(self) -> str:
        """A name that says where the tile is from, without dots (they end a key in a WebDataset)."""
        return f"{self.photo}__r{self.reduced}_x{self.x:04d}_y{self.y:04d}".replace(".", "_")


def detail_map(image: Image.Image) -> np.ndarray:
    """Squared error of reducing ×4 and enlarging again by bicubic interpolation.

    image    RGB, sides a multiple of 4
    returns  (H, W) float32, mean over the channels, for values in [0, 1]
    """
    pixels = torch.from_numpy(np.array(image, dtype=np.float32)).div_(255).permute(2, 0, 1)[None]
    small = resize(pixels, (image.height // LR_FACTOR, image.width // LR_FACTOR))
    again = resize(small, (image.height, image.width)).clamp_(0, 1)
    return again.sub_(pixels).square_().mean(dim=1)[0].numpy()


def grid(image: Image.Image, size: int, *, photo: str = "", reduced: int = 1) -> list[Tile]:
    """As many disjoint tiles as fit, spread evenly over the image, each with its PSNR."""
    if min(image.size) < size:
        return []
    error = detail_map(image.crop((0, 0, image.width // LR_FACTOR * LR_FACTOR, image.height // LR_FACTOR * LR_FACTOR)))
    tiles = []
    for y in tile_starts(error.shape[0], size):
        for x in tile_starts(error.shape[1], size):
            mse = float(error[y : y + size, x : x + size].mean(dtype=np.float64))
            tiles.append(Tile(photo, reduced, x, y, size, -10 * float(np.log10(max(mse, 1e-10)))))
    return tiles


def halve(image: Image.Image) -> Image.Image:
    """The image at half its size, each pixel the mean of four (an odd last row or column is dropped)."""
    even = image.crop((0, 0, image.width // 2 * 2, image.height // 2 * 2))
    return even.reduce(2)


def jpeg_quality(image: Image.Image) -> int | None:
    """The quality (1 to 100) that a JPEG was stored with, from the mean of its luminance table; None for other formats.

    The scale is the one of libjpeg and Pillow: 100 - 50·m below its standard table times m = 1, 50/m above it.
    """
    tables = getattr(image, "quantization", None)
    if not tables:
        return None
    multiple = float(np.mean(tables[0])) / STANDARD_LUMINANCE
    return round(100 - 50 * multiple if multiple < 1 else 50 / multiple)


def candidates(image: Image.Image, size: int, *, photo: str, quality: int | None, also_half: bool) -> list[Tile]:
    """Tiles of a photograph at full size, at half size, or both.

    Many photographs are soft at 100 %: the lens's limit, or somebody enlarged them. Halved, they have fewer tiles but
    more detail in each. A photograph of a low JPEG quality is only used halved: its blocks and ringing average away.

    image      RGB
    quality    of the file that the image is from, see jpeg_quality
    also_half  whether the halved photograph counts as one more; the ranking by detail then decides
    """
    if quality is not None and quality < CLEAN_JPEG:
        return grid(halve(image), size, photo=photo, reduced=2)
    full = grid(image, size, photo=photo)
    return full + grid(halve(image), size, photo=photo, reduced=2) if also_half else full


def choose(
    tiles: Sequence[Tile], count: int, *, detailed: float, per_photo: int, smooth_share: float = 0.0
) -> list[Tile]:
    """The most detailed tiles, with some smooth ones so that flat areas are learnt too.

    tiles         of any number of photographs
    count         tiles to choose; fewer come back where there are not as many
    detailed      PSNR in dB below which a tile counts as detailed, the others as smooth
    per_photo     at most so many detailed tiles of one photograph at one size, so that variety stays
    smooth_share  part of the chosen tiles that is smooth, taken from one photograph after another
    returns       tiles, the detailed ones first, each group from much detail to little
    """
    used: dict[tuple[str, int], int] = defaultdict(int)
    chosen = []
    for tile in sorted((tile for tile in tiles if tile.psnr < detailed), key=_by_detail):
        if len(chosen) < round(count * (1 - smooth_share)) and used[tile.photo, tile.reduced] < per_photo:
            used[tile.photo, tile.reduced] += 1
            chosen.append(tile)
    smooth_count = round(len(chosen) * smooth_share / (1 - smooth_share))
    smooth: dict[str, list[Tile]] = defaultdict(list)
    for tile in sorted((tile for tile in tiles if tile.psnr >= detailed), key=_by_detail):
        smooth[tile.photo].append(tile)
    rounds = [(turn, tile) for of_photo in smooth.values() for turn, tile in enumerate(_spaced(of_photo))]
    rounds.sort(key=lambda entry: (entry[0], entry[1].photo))
    return chosen + sorted((tile for _, tile in rounds[:smooth_count]), key=_by_detail)


def _by_detail(tile: Tile) -> tuple:
    return (tile.psnr, tile.key)


def _spaced(tiles: list[Tile]) -> list[Tile]:
    """Reordered so that any first few are spread over the whole list: the middle, the quarters, the eighths, …"""
    order, step = [], len(tiles)
    while step >= 1:
        order += [index for index in range(step // 2, len(tiles), step) if index not in order]
        step //= 2
    return [tiles[index] for index in order]
