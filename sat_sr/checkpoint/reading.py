"""A checkpoint of Inf-DiT, checked name by name, and the network and the CLIP tower in it.

Read are (a) the release's layout, a DeepSpeed/SAT `.pt` whose key `module` holds the state dict, (b) a training folder
(`latest`, `<tag>/mp_rank_00_model_states.pt` and, preferred, `<tag>/ema.safetensors`; `config.json`), and (c)
safetensors with the configuration in the metadata:

    format   "sat_sr"
    config   JSON of InfDiTConfig
    sampler  JSON, optional: how the model wants to be sampled (sat_sr/checkpoint/sampler_defaults.py)

A `.pt` that this project writes has `config` and `sampler` under its key `sat_sr`; the configuration of others follows
from their shapes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sat_sr.checkpoint import FORMAT
from sat_sr.checkpoint.clip_weights import DEFAULT_CLIP, load_clip
from sat_sr.checkpoint.find_weights import WHERE_FROM, find_weights
from sat_sr.checkpoint.run_folder import CONFIG
from sat_sr.checkpoint.sampler_defaults import check_sampler_defaults
from sat_sr.checkpoint.tensor_files import check_values, convert, is_safetensors, read_pt, read_safetensors, shapes_of
from sat_sr.config import InfDiTConfig
from sat_sr.model.layout import CLIP_PREFIX, ROPE_TABLES, Shape, infer_config, mismatch, parameter_shapes

if TYPE_CHECKING:
    from sat_sr.model.clip import CLIPImageEncoder
    from sat_sr.model.inf_dit import InfDiT

# The image tower among OpenCLIP's names; what else a file holds there is left of the text tower.
_IMAGE_TOWER = "visual."
_FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Checkpoint:
    """Weights of an Inf-DiT and what is known about them. The tensors are memory-mapped: unread, they cost nothing.

    path              the file that was read (of a folder, the one that was chosen)
    kind              what it is, for people
    config            sizes of the network
    tensors           name -> tensor: exactly the names of `InfDiT(config).state_dict()`
    clip_tensors      name in OpenCLIP -> tensor: the image tower if the file carries one, else None
    sampler_defaults  how the model wants to be sampled, {} when the file does not say
    metadata          the safetensors metadata, {} for other files
    notes             what was preferred, derived, assumed or left out, a line each
    """

    path: Path
    kind: str
    config: InfDiTConfig
    tensors: Mapping[str, Tensor]
    clip_tensors: Mapping[str, Tensor] | None = None
    sampler_defaults: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of most parameters."""
        return max(_parameters_by_dtype(self.tensors).items(), key=lambda item: item[1])[0]

    def check_values(self) -> None:
        """Before they are used. Raises ValueError where checksums in the file say that they are damaged."""
        check_values(self.path)

    def report(self) -> list[str]:
        """What was found, a line each, for printing."""
        sizes = " ".join(f"{name}={value}" for name, value in self.config.to_dict().items())
        lines = [
            f"{self.path}: {self.kind}, {self.path.stat().st_size / 1e6:,.1f} MB",
            f"network: {_describe(self.tensors)}",
            f"config: {sizes}",
        ]
        if self.clip_tensors:
            lines.append(f"CLIP image tower: {_describe(self.clip_tensors)}")
        else:
            lines.append("CLIP image tower: none in the file" + ("" if self.config.vector_dim else ", none needed"))
        if self.sampler_defaults:
            lines.append(f"sampler: {json.dumps(self.sampler_defaults)}")
        return [*lines, *(f"note: {note}" for note in self.notes)]


def load(path: str | Path) -> Checkpoint:
    """Opens a checkpoint file or folder and checks every name and shape; no values are read, see `check_values`.

    Raises ValueError for what is no Inf-DiT checkpoint, is damaged, or asks for code; FileNotFoundError. The message is
    one sentence with the culprit and the way out.
    """
    path, run, notes = find_weights(Path(path))
    if is_safetensors(path):
        kind = "safetensors"
        state, metadata = read_safetensors(path)
        ours = metadata.get("format") == FORMAT
        about = _parse_json(path, **{key: metadata[key] for key in ("config", "sampler") if ours and key in metadata})
    else:
        kind = "DeepSpeed/SAT checkpoint"
        state, about = _state_of_pt(path, read_pt(path))
        metadata = {}
        if run and "config" not in about and (run / CONFIG).is_file():
            about = {**about, **_parse_json(run / CONFIG, config=(run / CONFIG).read_text(errors="replace"))}
    clip = {n.removeprefix(CLIP_PREFIX): t for n, t in state.items() if n.startswith(CLIP_PREFIX)}
    rope = {name: state[name] for name in ROPE_TABLES if name in state}
    network = {n: t for n, t in state.items() if n not in rope and not n.startswith(CLIP_PREFIX)}
    config, where = _configuration(path, about.get("config"), shapes_of(network | rope))
    if problem := mismatch(shapes_of(network), parameter_shapes(config)):
        raise ValueError(f"{path} does not fit an Inf-DiT of its own sizes ({problem}): fetch or convert it again")
    sampler = check_sampler_defaults(about.get("sampler", {}), config.image_block_size, where=f"{path}, sampler")
    if strange := [name for name, tensor in state.items() if tensor.dtype not in _FLOATS]:
        raise ValueError(f"{path}: {strange[0]} is {state[strange[0]].dtype}, weights must be bf16, fp16 or fp32")

    tower = {name: tensor for name, tensor in clip.items() if name.startswith(_IMAGE_TOWER)}
    leftovers = len(clip) - len(tower)
    if rope:
        notes.append(f"{len(rope)} rotary tables in the file not used: they follow from the configuration")
    if leftovers:
        notes.append(f"{leftovers} leftovers of CLIP's text tower ignored")
    if where:
        notes.append(where)
    return Checkpoint(path, kind, config, network, tower or None, sampler, metadata, tuple(notes))


