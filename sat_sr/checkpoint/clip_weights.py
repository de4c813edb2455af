"""Where the CLIP image tower comes from when the checkpoint carries none: a file, a folder, or the Hugging Face hub."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sat_sr.checkpoint.tensor_files import check_values, is_safetensors, read_pt, read_safetensors

if TYPE_CHECKING:
    from sat_sr.model.clip import CLIPImageEncoder

# What the release was trained with (OpenCLIP's ViT-L/14 `datacomp_xl_s13b_b90k`).
DEFAULT_CLIP = "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K"

# In the order of preference: OpenCLIP's own files, then those of transformers' CLIPModel or its image half.
_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors", "pytorch_model.bin")
_OPENCLIP_CONFIG, _TRANSFORMERS_CONFIG = "open_clip_config.json", "config.json"
_HEAD_WIDTH = 64  # of every ViT-B and ViT-L, where no configuration tells
_SECONDS = 5  # for the hub to answer whether it has a file


def load_clip(
    source: str | Path = DEFAULT_CLIP, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> CLIPImageEncoder:
    """The CLIP image tower from a local file, a local folder, or a repository of the hub.

    source  a weights file, a folder with one of OpenCLIP's or transformers' usual names in it, or a hub id; what is in
            the local Hugging Face cache is taken without asking the network. The configuration beside the weights
            tells the width of the heads; where there is none it is assumed, and the tower's `notes` say so
    dtype   of the parameters; None: as in the file

    Raises FileNotFoundError that says what to download and where to put it, and ValueError for something else.
    """
    find = _finder(source)
    weights = next((path for name in _WEIGHTS if (path := find(name))), None)
    if weights is None:
        raise FileNotFoundError(f"{source} has no CLIP weights: one of {', '.join(_WEIGHTS)} is wanted there")
    tensors = read_safetensors(weights)[0] if is_safetensors(weights) else read_pt(weights)
    check_values(weights)
    if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise ValueError(f"{weights} holds no state dict: OpenCLIP's or transformers' weights are wanted")

    from sat_sr.model.clip import CLIPImageEncoder  # imports transformers, which takes seconds

    openclip = any(name.startswith("visual.") for name in tensors)
    described_in = _OPENCLIP_CONFIG if openclip else _TRANSFORMERS_CONFIG
    config = find(described_in)
    build = CLIPImageEncoder.from_openclip if openclip else CLIPImageEncoder.from_transformers
    head_width = _head_width(config, openclip) if config else _HEAD_WIDTH
    try:
        encoder = build(tensors, head_width=head_width).to(device=device, dtype=dtype)
    except ValueError as error:
        raise ValueError(f"{weights}: {error}; the default is {DEFAULT_CLIP}") from None
    if not config:
        encoder.notes = (f"{weights} has no {described_in} beside it: attention heads of {_HEAD_WIDTH} are assumed",)
    return encoder


def _finder(source: str | Path) -> Callable[[str], Path | None]:
    """A function from a file's name to its path in the source, None where the source has no such file."""
    path = Path(source).expanduser()
    if path.is_file():
        return lambda name: path if name in _WEIGHTS else _file_in(path.parent, name)
    if path.is_dir():
        return lambda name: _file_in(path, name)
    if str(source).count("/") != 1 or str(source).startswith((".", "~", "/")):
        raise FileNotFoundError(f"{source}: no such file or folder, and no hub id like {DEFAULT_CLIP} either")
    return _hub_finder(str(source))


def _file_in(folder: Path, name: str) -> Path | None:
    return folder / name if (folder / name).is_file() else None


def _hub_finder(repository: str) -> Callable[[str], Path | None]:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    # What the library's client raises without a connection: OSError with requests, a kind of its own with httpx.
    client_errors = (OSError, *HfHubHTTPError.__bases__)

    def cached(name: str) -> Path | None:
        path = try_to_load_from_cache(repository, name)
        return Path(path) if isinstance(path, str) else None

    def download(name: str) -> Path | None:
        try:
            with _without_warnings():
                # Asked once: the download would ask again and again, with pauses.
                get_hf_file_metadata(hf_hub_url(repository, name), timeout=_SECONDS)
                return Path(hf_hub_download(repository, name))
        except LocalEntryNotFoundError:
            reason = "the hub cannot be reached"
        except EntryNotFoundError:
            return None
        except HfHubHTTPError as error:
            reason = f"the hub answered {error.response.status_code}"
        except client_errors as error:
            reason = f"the hub cannot be reached ({error})"
        raise FileNotFoundError(
            f"the CLIP image tower {repository} is not in the local Hugging Face cache and {reason}: download "
            f"{_WEIGHTS[0]} or {_WEIGHTS[1]} from https://huggingface.co/{repository} where there is a network, "
            "put it into a folder, and name that folder with --clip-model"
        ) from None

    try:
        in_cache = any(cached(name) for name in _WEIGHTS)
    except HFValidationError:
        raise FileNotFoundError(
            f"{repository}: no such file or folder, and no hub id like {DEFAULT_CLIP} either"
        ) from None
    return cached if in_cache else download


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """The hub's library warns of what an error says in the end."""
    from huggingface_hub.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _head_width(path: Path, openclip: bool) -> int:
    """Width of an attention head by the configuration beside the weights.

    Raises ValueError for a tower with the quick GELU of OpenAI's models: Inf-DiT's has the exact one.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}): fetch it again") from None
    config: dict[str, Any] = config.get("model_cfg", config) if openclip else config
    vision = config.get("vision_cfg" if openclip else "vision_config", config)
    if config.get("quick_gelu") or vision.get("hidden_act") == "quick_gelu":
        raise ValueError(f"{path} describes a CLIP with quick GELU; Inf-DiT is conditioned by {DEFAULT_CLIP}")
    if openclip:
        return vision.get("head_width", _HEAD_WIDTH)
    return vision.get("hidden_size", 1024) // vision.get("num_attention_heads", 16)
