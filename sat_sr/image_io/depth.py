"""Samples of one depth as those of another."""

from __future__ import annotations

import numpy as np


def rescale(samples: np.ndarray, tops: int | np.ndarray, new_top: int) -> np.ndarray:
    """Whole numbers from 0 to `tops` -> from 0 to `new_top`, rounded; uint8 or, if they do not fit there, uint16.

    samples  any integers, (…, C)
    tops     of all samples, or (C,) of each channel; up to 65535, as is `new_top`
    """
    dtype, tops = np.uint8 if new_top < 256 else np.uint16, np.asarray(tops, np.uint32)
    if (tops == new_top).all():
        return samples.astype(dtype)
    return ((samples.astype(np.uint32) * np.uint32(new_top) + tops // 2) // tops).astype(dtype)
