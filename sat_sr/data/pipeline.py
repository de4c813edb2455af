"""Shards -> batches for training, exact to the sample; and a finite, fixed list of samples for validation.

What a worker yields is a function of (seed, rank, worker) alone. Each goes through all shards again and again, each
time in an order of its own. A sample has an address, (n, i): the i-th of the n-th shard in that order. Everything that
chance decides about a sample follows from its address, so a stream can start anywhere: it opens that one shard, passes
over i undecoded files, and yields what an uninterrupted stream would.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from sat_sr.config import LR_FACTOR
from sat_sr.data.conditions import drop_lr, make_conditions
from sat_sr.data.crops import AUGMENTATIONS, center_crop, center_pair, paired_crop, training_crop
from sat_sr.data.degradation_law import Mixture, parse_degradation
from sat_sr.data.samples import Picture, Unusable, decode, read_shard
from sat_sr.data.shards import expand_shards
from sat_sr.data.workers import UnusableData, load_batches
from sat_sr.diffusion.resize import lr_conditions

SHUFFLE_WINDOW = 256  # undecoded samples of a shard held in memory to draw from
SHARD_ORDER, SAMPLE_ORDER, SAMPLE, VALIDATION = range(4)  # what random numbers are for: no two uses share a seed

Address = tuple[int, int]
Sample = dict[str, Any]


def training_stream(
    spec: str | Sequence[str],
    *,
    image_size: int,
    batch_size: int = 1,
    degradation: str | None = "strong",
    seed: int = 0,
    rank: int = 0,
    num_workers: int = 0,
    lr_dropout: float = 0.07,
    augment: str = "release",
    cache_bytes: int = 0,
) -> TrainingStream:
    """Endless batches of training samples, each a dict of

        target        (B,3,S,S)      the sharp crop
        lr            (B,3,S/4,S/4)  its degraded partner, or noise (lr_dropout)
        lr_upsampled  (B,3,S,S)      the same, resized and clipped
        __key__       B names as in the shards

    all float32 in [-1, 1], on the CPU. Pairs in the shards (`jpg` or `png` with `lr.jpg` or `lr.png`, a quarter of the
    side) are used as they are, without degradation.

    spec         which shards, see `expand_shards`; a list of such texts names them all
    image_size   S, a multiple of 4; pictures with a side below it are skipped
    degradation  see `parse_degradation`; None: batches hold the target and its key only, for `make_conditions` on a GPU
    seed, rank   of this process: with another rank comes another stream
    num_workers  processes that read and degrade; 0: this one does. A batch comes from one of them, in turn
    lr_dropout   probability that the LR inputs are noise
    augment      "release", "full" or "tone", see `training_crop`
    cache_bytes  decoded pictures that each worker keeps, for small sets; changes nothing but the time it takes

    Raises ValueError for a spec that matches nothing and for arguments out of range; UnusableData, which is one, while
    iterating, for a whole pass over all the shards that yields nothing usable.
    """
    return TrainingStream(
        _Worker(
            shards=expand_shards(spec),
            image_size=_checked_size(image_size),
            mixture=None if degradation is None else parse_degradation(degradation),
            seed=seed,
            rank=rank,
            lr_dropout=lr_dropout,
            augment=augment,
            cache_bytes=cache_bytes,
        ),
        batch_size,
        num_workers,
    )


class TrainingStream:
    """What `training_stream` gives. Iterating takes up where the last iteration, or a loaded state, left off."""

    def __init__(self, source: _Worker, batch_size: int, num_workers: int) -> None:
        if batch_size < 1 or num_workers < 0:
            raise ValueError(f"batch_size={batch_size}, num_workers={num_workers}: at least 1 and 0 are wanted")
        self.batch_size, self.num_workers = batch_size, num_workers
        self._source = source
        streams = max(1, num_workers)
        self._turn = 0
        self._addresses: list[Address] = [(0, 0)] * streams
        self._counts: list[dict[str, int]] = [{} for _ in range(streams)]

    @property
    def counts(self) -> Counter[str]:
        """How many samples were skipped or converted so far, by reason, over all workers and since the first start."""
        return sum((Counter(counts) for counts in self._counts), Counter())

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is after the batches handed out so far (those prefetched do not count): plain numbers."""
        return {
            "turn": self._turn,
            "addresses": [list(address) for address in self._addresses],
            "counts": [dict(counts) for counts in self._counts],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue behind the batches that were handed out when `state` was made.

        Raises ValueError when another number of workers made it: their streams are not the ones of these workers.
        """
        if len(state["addresses"]) != len(self._addresses):
            raise ValueError(
                f"the data position was saved with --num-workers {len(state['addresses'])} and cannot be continued "
                f"with {self.num_workers}: give the same number, or start the data anew"
            )
        self._turn = state["turn"]
        self._addresses = [tuple(address) for address in state["addresses"]]
        self._counts = [dict(counts) for counts in state["counts"]]

    def __iter__(self) -> Iterator[Sample]:
        source = self._source.placed(self._turn, self._addresses, self._counts)
        batches = load_batches(source, self.batch_size, self.num_workers, _collate_addressed)
        for batch, address, counts in batches:
            # The workers are asked in turn, and worker 0 was given the stream whose turn it is.
            self._addresses[self._turn] = address
            self._counts[self._turn] = counts
            self._turn = (self._turn + 1) % len(self._addresses)
            yield batch


class _Worker(IterableDataset):
    """One process's endless stream of (sample, address behind it, counts so far)."""

    def __init__(
        self,
        *,
        shards: list[str],
        image_size: int,
        mixture: Mixture | None,
        seed: int,
        rank: int,
        lr_dropout: float,
        augment: str,
        cache_bytes: int,
    ) -> None:
        if seed < 0 or rank < 0:
            raise ValueError(f"seed={seed}, rank={rank}: numbers from 0 on are wanted")
        if not 0 <= lr_dropout <= 1:
            raise ValueError(f"lr_dropout={lr_dropout}: a probability is wanted, 0 to 1")
        if augment not in AUGMENTATIONS:
            raise ValueError(f"augment={augment!r}: known are {', '.join(AUGMENTATIONS)}")
        self.shards, self.image_size, self.mixture = shards, image_size, mixture
        self.seed, self.rank, self.lr_dropout, self.augment = seed, rank, lr_dropout, augment
        self.cache_bytes = cache_bytes
        self._cache: dict[tuple[str, int], Picture] = {}
        self._cached = 0
        self._start: tuple[int, list[Address], list[dict[str, int]]] = (0, [(0, 0)], [{}])

    def placed(self, turn: int, addresses: list[Address], counts: list[dict[str, int]]) -> _Worker:
        """The same data, to begin at these addresses, with the stream number `turn` first."""
        self._start = (turn, list(addresses), list(counts))
        return self

    def __iter__(self) -> Iterator[tuple[Sample, Address, dict[str, int]]]:
        turn, addresses, counts = self._start
        info = get_worker_info()
        worker = (turn + (info.id if info else 0)) % len(addresses)
        return self._stream(worker, *addresses[worker], Counter(counts[worker]))

    def _stream(self, worker: int, n: int, i: int, counts: Counter[str]) -> Iterator[tuple[Sample, Address, dict]]:
        usable_in_pass = i > 0 or n % len(self.shards) > 0  # of a pass begun in the middle we cannot say
        while True:
            url = self._shard(worker, n)
            found, known = Counter(), Counter()  # broken and duplicate files of this shard
            for at, (number, raw) in enumerate(self._shuffled(worker, n, read_shard(url, found))):
                if at < i:
                    known = found.copy()  # was counted before the stream was left
                    continue
                counts.update(found - known)
                known = found.copy()
                try:
                    picture = self._decoded(url, number, raw, counts)
                except Unusable as reason:
                    counts[str(reason)] += 1
                    continue
                usable_in_pass = True
                yield (
                    self._sample(picture, _generator(SAMPLE, self.seed, self.rank, worker, n, at)),
                    (n, at + 1),
                    dict(counts),
                )
            counts.update(found - known)
            n, i = n + 1, 0
            if n % len(self.shards) == 0:
                if not usable_in_pass:
                    raise UnusableData(_nothing_usable(self.shards, counts, self.image_size))
                usable_in_pass = False

    def _shard(self, worker: int, n: int) -> str:
        turn, at = divmod(n, len(self.shards))
        order = _numpy_rng(SHARD_ORDER, self.seed, self.rank, worker, turn).permutation(len(self.shards))
        return self.shards[order[at]]

    def _shuffled(self, worker: int, n: int, samples: Iterable[dict]) -> Iterator[tuple[int, dict]]:
        """Samples with their number in the shard, shuffled within windows so that little is held in memory."""
        rng = _numpy_rng(SAMPLE_ORDER, self.seed, self.rank, worker, n)
        numbered = enumerate(samples)
        while window := list(islice(numbered, SHUFFLE_WINDOW)):
            for at in rng.permutation(len(window)):
                yield window[at]

    def _decoded(self, url: str, number: int, raw: dict, counts: Counter[str]) -> Picture:
        if picture := self._cache.get((url, number)):
            return picture
        picture = decode(raw, self.image_size, counts)
        if self._cached + picture.nbytes <= self.cache_bytes:
            self._cache[url, number] = picture
            self._cached += picture.nbytes
        return picture

    def _sample(self, picture: Picture, generator: torch.Generator) -> Sample:
        if picture.lr is None:
            target = _unit(training_crop(picture.image, self.image_size, generator, self.augment))
            if self.mixture is None:
                return {"target": target, "__key__": picture.key}
            lr, up = make_conditions(target[None], self.mixture, generator, self.lr_dropout)
        else:
            crop, low = paired_crop(picture.image, picture.lr, self.image_size, generator, self.augment)
            if self.mixture is None:
                raise UnusableData(
                    f"sample {picture.key!r} is a pair: its LR inputs are made here, not by a later degradation; "
                    "give a degradation, which only pictures without a partner go through"
                )
            target = _unit(crop)
            lr, up = lr_conditions(_unit(low)[None], (self.image_size, self.image_size))
            lr, up = drop_lr(lr, up, self.lr_dropout, generator)
        return {"target": target, "lr": lr[0], "lr_upsampled": up[0], "__key__": picture.key}


def validation_samples(
    spec: str | Sequence[str], *, image_size: int, degradation: str = "clean", seed: int = 0, limit: int | None = None
) -> Iterator[Sample]:
    """The same samples every time: the middle of each picture, in the order of the shards, degraded with fixed seeds.

    Dicts as of `training_stream`, without a batch dimension (see `collate`) and without LR dropout.
    limit  number of samples, None: all

    Raises UnusableData when there is not a single one.
    """
    shards, mixture, counts = expand_shards(spec), parse_degradation(degradation), Counter()
    size = _checked_size(image_size)
    number = -1
    for number, picture in enumerate(islice(_pictures(shards, size, counts), limit)):
        if picture.lr is None:
            target = _unit(center_crop(picture.image, size))
            lr, up = make_conditions(
                target[None], mixture, _generator(VALIDATION, seed, 0, 0, 0, number), lr_dropout=0.0
            )
        else:
            crop, low = center_pair(picture.image, picture.lr, size)
            target = _unit(crop)
            lr, up = lr_conditions(_unit(low)[None], (size, size))
        yield {"target": target, "lr": lr[0], "lr_upsampled": up[0], "__key__": picture.key}
    if number < 0 and limit != 0:
        raise UnusableData(_nothing_usable(shards, counts, size))


def read_pictures(
    spec: str | Sequence[str], *, min_side: int = 1, counts: Counter[str] | None = None
) -> Iterator[Picture]:
    """Every usable picture of the shards once, in their order: to hold a small set in memory.

    counts  takes up what was skipped or converted
    """
    return _pictures(expand_shards(spec), min_side, Counter() if counts is None else counts)


def collate(samples: list[Sample]) -> Sample:
    """Samples -> one batch: tensors stacked, keys in a list."""
    return {
        name: [sample[name] for sample in samples]
        if name == "__key__"
        else torch.stack([sample[name] for sample in samples])
        for name in samples[0]
    }


def _pictures(shards: list[str], min_side: int, counts: Counter[str]) -> Iterator[Picture]:
    for url in shards:
        for raw in read_shard(url, counts):
            try:
                yield decode(raw, min_side, counts)
            except Unusable as reason:
                counts[str(reason)] += 1


def _collate_addressed(items: list[tuple[Sample, Address, dict[str, int]]]) -> tuple[Sample, Address, dict[str, int]]:
    samples = [sample for sample, _, _ in items]
    _, address, counts = items[-1]
    return collate(samples), address, counts


def _nothing_usable(shards: list[str], counts: Counter[str], image_size: int) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts.most_common()) or "they are empty"
    return (
        f"no picture of at least {image_size}x{image_size} pixels in {len(shards)} shards ({shards[0]}"
        f"{', …' if len(shards) > 1 else ''}): {reasons}; check --train-data and --valid-data, or lower --image-size"
    )


def _checked_size(image_size: int) -> int:
    if image_size < LR_FACTOR or image_size % LR_FACTOR:
        raise ValueError(f"image_size={image_size}: a positive multiple of {LR_FACTOR} is wanted")
    return image_size


def _unit(image: torch.Tensor) -> torch.Tensor:
    """uint8 -> float32 in [-1, 1]"""
    return image.to(torch.float32).div_(127.5).sub_(1)


def _seed_sequence(purpose: int, *numbers: int) -> np.random.SeedSequence:
    return np.random.SeedSequence([purpose, *numbers])


def _numpy_rng(purpose: int, *numbers: int) -> np.random.Generator:
    return np.random.default_rng(_seed_sequence(purpose, *numbers))


def _generator(purpose: int, *numbers: int) -> torch.Generator:
    words = _seed_sequence(purpose, *numbers).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0] >> 1))
