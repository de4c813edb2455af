"""What is read in which order: shards of an epoch, samples of a shard, some of many. Functions of seeds alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch

# What random numbers are for: no two uses share a seed.
SHARD_ORDER, SAMPLE_ORDER, SAMPLE, VALIDATION, DEALING = range(5)

# Undecoded samples of a shard that are held in memory to draw from: as many as this, or of so many bytes.
WINDOW_SAMPLES, WINDOW_BYTES = 256, 64 * 2**20
FIRST_SAMPLES = 16  # are read before one is handed out; then two for each one, until the window is full


def shards_of_epoch(shards: list[str], seed: int, epoch: int, stream: int, streams: int) -> list[str]:
    """The shards that stream number `stream` of `streams` reads in an epoch, in their order.

    Where there are as many shards as streams or more, an epoch deals each shard to one stream: all streams together
    read each shard once. They are not in step, so a shard may come again in one stream's next epoch before another
    stream has come to the end of this one. Else every stream reads all shards, in an order of its own.
    """
    if len(shards) < streams:
        order = numpy_rng(SHARD_ORDER, seed, stream, epoch).permutation(len(shards))
    else:
        order = numpy_rng(DEALING, seed, epoch).permutation(len(shards))
        # Another place each time: where they cannot be dealt evenly, the streams take turns at one shard more.
        order = order[(stream + epoch) % streams :: streams]
    return [shards[at] for at in order]


def shuffled(samples: Iterable[dict], rng: np.random.Generator) -> Iterator[tuple[int, dict]]:
    """Undecoded samples with their number, drawn from a window that slides over them: little is held in memory, and
    the first one does not wait until the window is full."""
    window: list[tuple[int, dict]] = []
    held = 0

    def draw() -> tuple[int, dict]:
        nonlocal held
        at = int(rng.integers(len(window)))
        window[at], window[-1] = window[-1], window[at]
        number, sample = window.pop()
        held -= _size(sample)
        return number, sample

    for number, sample in enumerate(samples):
        window.append((number, sample))
        held += _size(sample)
        if len(window) >= FIRST_SAMPLES and number % 2:
            yield draw()
        while len(window) > WINDOW_SAMPLES or held > WINDOW_BYTES:
            yield draw()
    while window:
        yield draw()


def evenly(total: int, limit: int | None) -> list[int]:
    """At most `limit` of the numbers below `total`, at equal distances; None: all."""
    count = total if limit is None else min(limit, total)
    return [number * total // count for number in range(count)]


def numpy_rng(purpose: int, *numbers: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence([purpose, *numbers]))


def torch_generator(purpose: int, *numbers: int) -> torch.Generator:
    words = np.random.SeedSequence([purpose, *numbers]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0]) >> 1)


def _size(sample: dict) -> int:
    """Bytes of the files of a sample as `read_shard` gives it."""
    return sum(len(data) for data in sample.values() if isinstance(data, bytes))
