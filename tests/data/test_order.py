"""Which stream reads which shard, and how far samples move in the window that they are drawn from."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from sat_sr.data.order import shards_of_epoch, shuffled

SHARDS = [f"{n}.tar" for n in range(50)]


@pytest.mark.parametrize("streams", [1, 7, 48, 50])
def test_an_epoch_deals_every_shard_to_one_stream(streams):
    epochs = []
    for epoch in range(3):
        hands = [shards_of_epoch(SHARDS, 1, epoch, stream, streams) for stream in range(streams)]
        assert sorted(shard for hand in hands for shard in hand) == sorted(SHARDS)
        assert {len(hand) for hand in hands} <= {50 // streams, -(-50 // streams)}
        epochs.append(hands)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != [shards_of_epoch(SHARDS, 2, 0, stream, streams) for stream in range(streams)]


def test_streams_take_turns_at_the_shard_more():
    read = Counter()
    for epoch in range(48):
        for stream in range(48):
            read[stream] += len(shards_of_epoch(SHARDS, 1, epoch, stream, 48))
    assert set(read.values()) == {50}


def test_a_shard_that_is_named_three_times_comes_three_times():
    hands = [shards_of_epoch([*SHARDS, "x.tar", "x.tar", "x.tar"], 1, 0, stream, 4) for stream in range(4)]
    assert Counter(shard for hand in hands for shard in hand)["x.tar"] == 3


def test_more_streams_than_shards_read_all_of_them_in_orders_of_their_own():
    hands = [shards_of_epoch(SHARDS, 1, 0, stream, 51) for stream in range(51)]
    assert all(sorted(hand) == sorted(SHARDS) for hand in hands)
    assert len(set(map(tuple, hands))) == 51


class Read:
    """Samples of some bytes each; how many were asked for so far."""

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size, self.read = count, size, 0

    def __iter__(self):
        for n in range(self.count):
            self.read += 1
            yield {"__key__": str(n), "jpg": bytes(self.size)}


def drawn(source: Read, seed: int = 0) -> tuple[list[int], list[int]]:
    """The numbers as they come, and how many samples are held behind each."""
    numbers, held = [], []
    for number, sample in shuffled(source, np.random.default_rng(seed)):
        assert sample["__key__"] == str(number)
        numbers.append(number)
        held.append(source.read - len(numbers))
    return numbers, held


def test_every_sample_comes_once_and_the_first_after_sixteen():
    source = Read(3000, 1)
    assert next(shuffled(source, np.random.default_rng(0))) and source.read == 16
    numbers, held = drawn(Read(3000, 1))
    assert sorted(numbers) == list(range(3000))
    assert max(held) == 256
    assert numbers == drawn(Read(3000, 1))[0] != drawn(Read(3000, 1), seed=1)[0]
    # Drawn from 257, a sample is passed over 256 times in the mean, which is how far it moves behind the newest one.
    moved = np.arange(3000) + 256 - np.array(numbers)
    assert moved[1000:2600].mean() == pytest.approx(256, abs=20) and moved[1000:2600].std() > 200


def test_large_samples_are_held_up_to_64_mib():
    numbers, held = drawn(Read(100, 10 * 2**20))
    assert sorted(numbers) == list(range(100))
    assert max(held) == 6
    assert drawn(Read(5, 100 * 2**20))[0] == [0, 1, 2, 3, 4]  # one alone is more: each comes at once


def test_few_samples_are_shuffled_too():
    assert drawn(Read(1, 1))[0] == [0] and drawn(Read(0, 1))[0] == []
    assert len({tuple(drawn(Read(5, 1), seed)[0]) for seed in range(20)}) > 10
