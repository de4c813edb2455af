"""Shards -> endless batches for training, exact to the sample.

Each worker of each rank yields one stream: a function of the seed, the shards, and which stream of how many it is. It
goes through its shards epoch after epoch (`sat_sr.data.order`). A sample has an address, (epoch, n, i): the i-th of the
n-th shard in that epoch. Everything that chance decides about a sample follows from its address, so a stream can start
anywhere: it opens that one shard, skips i undecoded samples, and yields what an uninterrupted stream would.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from sat_sr.data.conditions import drop_lr, make_conditions
from sat_sr.data.crops import AUGMENTATIONS, paired_crop, training_crop
from sat_sr.data.degradation_law import Mixture, parse_degradation
from sat_sr.data.order import SAMPLE, SAMPLE_ORDER, numpy_rng, shards_of_epoch, shuffled, torch_generator
from sat_sr.data.samples import DecodedSample, Unusable, decode, nothing_usable, read_shard
from sat_sr.data.shards import expand_shards
from sat_sr.data.tensors import Sample, checked_size, collate, unit
from sat_sr.data.workers import UnusableData, load_batches
from sat_sr.diffusion.resize import lr_conditions

Address = tuple[int, int, int]
START: Address = (0, 0, 0)


def training_stream(
    spec: str | Sequence[str],
    *,
    image_size: int,
    batch_size: int = 1,
    degradation: str | None = "strong",
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
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
    seed         all ranks have the same
    rank         of this process, of world_size: each has other samples
    num_workers  processes that read and degrade; 0: this one does. A batch comes from one of them, in turn
    lr_dropout   probability that the LR inputs are noise
    augment      "release", "full" or "tone", see `training_crop`
    cache_bytes  decoded pictures that each worker keeps, for small sets; changes nothing but the time it takes

    Raises ValueError for a spec that matches nothing and for arguments out of range; UnusableData, which is one, while
    iterating, where one stream has met every shard, which may take several epochs, and found nothing usable.
    """
    if batch_size < 1 or num_workers < 0:
        raise ValueError(f"batch_size={batch_size}, num_workers={num_workers}: at least 1 and 0 are wanted")
    if seed < 0 or not 0 <= rank < world_size:
        raise ValueError(
            f"seed={seed}, rank={rank} of {world_size}: numbers from 0 on are wanted, a rank below their count"
        )
    return TrainingStream(
        _SampleStream(
            shards=expand_shards(spec),
            image_size=checked_size(image_size),
            mixture=None if degradation is None else parse_degradation(degradation),
            seed=seed,
            first_stream=rank * max(1, num_workers),
            streams=world_size * max(1, num_workers),
            lr_dropout=lr_dropout,
            augment=augment,
            cache_bytes=cache_bytes,
        ),
        batch_size,
        num_workers,
    )


STREAM_STATE = frozenset(("next_worker", "addresses", "counts"))  # keys of TrainingStream.state_dict


