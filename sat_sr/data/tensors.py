"""Samples as the network takes them: dicts of float32 tensors in [-1, 1].

    target        (3,S,S)      the sharp crop
    lr            (3,S/4,S/4)  its degraded partner
    lr_upsampled  (3,S,S)      the same, resized and clipped
    __key__       its name in the shard

A batch has one more dimension in front, and a list of names.
"""

from __future__ import annotations

from typing import Any

import torch

from sat_sr.config import LR_FACTOR

Sample = dict[str, Any]


def unit(image: torch.Tensor) -> torch.Tensor:
    """uint8 -> float32 in [-1, 1]"""
    return image.to(torch.float32).div_(127.5).sub_(1)


def collate(samples: list[Sample]) -> Sample:
    """Samples -> one batch: tensors stacked, keys in a list."""
    return {
        name: [sample[name] for sample in samples]
        if name == "__key__"
        else torch.stack([sample[name] for sample in samples])
        for name in samples[0]
    }


def checked_size(image_size: int) -> int:
    """S itself. Raises ValueError for what no LR picture can be made of."""
    if image_size < LR_FACTOR or image_size % LR_FACTOR:
        raise ValueError(f"image_size={image_size}: a positive multiple of {LR_FACTOR} is wanted")
    return image_size
