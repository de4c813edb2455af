"""The validation samples: the same each time, spread over the whole set, shared among ranks."""

from __future__ import annotations

import io
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from tars import write_tar

from sat_sr.data.order import evenly
from sat_sr.data.tensors import collate
from sat_sr.data.validation_set import validation_samples


def png(seed: int, side: int = 48) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    """Four photographs of 25 tiles each, in a row, in two shards."""
    folder = tmp_path_factory.mktemp("held_out")
    for shard in range(2):
        photos = range(2 * shard, 2 * shard + 2)
        write_tar(folder / f"{shard}.tar", {f"{p}_{t:02d}.png": png(25 * p + t) for p in photos for t in range(25)})
    return f";{folder}"


def keys(spec, **options):
    samples, _ = validation_samples(spec, image_size=48, **options)
    return [sample["__key__"] for sample in samples]


def test_all_samples_come_in_order_and_the_same_each_time(held_out):
    first, counts = validation_samples(held_out, image_size=48, degradation="mild")
    again, _ = validation_samples(held_out, image_size=48, degradation="mild")
    assert [sample["__key__"] for sample in first] == [f"{p}_{t:02d}" for p in range(4) for t in range(25)]
    for a, b in zip(first, again, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in ("target", "lr", "lr_upsampled"))
    assert first[0]["target"].shape == (3, 48, 48) and first[0]["lr"].shape == (3, 12, 12) and not counts


@pytest.mark.parametrize("limit", [4, 8, 10, 32, 99])
def test_some_samples_are_of_all_photographs_alike(held_out, limit):
    found = keys(held_out, limit=limit)
    assert len(found) == len(set(found)) == limit
    of_photo = [sum(key.startswith(f"{p}_") for key in found) for p in range(4)]
    assert max(of_photo) - min(of_photo) <= 1


def test_more_than_there_are_is_all(held_out):
    assert keys(held_out, limit=500) == keys(held_out)


def test_ranks_share_the_samples_of_one_process(held_out):
    whole, _ = validation_samples(held_out, image_size=48, degradation="mild", limit=10)
    for world_size in (2, 3):
        parts = [
            validation_samples(held_out, image_size=48, degradation="mild", limit=10, rank=rank, world_size=world_size)[
                0
            ]
            for rank in range(world_size)
        ]
        for rank, part in enumerate(parts):
            assert len(part) == len(whole[rank::world_size])
            for a, b in zip(part, whole[rank::world_size], strict=True):
                assert a["__key__"] == b["__key__"] and torch.equal(a["lr"], b["lr"])


def test_what_cannot_be_used_is_missing_and_counted_once_over_the_ranks(tmp_path):
    files = {f"{n}.png": png(n) for n in range(6)} | {"small.png": png(6, side=47), "text.jpg": b"no picture"}
    write_tar(tmp_path / "0.tar", files)
    (tmp_path / "1.tar").write_bytes(b"not a tar " * 1000)
    parts = [validation_samples(f";{tmp_path}", image_size=48, rank=rank, world_size=3) for rank in range(3)]
    assert sorted(sample["__key__"] for samples, _ in parts for sample in samples) == [str(n) for n in range(6)]
    assert sum((counts for _, counts in parts), Counter()) == {
        "too small": 1, "undecodable": 1, "broken shard": 1,
    }  # fmt: skip


def test_pairs_are_used_as_they_are(tmp_path):
    small = Image.open(io.BytesIO(png(0, side=20)))
    sharp = io.BytesIO()
    small.resize((80, 80), Image.Resampling.NEAREST).save(sharp, "PNG")
    spec = str(write_tar(tmp_path / "a.tar", {"a.png": sharp.getvalue(), "a.lr.png": png(0, side=20)}))
    valid = collate(validation_samples(spec, image_size=32, degradation="strong")[0])
    assert torch.equal(valid["lr"], valid["target"][:, :, ::4, ::4])


def test_a_part_is_taken_at_equal_distances():
    assert evenly(10, 4) == [0, 2, 5, 7] and evenly(0, 4) == [] and evenly(3, 4) == evenly(3, None) == [0, 1, 2]