class TrainingStream:
    """What `training_stream` gives. Iterating continues where the last iteration, or what `resume` got, left off."""

    def __init__(self, source: _SampleStream, batch_size: int, num_workers: int) -> None:
        self.batch_size, self.num_workers = batch_size, num_workers
        self._source = source
        streams = max(1, num_workers)
        self._next_worker = 0  # whose batch comes next
        self._addresses: list[Address] = [START] * streams
        self._counts: list[dict[str, int]] = [{} for _ in range(streams)]

    @property
    def shards(self) -> list[str]:
        """All of them, of all ranks."""
        return self._source.shards

    @property
    def streams(self) -> int:
        """How many there are, over all workers of all ranks."""
        return self._source.streams

    @property
    def counts(self) -> Counter[str]:
        """How many samples were skipped or converted so far, by reason, over all workers and since the first start."""
        return sum((Counter(counts) for counts in self._counts), Counter())

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is after the batches handed out so far (those prefetched do not count): plain numbers."""
        return {
            "next_worker": self._next_worker,
            "addresses": [list(address) for address in self._addresses],
            "counts": [dict(counts) for counts in self._counts],
        }

    def resume(self, states: Sequence[dict[str, Any]]) -> str:
        """Continue after the batches that were handed out when each rank made its `state_dict`.

        states  of all ranks, in their order

        returns  "" where the samples follow as if nothing had happened. Else why they do not: other numbers of ranks or
                 workers are dealt other shards. Then an epoch begins that none of them had reached, and the counts are
                 kept
        """
        workers = len(self._addresses)
        rank, ranks = self._source.first_stream // workers, self._source.streams // workers
        addresses = [address for state in states for address in state["addresses"]]
        dealt, deal = (len(states), len(addresses) // len(states)), (ranks, workers)
        if dealt == deal:
            self._next_worker = states[rank]["next_worker"]
            self._addresses = [tuple(address) for address in states[rank]["addresses"]]
            self._counts = [dict(counts) for counts in states[rank]["counts"]]
            return ""
        first = 1 + max(epoch for epoch, _, _ in addresses)
        self._next_worker, self._addresses = 0, [(first, 0, 0)] * workers
        of_all = sum((Counter(counts) for state in states for counts in state["counts"]), Counter())
        self._counts = [dict(of_all) if rank == worker == 0 else {} for worker in range(workers)]
        return "shards were dealt to {} x {} ranks x workers and now are to {} x {}".format(*dealt, *deal)

    def __iter__(self) -> Iterator[Sample]:
        source = self._source.placed(self._next_worker, self._addresses, self._counts)
        batches = load_batches(source, self.batch_size, self.num_workers, _collate_addressed)
        for batch, address, counts in batches:
            # Round robin; the loader's worker 0 was given the stream that was next when the iteration began.
            self._addresses[self._next_worker] = address
            self._counts[self._next_worker] = counts
            self._next_worker = (self._next_worker + 1) % len(self._addresses)
            yield batch


class _SampleStream(IterableDataset):
    """One process's endless stream of (sample, address after it, counts so far)."""

    def __init__(
        self,
        *,
        shards: list[str],
        image_size: int,
        mixture: Mixture | None,
        seed: int,
        first_stream: int,
        streams: int,
        lr_dropout: float,
        augment: str,
        cache_bytes: int,
    ) -> None:
        if not 0 <= lr_dropout <= 1:
            raise ValueError(f"lr_dropout={lr_dropout}: a probability is wanted, 0 to 1")
        if augment not in AUGMENTATIONS:
            raise ValueError(f"augment={augment!r}: known are {', '.join(AUGMENTATIONS)}")
        self.shards, self.image_size, self.mixture = shards, image_size, mixture
        self.seed, self.first_stream, self.streams = seed, first_stream, streams
        self.lr_dropout, self.augment = lr_dropout, augment
        self.cache_bytes = cache_bytes
        self._cache: dict[tuple[str, int], DecodedSample] = {}
        self._cached = 0
        self._start: tuple[int, list[Address], list[dict[str, int]]] = (0, [START], [{}])

    def placed(self, next_worker: int, addresses: list[Address], counts: list[dict[str, int]]) -> _SampleStream:
        """The same data, to begin at these addresses of each worker, with the worker number `next_worker` first."""
        self._start = (next_worker, list(addresses), list(counts))
        return self

    def __iter__(self) -> Iterator[tuple[Sample, Address, dict[str, int]]]:
        next_worker, addresses, counts = self._start
        info = get_worker_info()
        worker = (next_worker + (info.id if info else 0)) % len(addresses)
        return self._stream(self.first_stream + worker, addresses[worker], Counter(counts[worker]))

    def _stream(self, stream: int, address: Address, counts: Counter[str]) -> Iterator[tuple[Sample, Address, dict]]:
        first, first_shard, done = address
        barren: set[str] = set()  # shards read since the last epoch with a usable picture
        for epoch in count(first):
            usable = first_shard > 0 or done > 0  # of an epoch begun in the middle we cannot say
            shards = shards_of_epoch(self.shards, self.seed, epoch, stream, self.streams)
            for n in range(first_shard, len(shards)):
                for i, sample in self._shard_samples(shards[n], (stream, epoch, n), done, counts):
                    usable = True
                    yield sample, (epoch, n, i + 1), dict(counts)
                done = 0
            first_shard = 0
            barren = set() if usable else barren | set(shards)
            if barren >= set(self.shards):  # all, not as many: chance may deal a stream the same ones again and again
                raise nothing_usable(self.shards, counts, self.image_size)

    def _shard_samples(
        self, url: str, place: tuple[int, int, int], done: int, counts: Counter[str]
    ) -> Iterator[tuple[int, Sample]]:
        """The usable samples of a shard with their numbers in the order of reading, from number `done` on.

        place   (stream, epoch, n) of the shard, which its random numbers follow from
        counts  what is skipped or converted is added; what `done` samples and the files between them had added is not
        """
        found, known = Counter(), Counter()  # broken and duplicate files of this shard
        rng = numpy_rng(SAMPLE_ORDER, self.seed, *place)
        for i, (number, raw) in enumerate(shuffled(read_shard(url, found), rng)):
            if i < done:
                known = found.copy()  # was counted before the stream was left
                continue
            counts.update(found - known)
            known = found.copy()
            try:
                picture = self._decoded(url, number, raw, counts)
            except Unusable as reason:
                counts[str(reason)] += 1
                continue
            yield i, self._sample(picture, torch_generator(SAMPLE, self.seed, *place, i))
        counts.update(found - known)

    def _decoded(self, url: str, number: int, raw: dict, counts: Counter[str]) -> DecodedSample:
        if picture := self._cache.get((url, number)):
            return picture
        picture = decode(raw, self.image_size, counts)
        if self._cached + picture.nbytes <= self.cache_bytes:
            self._cache[url, number] = picture
            self._cached += picture.nbytes
        return picture

    def _sample(self, picture: DecodedSample, generator: torch.Generator) -> Sample:
        if picture.lr is None:
            target = unit(training_crop(picture.image, self.image_size, generator, self.augment))
            if self.mixture is None:
                return {"target": target, "__key__": picture.key}
            lr, up = make_conditions(target[None], self.mixture, generator, self.lr_dropout)
        else:
            crop, low = paired_crop(picture.image, picture.lr, self.image_size, generator, self.augment)
            if self.mixture is None:
                raise UnusableData(
                    f"sample {picture.key!r} is a pair, which is used as it is, where batches are degraded later: "
                    "leave --degrade-on-device out (in Python, degradation=None)"
                )
            target = unit(crop)
            lr, up = lr_conditions(unit(low)[None], (self.image_size, self.image_size))
            lr, up = drop_lr(lr, up, self.lr_dropout, generator)
        return {"target": target, "lr": lr[0], "lr_upsampled": up[0], "__key__": picture.key}


def _collate_addressed(items: list[tuple[Sample, Address, dict[str, int]]]) -> tuple[Sample, Address, dict[str, int]]:
    samples = [sample for sample, _, _ in items]
    _, address, counts = items[-1]
    return collate(samples), address, counts