def load_model(
    source: Checkpoint | str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> InfDiT:
    """The network with its weights, converted one tensor at a time: no second copy of the model is ever made.

    source  a checkpoint, or where it lies
    dtype   of the parameters; None: as in the file. Tensors that need no conversion stay memory-mapped on the CPU.

    Raises what `load` raises, also for values that the checksums of a `.pt` say are damaged.
    """
    checkpoint = source if isinstance(source, Checkpoint) else load(source)
    checkpoint.check_values()
    from sat_sr.model.inf_dit import InfDiT  # imports SAT, which takes seconds

    dtype = dtype or checkpoint.dtype
    model = InfDiT(checkpoint.config, device="meta", dtype=dtype)
    model.load_state_dict(
        {name: convert(name, tensor, dtype).to(device) for name, tensor in checkpoint.tensors.items()}, assign=True
    )
    return model


def load_image_encoder(
    model: Checkpoint | InfDiTConfig,
    clip_model: str | Path = DEFAULT_CLIP,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> CLIPImageEncoder | None:
    """The CLIP tower that the model is conditioned by: the checkpoint's own, else clip_model; None if it needs none.

    model  a checkpoint, or the sizes of a network that has none yet

    Raises what `load_clip` raises, and ValueError when the tower's embedding does not fit the model.
    """
    checkpoint, config = (None, model) if isinstance(model, InfDiTConfig) else (model, model.config)
    if not config.vector_dim:
        return None
    if checkpoint and checkpoint.clip_tensors:
        from sat_sr.model.clip import CLIPImageEncoder  # imports transformers, which takes seconds

        source = checkpoint.path
        try:
            encoder = CLIPImageEncoder.from_openclip(checkpoint.clip_tensors).to(device=device, dtype=dtype)
        except ValueError as error:
            raise ValueError(f"{source}: {error}: fetch or convert it again") from None
    else:
        source = clip_model
        encoder = load_clip(clip_model, device=device, dtype=dtype)
    if encoder.embedding_dim != config.vector_dim:
        raise ValueError(
            f"the CLIP tower of {source} makes embeddings of {encoder.embedding_dim} numbers, the model takes "
            f"{config.vector_dim}: name the tower that it was trained with by --clip-model"
            + ("" if checkpoint else ", or its width by --vector-dim")
        )
    return encoder


def checkpoint_hash(path: str | Path) -> str:
    """12 hexadecimal digits that tell one checkpoint from another, for the metadata of pictures.

    SHA-256 of the size and the content; of a file over 64 MiB, of the first 4 KiB of each MiB and of the last MiB: fast
    and enough to tell any two trained models apart, but no protection against forgery.
    """
    path, *_ = find_weights(Path(path))
    size, mebi = path.stat().st_size, 1 << 20
    digest = hashlib.sha256(f"{size}:".encode())
    with open(path, "rb") as file:
        if size > 64 * mebi:
            for start in range(0, size - mebi, mebi):
                file.seek(start)
                digest.update(file.read(4096))
            file.seek(size - mebi)
        digest.update(file.read())
    return digest.hexdigest()[:12]


def _state_of_pt(path: Path, content: Any) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """State dict of a `.pt`, and what this project has written beside it."""
    state, about = content, {}
    if isinstance(content, Mapping) and "module" in content:
        state, about = content["module"], content.get(FORMAT, {})
    named_tensors = isinstance(state, Mapping) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
    )
    if named_tensors and state and isinstance(about, Mapping):
        return dict(state), about
    keys = ", ".join(map(str, list(content)[:5])) if isinstance(content, Mapping) else type(content).__name__
    raise ValueError(
        f"{path} is a checkpoint of another kind: it has no state dict under the key 'module' (it has: {keys}); "
        f"an Inf-DiT is wanted ({WHERE_FROM})"
    )


def _parse_json(path: Path, **texts: str) -> dict[str, Any]:
    """Each text parsed. Raises ValueError that names path."""
    try:
        return {key: json.loads(text) for key, text in texts.items()}
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: {', '.join(texts)} in it is not JSON ({error}): write or convert it again") from None


def _configuration(path: Path, stated: Any, shapes: Mapping[str, Shape]) -> tuple[InfDiTConfig, str | None]:
    """The configuration that the file states, or that its shapes imply, and what to say about it."""
    if stated is not None:
        try:
            return InfDiTConfig.from_dict(stated), None
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: the configuration in it is not valid ({error}): convert it again") from None
    try:
        config = infer_config(shapes)
    except ValueError as error:
        raise ValueError(f"{path} is a checkpoint of another architecture ({error}); {WHERE_FROM}") from None
    if any(name in shapes for name in ROPE_TABLES):
        return config, "the configuration follows from the shapes"
    return config, f"the configuration follows from the shapes, but image_size {config.image_size}, which is assumed"


def _parameters_by_dtype(tensors: Mapping[str, Tensor]) -> dict[torch.dtype, int]:
    counts: dict[torch.dtype, int] = {}
    for tensor in tensors.values():
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel()
    return counts


def _describe(tensors: Mapping[str, Tensor]) -> str:
    count = sum(_parameters_by_dtype(tensors).values())
    return f"{count:,} parameters in {len(tensors)} tensors, {stored_types(tensors)}"


def stored_types(tensors: Mapping[str, Tensor]) -> str:
    """'bfloat16', or 'bfloat16 and float32'."""
    return " and ".join(str(dtype).removeprefix("torch.") for dtype in _parameters_by_dtype(tensors))
