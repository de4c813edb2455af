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


def position_noise(seed: int, canvas: tuple[int, int]) -> torch.Tensor:
    """Unit normal noise. seed 0 <= seed < 2**64, canvas (H, W) -> (1, 3, H, W) float32 on the host.

    Raises ValueError for a seed that is no integer or out of range.
    """
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= seed < 2**64:
        raise ValueError(f"seed {seed!r}: must be an integer between 0 and 2**64 - 1")
    height, width = canvas
    noise = torch.empty(1, 3, height, width)
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            stream = np.random.Philox(key=seed, counter=[0, 0, top // TILE, left // TILE])
            tile = np.random.Generator(stream).standard_normal((TILE, TILE, 3), dtype=np.float32)
            part = noise[0, :, top : top + TILE, left : left + TILE]
            part.copy_(torch.from_numpy(tile).permute(2, 0, 1)[:, : part.shape[1], : part.shape[2]])
    return noise
