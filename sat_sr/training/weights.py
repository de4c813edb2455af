"""What a run starts from: random weights or a checkpoint's, and the CLIP tower that conditions the model."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch

from sat_sr.checkpoint import Checkpoint, load, load_image_encoder
from sat_sr.checkpoint.clip_weights import DEFAULT_CLIP, load_clip
from sat_sr.checkpoint.tensor_files import convert
from sat_sr.config import InfDiTConfig
from sat_sr.model.clip import CLIPImageEncoder
from sat_sr.model.inf_dit import InfDiT


def initial_model(settings: argparse.Namespace, seed: int, start: Checkpoint | None) -> InfDiT:
    """The network in float32 with a checkpoint's weights, or initialised from the seed: the same on all ranks."""
    torch.manual_seed(seed)
    model = InfDiT(settings.model)
    if start:
        model.load_state_dict({name: convert(name, tensor, torch.float32) for name, tensor in start.tensors.items()})
    return model


def starting_point(settings: argparse.Namespace, resumed: Path | None) -> Checkpoint | None:
    """The file whose weights and CLIP tower are taken: the resumed checkpoint, else --load."""
    source = resumed or settings.load
    start = load(source) if source else None
    if resumed and start.clip_tensors:
        # Kept for the checkpoints to come, while this one is removed: NFS removes no folder with a file in use.
        start = dataclasses.replace(start, clip_tensors={name: t.clone() for name, t in start.clip_tensors.items()})
    return start


def clip_tower(
    config: InfDiTConfig, start: Checkpoint | None, clip_model: str | None, device: torch.device
) -> CLIPImageEncoder | None:
    """The frozen tower: the checkpoint's, else what `clip_model` names (None: the release's). In float32, whatever the
    file has, as generation computes the embedding too.

    None for a model without CLIP input. Raises what `load_clip` raises, and ValueError for a tower that does not fit.
    """
    if not config.vector_dim:
        return None
    clip_model = clip_model or DEFAULT_CLIP
    if start:
        return load_image_encoder(start, clip_model, device=device, dtype=torch.float32)
    tower = load_clip(clip_model, device=device, dtype=torch.float32)
    if tower.embedding_dim != config.vector_dim:
        raise ValueError(
            f"--clip-model {clip_model} makes embeddings of {tower.embedding_dim} numbers, --vector-dim is "
            f"{config.vector_dim}: make them equal"
        )
    return tower
