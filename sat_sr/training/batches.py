"""Shards -> batches with the conditions that the network wants: of training on the device, of validation on the CPU."""

from __future__ import annotations

import argparse
import socket
from collections import Counter
from collections.abc import Callable
from itertools import zip_longest

import torch
import torch.distributed as dist

from sat_sr.data.conditions import make_conditions
from sat_sr.data.degradation_law import parse_degradation
from sat_sr.data.pipeline import training_stream
from sat_sr.data.samples import nothing_usable
from sat_sr.data.shards import expand_shards, fingerprint, named_and_sized
from sat_sr.data.tensors import collate
from sat_sr.data.validation_set import validation_samples
from sat_sr.training.noise import mix_seed
from sat_sr.training.ranks import gather

Batch = dict[str, torch.Tensor]  # target, lr, lr_upsampled and, for a model with a CLIP input, clip_embedding


class TrainingBatches:
    """Endless micro batches of one rank, on the device; continues exactly where a saved position was taken.

    clip  the CLIP tower, LR condition -> embedding; None for a model without
    """

    def __init__(
        self,
        settings: argparse.Namespace,
        seed: int,
        rank: int,
        world_size: int,
        micro_batch: int,
        device: torch.device,
        clip: Callable | None,
    ) -> None:
        self._device, self._clip = device, clip
        self._stream = training_stream(
            settings.train_data,
            image_size=settings.model.image_size,
            batch_size=micro_batch,
            degradation=None if settings.degrade_on_device else settings.degradation,
            seed=seed,
            rank=rank,
            world_size=world_size,
            num_workers=settings.num_workers,
            lr_dropout=settings.lr_dropout,
            augment=settings.augment,
            cache_bytes=settings.cache_mb * 2**20,
        )
        self._degradation = parse_degradation(settings.degradation) if settings.degrade_on_device else None
        self._lr_dropout = settings.lr_dropout
        self._seed, self._rank, self._number = seed, rank, 0
        self._batches = None

    def resume(self, positions: list[dict]) -> str:
        """Continues after the batches that were handed out when each rank's `position()` gave these, in their order.

        returns  "", or why the samples come in another order from here on, see `TrainingStream.resume`
        """
        self._number = positions[0]["batches"]  # the ranks are in step
        return self._stream.resume([position["stream"] for position in positions])

    def position(self) -> dict:
        """Plain numbers, for JSON."""
        return {"batches": self._number, "stream": self._stream.state_dict()}

    @property
    def shards(self) -> list[str]:
        """All that are read, by all ranks together."""
        return self._stream.shards

    @property
    def streams(self) -> int:
        """Data workers of all ranks together."""
        return self._stream.streams

    @property
    def counts(self) -> Counter[str]:
        """Samples skipped or converted so far, by reason."""
        return self._stream.counts

    def next(self) -> tuple[Batch, list[str]]:
        """The next micro batch and its samples' keys."""
        if self._batches is None:  # not earlier: a position may be loaded first
            self._batches = iter(self._stream)
        batch = next(self._batches)
        keys = batch.pop("__key__")
        batch = {name: tensor.to(self._device, non_blocking=True) for name, tensor in batch.items()}
        if self._degradation is not None:
            generator = torch.Generator(self._device).manual_seed(
                mix_seed("degradation", self._seed, self._rank, self._number)
            )
            batch["lr"], batch["lr_upsampled"] = make_conditions(
                batch["target"], self._degradation, generator, self._lr_dropout
            )
        self._number += 1
        return _with_clip(batch, self._clip), keys


def validation_batches(
    settings: argparse.Namespace,
    rank: int,
    world_size: int,
    micro_batch: int,
    device: torch.device,
    clip: Callable | None,
) -> tuple[list[Batch], str]:
    """This rank's part of the validation samples, always the same ones, and what to say about all ranks' parts.

    On the CPU, as there may be many; none where there are fewer samples than ranks. Called by all ranks together.
    Raises UnusableData where none of them has a sample.
    """
    asked = settings.eval_iters * micro_batch * world_size
    samples, counts = validation_samples(
        settings.valid_data,
        image_size=settings.model.image_size,
        degradation=settings.degradation,
        limit=asked,
        rank=rank,
        world_size=world_size,
    )
    found = gather_counts(counts + Counter(crops=len(samples)))
    crops = found.pop("crops", 0)
    if not crops:
        raise nothing_usable(expand_shards(settings.valid_data), found, settings.model.image_size)
    note = f"validation: {crops} crops" + (f" ({asked} asked for)" if crops < asked else "")
    note = ", ".join([note, *(f"{count} {reason}" for reason, count in found.most_common())])
    batches = []
    for start in range(0, len(samples), micro_batch):
        batch = collate(samples[start : start + micro_batch])
        del batch["__key__"]
        embedded = _with_clip({"lr": batch["lr"].to(device)}, clip)
        batches.append({name: tensor.cpu() for name, tensor in embedded.items()} | batch)
    return batches, note


def require_same_shards(name: str, shards: list[str]) -> None:
    """Raises ValueError, on all ranks, where a rank has found other shards: each would deal another list.

    Their folders may differ, as where each node has copied the shards to a disk of its own: then names and sizes tell.

    name  of the flag that names them
    """
    if len(set(gather(fingerprint(shards)))) == 1:
        return
    here, of_first = [named_and_sized(shard) for shard in shards], [None]
    if dist.get_rank() == 0:
        of_first = [here]
    dist.broadcast_object_list(of_first)
    pairs = enumerate(zip_longest(here, of_first[0], fillvalue="missing"), 1)
    difference = next(((number, *pair) for number, pair in pairs if pair[0] != pair[1]), None)
    for rank, (found, host) in enumerate(gather((difference, socket.gethostname()))):
        if found:
            raise ValueError(
                f"{name} names other shards on rank {rank}, on {host}, than on rank 0: number {found[0]} is "
                f"{found[1]}, there {found[2]}: all ranks need the same files in the same order, in whichever folder"
            )


def gather_counts(counts: Counter[str]) -> Counter[str]:
    """The sum over all ranks, who call this together."""
    return sum(gather(counts), Counter())


@torch.no_grad()
def _with_clip(batch: Batch, clip: Callable | None) -> Batch:
    return batch if clip is None else batch | {"clip_embedding": clip(batch["lr"])}
