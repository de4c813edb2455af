"""A state dict to a checkpoint, as a safetensors file or in the release's layout: `reading` has both formats."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sat_sr.checkpoint import FORMAT
from sat_sr.checkpoint.sampler_defaults import check_sampler_defaults
from sat_sr.checkpoint.tensor_files import convert, shapes_of, write_pt, write_safetensors
from sat_sr.config import InfDiTConfig
from sat_sr.model.layout import CLIP_PREFIX, mismatch, parameter_shapes


def save_safetensors(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    config: InfDiTConfig,
    extra_metadata: Mapping[str, str] | None = None,
    clip: Mapping[str, Tensor] | None = None,
    *,
    sampler_defaults: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes format (c), atomically, one tensor at a time.

    tensors           the network's state dict, any device
    extra_metadata    more keys for the metadata, as strings
    clip              the image tower in OpenCLIP's names
    sampler_defaults  see `check_sampler_defaults`
    dtype             of the file; None: each tensor as it is

    Raises ValueError when names or shapes do not fit config, or a value does not fit dtype; OSError.
    """
    metadata = dict(extra_metadata or {}) | {"format": FORMAT, "config": config.to_json()}
    if sampler_defaults:
        metadata["sampler"] = json.dumps(check_sampler_defaults(sampler_defaults, config.image_block_size))
    write_safetensors(Path(path), _joined(tensors, config, clip), metadata, dtype=dtype)


def save_pt(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    config: InfDiTConfig,
    clip: Mapping[str, Tensor] | None = None,
    *,
    sampler_defaults: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes layout (a), atomically; the rotary tables, which follow from the configuration, are left out.

    Arguments and errors as in `save_safetensors`; converting takes the memory of the converted tensors.
    """
    module = {name: convert(name, tensor, dtype) for name, tensor in _joined(tensors, config, clip).items()}
    about = {"config": config.to_dict()}
    if sampler_defaults:
        about["sampler"] = check_sampler_defaults(sampler_defaults, config.image_block_size)
    write_pt(Path(path), {"module": module, FORMAT: about})


def _joined(
    tensors: Mapping[str, Tensor], config: InfDiTConfig, clip: Mapping[str, Tensor] | None
) -> dict[str, Tensor]:
    """One state dict of network and CLIP tower. Raises ValueError when the network's names or shapes are wrong."""
    if problem := mismatch(shapes_of(tensors), parameter_shapes(config)):
        raise ValueError(f"the weights do not fit the configuration ({problem})")
    return dict(tensors) | {CLIP_PREFIX + name: tensor for name, tensor in (clip or {}).items()}
