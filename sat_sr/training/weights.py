"""What a run starts from: random weights, or a checkpoint's."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch

from sat_sr.checkpoint import Checkpoint, load
from sat_sr.checkpoint.tensor_files import convert
from sat_sr.model.inf_dit import InfDiT


def initial_model(settings: argparse.Namespace, seed: int, start: Checkpoint | None) -> InfDiT:
    """The network in float32 with a checkpoint's weights, or initialised from the seed: the same on all ranks."""
    torch.manual_seed(seed)
    model = InfDiT(settings.model)
    if start:
        model.load_state_dict({name: convert(name, tensor, torch.float32) for name, tensor in start.tensors.items()})
    return model


def starting_point(settings: argparse.Namespace, resumed: Path | None) -> Checkpoint | None:
    """The file whose weights and CLIP tower are taken: the resumed checkpoint, else --load.

    Raises ValueError or FileNotFoundError for another kind of file, or a damaged one.
    """
    source = resumed or settings.load
    try:
        start = load(source) if source else None
        if start:
            start.check_values()
    except (ValueError, FileNotFoundError) as error:
        if not resumed:
            raise
        raise ValueError(f"{error}; or write the name of an earlier checkpoint into `latest`") from error
    if resumed and start.clip_tensors:
        # Kept for the checkpoints to come, while this one is removed: NFS removes no folder with a file in use.
        start = dataclasses.replace(start, clip_tensors={name: t.clone() for name, t in start.clip_tensors.items()})
    return start
