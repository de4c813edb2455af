"""From a shard to decoded pictures: whatever is wrong with a file costs that file, is counted, and is never fatal."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from webdataset.tariterators import tarfile_samples

from sat_sr.config import LR_FACTOR
from sat_sr.data.pictures import to_rgb
from sat_sr.data.shards import URL
from sat_sr.picture_errors import DECODING_ERRORS

PICTURE_KEYS = ("jpg", "png", "jpeg")
LR_KEYS = ("lr.jpg", "lr.png", "lr.jpeg")


class Unusable(Exception):
    """A sample that cannot be trained on; its text is the reason that is counted."""


@dataclass(frozen=True)
class Picture:
    """A decoded sample.

    key    as in the shard
    image  (3,H,W) uint8
    lr     (3,H/4,W/4) uint8 where the shard holds pairs, else None
    """

    key: str
    image: torch.Tensor
    lr: torch.Tensor | None = None

    @property
    def nbytes(self) -> int:
        return self.image.nbytes + (0 if self.lr is None else self.lr.nbytes)


def read_shard(url: str, counts: Counter[str]) -> Iterator[dict]:
    """The samples of one tar as webdataset groups them: `__key__` and the undecoded bytes of each file.

    A tar that cannot be opened or breaks off counts as one "broken shard"; what it holds before is used, but for the
    sample at the break, which may be incomplete.
    """
    broken = False

    def handler(error: Exception) -> bool:
        nonlocal broken
        if isinstance(error, ValueError) and "duplicate file name" in str(error):
            counts["duplicate file in a shard"] += 1
        elif not broken:
            broken = True
            counts["broken shard"] += 1
        return True

    if not URL.match(url):
        url = os.path.abspath(url)  # webdataset takes the name of a file before a colon for a scheme
    for sample in tarfile_samples([{"url": url}], handler=handler):
        if not broken:
            yield sample


def decode(sample: dict, min_side: int, counts: Counter[str]) -> Picture:
    """Decode a sample of `read_shard`; conversions to 8-bit RGB are counted.

    Raises Unusable with the reason, one of: "no jpg or png", "undecodable", "too small",
    "too many pixels", "pair that does not match".
    """
    data = _first(sample, PICTURE_KEYS)
    if data is None:
        raise Unusable("no jpg or png")
    image = _decode(data, min_side, counts)
    lr = _first(sample, LR_KEYS)
    if lr is None:
        return Picture(sample["__key__"], image)
    lr = _decode(lr, 1, counts)
    if image.shape[-2] != LR_FACTOR * lr.shape[-2] or image.shape[-1] != LR_FACTOR * lr.shape[-1]:
        raise Unusable("pair that does not match")
    return Picture(sample["__key__"], image, lr)


def _first(sample: dict, keys: tuple[str, ...]) -> bytes | None:
    return next((sample[key] for key in keys if key in sample), None)


def _decode(data: bytes, min_side: int, counts: Counter[str]) -> torch.Tensor:
    try:
        with Image.open(io.BytesIO(data)) as image:
            if min(image.size) < min_side:
                raise Unusable("too small")
            rgb, converted = to_rgb(image)
            pixels = np.array(rgb)
    except Image.DecompressionBombError as error:
        raise Unusable("too many pixels") from error
    except DECODING_ERRORS as error:
        raise Unusable("undecodable") from error
    if converted:
        counts[f"converted: {converted}"] += 1
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
