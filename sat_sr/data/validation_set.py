"""A finite, fixed list of samples: the same pictures, the same crops and the same degradation each time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sat_sr.data.conditions import make_conditions
from sat_sr.data.crops import center_crop, center_pair
from sat_sr.data.degradation_law import Mixture, parse_degradation
from sat_sr.data.order import VALIDATION, evenly, torch_generator
from sat_sr.data.samples import DecodedSample, Unusable, decode, read_shard
from sat_sr.data.shards import expand_shards
from sat_sr.data.tensors import Sample, checked_size, unit
from sat_sr.diffusion.resize import lr_conditions


def validation_samples(
    spec: str | Sequence[str],
    *,
    image_size: int,
    degradation: str = "clean",
    seed: int = 0,
    limit: int | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> tuple[list[Sample], Counter[str]]:
    """This rank's part of the samples, and what was skipped or converted among them, by reason.

    A sample is the middle of a picture, see `sat_sr.data.tensors`; without LR dropout. Where the shards hold more than
    `limit` samples, those are taken that stand at equal distances over all the shards, as neighbours may be of one
    photograph. For that the shards are read twice, first to count; what is not of this rank's part is not decoded.
    A sample that cannot be used is missing then, and counted; broken shards are counted by rank 0.

    limit  number of samples of all ranks together, None: all
    """
    shards, mixture, size = expand_shards(spec), parse_degradation(degradation), checked_size(image_size)
    counts, of_shards = Counter(), Counter()
    total = sum(1 for url in shards for _ in read_shard(url, of_shards))
    number_at = {at: number for number, at in enumerate(evenly(total, limit)) if number % world_size == rank}
    samples = []
    for at, raw in enumerate(raw for url in shards for raw in read_shard(url, Counter())):
        if at not in number_at:
            continue
        try:
            picture = decode(raw, size, counts)
        except Unusable as reason:
            counts[str(reason)] += 1
            continue
        samples.append(_sample(picture, size, mixture, seed, number_at[at]))
    return samples, counts + of_shards if rank == 0 else counts


def _sample(picture: DecodedSample, size: int, mixture: Mixture, seed: int, number: int) -> Sample:
    if picture.lr is None:
        target = unit(center_crop(picture.image, size))
        generator = torch_generator(VALIDATION, seed, 0, 0, 0, number)
        lr, up = make_conditions(target[None], mixture, generator, lr_dropout=0.0)
    else:
        crop, low = center_pair(picture.image, picture.lr, size)
        target = unit(crop)
        lr, up = lr_conditions(unit(low)[None], (size, size))
    return {"target": target, "lr": lr[0], "lr_upsampled": up[0], "__key__": picture.key}
