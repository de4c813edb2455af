"""Noise that depends on the seed and the place in the picture, and on nothing else.

The same seed gives the same noise on every device, in every mode, for every size of canvas: a picture computed larger
has the same noise in its top left part. Each tile of 64 x 64 pixels has a counter-based random stream of its own
(Philox, Salmon et al. 2011), so any part can be made without the rest.
"""

from __future__ import annotations

from numbers import Integral

import numpy as np
import torch

TILE = 64


def position_noise(
    seed: int, canvas: tuple[int, int], rows: slice = slice(None), columns: slice = slice(None)
) -> torch.Tensor:
    """Unit normal noise. seed 0 <= seed < 2**64, canvas (H, W) -> (1, 3, H, W) float32 on the host.

    rows, columns  the part of the canvas that is made

    Raises ValueError for a seed that is not an integer or out of range.
    """
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= seed < 2**64:
        raise ValueError(f"seed {seed!r}: must be an integer between 0 and 2**64 - 1")
    rows, columns = range(canvas[0])[rows], range(canvas[1])[columns]
    noise = torch.empty(1, 3, len(rows), len(columns))
    for i in range(rows.start // TILE, -(-rows.stop // TILE)):
        for j in range(columns.start // TILE, -(-columns.stop // TILE)):
            stream = np.random.Philox(key=seed, counter=[0, 0, i, j])
            tile = np.random.Generator(stream).standard_normal((TILE, TILE, 3), dtype=np.float32)
            (to_rows, in_rows), (to_columns, in_columns) = _overlap(rows, i), _overlap(columns, j)
            noise[0, :, to_rows, to_columns] = torch.from_numpy(tile).permute(2, 0, 1)[:, in_rows, in_columns]
    return noise


def _overlap(wanted: range, tile: int) -> tuple[slice, slice]:
    """Where a tile is in the part that is wanted, and which part of the tile that is."""
    first, end = max(wanted.start, tile * TILE), min(wanted.stop, (tile + 1) * TILE)
    return slice(first - wanted.start, end - wanted.start), slice(first - tile * TILE, end - tile * TILE)
