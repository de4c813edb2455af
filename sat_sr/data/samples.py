"""From a shard to decoded pictures: whatever is wrong with a file costs that file, is counted, and is never fatal."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from webdataset.gopen import gopen
from webdataset.tariterators import base_plus_ext

from sat_sr.config import LR_FACTOR
from sat_sr.data.pictures import to_rgb
from sat_sr.data.shards import URL
from sat_sr.data.tar_members import Break, read_members
from sat_sr.data.workers import UnusableData
from sat_sr.image_io.decoding_errors import DECODING_ERRORS

PICTURE_KEYS = ("jpg", "png", "jpeg")
LR_KEYS = ("lr.jpg", "lr.png", "lr.jpeg")
_META = re.compile(r"__[^/]*__($|/)")  # the notes of webdataset in a tar


class Unusable(Exception):
    """A sample that cannot be trained on; its text is the reason that is counted."""


@dataclass(frozen=True)
class DecodedSample:
    """A picture of a shard, with its pair if it has one.

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
    """The samples of one tar: `__key__`, the name up to its first dot, and the undecoded bytes of each file by the rest
    of its name. Files of one sample stand side by side, as webdataset wants them.

    A tar that cannot be opened, is damaged or breaks off counts as one "broken shard". What it holds before and after
    the damage is used, but for the samples on either side of it, which may lack a file. Where nothing but the mark of
    its end is missing, the last sample is used.
    """
    sample: dict = {}
    whole = True  # whether the sample that is being put together began at its first file
    broken = False

    def count_broken() -> None:
        nonlocal broken
        counts["broken shard"] += not broken
        broken = True

    try:
        # webdataset takes the name of a file before a colon for a scheme.
        with contextlib.closing(gopen(url if URL.match(url) else os.path.abspath(url))) as stream:
            for member in read_members(stream):
                if isinstance(member, Break):
                    count_broken()
                    between_samples = member is not Break.DAMAGE
                    if sample and whole and between_samples:
                        yield sample
                    sample, whole = {}, between_samples
                    continue
                name, data = member
                key, kind = base_plus_ext(name)
                if key is None or _META.match(name):
                    continue
                if sample and key != sample["__key__"]:
                    if whole:
                        yield sample
                    sample, whole = {}, True
                sample.setdefault("__key__", key)
                if kind.lower() in sample:
                    counts["duplicate file in a shard"] += 1
                else:
                    sample[kind.lower()] = data
    except Exception:  # of the network, a command, a decompressor, tarfile: no shard ends a run
        count_broken()
        return
    if sample and whole:
        yield sample


def decode(sample: dict, min_side: int, counts: Counter[str]) -> DecodedSample:
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
        return DecodedSample(sample["__key__"], image)
    lr = _decode(lr, 1, counts)
    if image.shape[-2] != LR_FACTOR * lr.shape[-2] or image.shape[-1] != LR_FACTOR * lr.shape[-1]:
        raise Unusable("pair that does not match")
    return DecodedSample(sample["__key__"], image, lr)


def nothing_usable(shards: list[str], counts: Counter[str], image_size: int) -> UnusableData:
    """The error that says so of all of them, and why."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts.most_common()) or "they are empty"
    return UnusableData(
        f"no picture of at least {image_size}x{image_size} pixels in {len(shards)} shards ({shards[0]}"
        f"{', …' if len(shards) > 1 else ''}): {reasons}; check --train-data and --valid-data, or lower --image-size"
    )


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
