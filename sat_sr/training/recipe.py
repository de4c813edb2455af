"""The numbers of a run, settled: the DeepSpeed JSON, the flags over it, and how the batch divides over ranks."""

from __future__ import annotations

import argparse
import difflib
import json
import math
from dataclasses import dataclass
from pathlib import Path

# What DeepSpeed's own parser does not do: it reads the keys it knows and passes over a misspelt one in silence.
KNOWN_KEYS = (
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "steps_per_print",
    "gradient_clipping", "zero_optimization", "zero_allow_untested_optimizer", "bf16", "fp16", "optimizer",
    "activation_checkpointing", "wall_clock_breakdown", "communication_data_type", "prescale_gradients",
    "gradient_predivide_factor", "sparse_gradients", "dump_state", "memory_breakdown", "comms_logger", "flops_profiler",
    "checkpoint", "data_types",
)  # fmt: skip
KNOWN_OPTIMIZER_PARAMS = ("lr", "betas", "eps", "weight_decay")
ADAMW = ("adam", "adamw", "fusedemaadam")  # last part of optimizer.type; DeepSpeed's Adam is AdamW, SAT's has an EMA


@dataclass(frozen=True)
class Recipe:
    """Batch, optimizer and engine of a run; `engine` is what deepspeed.initialize is given."""

    micro_batch: int
    accumulation: int
    world_size: int
    clip_grad: float
    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    precision: str  # "bf16" or "fp32"
    asked_bf16: bool  # by the JSON
    zero_stage: int
    engine: dict

    @property
    def batch(self) -> int:
        """Samples of one step, over all ranks."""
        return self.micro_batch * self.accumulation * self.world_size


def read_deepspeed_config(path: str | Path) -> dict:
    """The JSON object of a DeepSpeed configuration file.

    Raises ValueError for a file that is missing, no JSON, has a key that means nothing (the nearest one is named), or a
    value that cannot be used.
    """
    path = Path(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"--deepspeed-config {path}: cannot be read ({error.strerror})") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"--deepspeed-config {path}: no valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"--deepspeed-config {path}: must hold one JSON object, not {type(values).__name__}")
    _require_known(values, KNOWN_KEYS, str(path))
    for name in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
        _require_number(values, name, str(path), whole=True)
    _require_number(values, "gradient_clipping", str(path))
    for name in ("bf16", "fp16"):
        enabled = _section(values, name, path).get("enabled", False)
        if not isinstance(enabled, bool):
            raise ValueError(f"--deepspeed-config {path}, {name}: enabled is {enabled!r}: must be true or false")
    _require_known(values.get("bf16", {}), ("enabled",), f"{path}, bf16")
    _check_optimizer(_section(values, "optimizer", path), path)
    _check_zero(_section(values, "zero_optimization", path), path)
    return values


def settle(settings: argparse.Namespace, values: dict, world_size: int, use_cuda: bool) -> Recipe:
    """Flags over JSON over defaults.

    Raises ValueError when the batch does not divide, or for a combination that does not work.
    """
    params = values.get("optimizer", {}).get("params", {})
    micro, accumulation = _divide_batch(settings, values, world_size)
    precision, wants_bf16 = settings.precision, values.get("bf16", {}).get("enabled", False)
    if precision == "auto":
        precision = "bf16" if use_cuda and wants_bf16 else "fp32"
    if values.get("fp16", {}).get("enabled", False):
        raise ValueError("fp16 in the DeepSpeed JSON: the model trains in bf16 or fp32; disable it")
    zero = dict(values.get("zero_optimization", {}))
    zero["stage"] = _first(settings.zero_stage, zero.get("stage"), 1)
    if zero["stage"] not in (0, 1, 2):
        raise ValueError(f"zero_optimization.stage {zero['stage']}: must be 0, 1 or 2")
    if zero["stage"] == 0 and precision != "fp32":
        raise ValueError("--zero-stage 0 keeps no float32 master weights: use it with --precision fp32, or stage 1")
    if settings.optimizer == "muon" and zero["stage"] != 0:
        raise ValueError("--optimizer muon needs whole matrices, which ZeRO cuts in pieces: add --zero-stage 0")
    clip_grad = float(_first(settings.clip_grad, values.get("gradient_clipping"), 0.1))

    engine = {key: value for key, value in values.items() if key not in ("optimizer", "train_batch_size", "fp16")}
    engine |= {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": clip_grad if zero["stage"] else 0.0,  # without ZeRO the trainer clips
        "zero_optimization": zero,
        "bf16": {**values.get("bf16", {}), "enabled": precision == "bf16"},
        "zero_allow_untested_optimizer": True,
    }
    return Recipe(
        micro_batch=micro,
        accumulation=accumulation,
        world_size=world_size,
        clip_grad=clip_grad,
        lr=float(_first(settings.lr, params.get("lr"), 1e-4)),
        betas=tuple(params.get("betas", (0.9, 0.999))),
        eps=float(params.get("eps", 1e-8)),
        weight_decay=float(_first(settings.weight_decay, params.get("weight_decay"), 1e-4)),
        precision=precision,
        asked_bf16=settings.precision == "auto" and wants_bf16,
        zero_stage=zero["stage"],
        engine=engine,
    )


def _divide_batch(settings: argparse.Namespace, values: dict, world_size: int) -> tuple[int, int]:
    """(micro batch, accumulation). A global batch, from flag or JSON, must be micro × accumulation × ranks."""
    micro = _first(settings.micro_batch_size, values.get("train_micro_batch_size_per_gpu"), 1)
    given = _first(settings.gradient_accumulation_steps, values.get("gradient_accumulation_steps"))
    total = _first(settings.train_batch_size, values.get("train_batch_size"))
    if settings.train_batch_size is not None and settings.gradient_accumulation_steps is None:
        given = None  # the flag outweighs the JSON's accumulation
    if total is None:
        return micro, given or 1
    if total % (micro * world_size) or (given and total != micro * given * world_size):
        steps = f" x {given} accumulation steps" if given else ""
        raise ValueError(
            f"train_batch_size {total} does not divide into {world_size} rank(s) x micro batch {micro}{steps}: make "
            f"it a multiple of {micro * world_size * (given or 1)}, or change the micro batch"
        )
    return micro, total // (micro * world_size)


def _first(*values):
    return next((value for value in values if value is not None), None)


def _section(values: dict, name: str, path: Path) -> dict:
    section = values.get(name, {})
    if not isinstance(section, dict):
        raise ValueError(f"--deepspeed-config {path}: {name} must be an object, not {type(section).__name__}")
    return section


def _require_known(section: dict, known: tuple[str, ...], where: str) -> None:
    for key in section:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; is {near[0]} meant?" if near else f"; known are {', '.join(known)}"
            raise ValueError(f"--deepspeed-config {where}: unknown key {key!r}{hint}")


def _require_number(section: dict, name: str, where: str, whole: bool = False) -> None:
    """Nothing, a number from 0 on, or, if `whole`, an integer from 1 on ("auto" is for programs that fill it in)."""
    value = section.get(name, 1)
    kind = int if whole else int | float
    if isinstance(value, bool) or not isinstance(value, kind) or not (1 if whole else 0) <= value < math.inf:
        wanted = "a whole number from 1 on" if whole else "a number from 0 on"
        raise ValueError(f"--deepspeed-config {where}: {name} is {value!r}: must be {wanted}")


def _check_optimizer(section: dict, path: Path) -> None:
    _require_known(section, ("type", "params"), f"{path}, optimizer")
    kind = section.get("type", "AdamW")
    if not isinstance(kind, str) or kind.rpartition(".")[2].lower() not in ADAMW:
        raise ValueError(
            f"--deepspeed-config {path}: optimizer.type is {kind!r}, AdamW is what there is; --optimizer muon is the "
            "other choice"
        )
    params, where = _section(section, "params", path), f"{path}, optimizer.params"
    _require_known(params, KNOWN_OPTIMIZER_PARAMS, where)
    for name in ("lr", "eps", "weight_decay"):
        _require_number(params, name, where)
    betas = params.get("betas", [0.9, 0.999])
    if not (
        isinstance(betas, list) and len(betas) == 2 and all(isinstance(b, float | int) and 0 <= b < 1 for b in betas)
    ):
        raise ValueError(f"--deepspeed-config {where}: betas is {betas!r}: must be two numbers, such as [0.9, 0.999]")


def _check_zero(section: dict, path: Path) -> None:
    # Names only, from DeepSpeed's documentation for stages 0 to 2; types are checked by DeepSpeed itself.
    known = (
        "stage", "allgather_partitions", "allgather_bucket_size", "overlap_comm", "reduce_scatter",
        "reduce_bucket_size", "contiguous_gradients", "load_from_fp32_weights", "cpu_offload", "offload_optimizer",
        "round_robin_gradients", "use_multi_rank_bucket_allreduce", "ignore_unused_parameters",
    )  # fmt: skip
    _require_known(section, known, f"{path}, zero_optimization")
    offload = section.get("offload_optimizer") or {}
    if section.get("cpu_offload") or not isinstance(offload, dict) or offload.get("device", "none") != "none":
        raise ValueError(
            f"--deepspeed-config {path}: the optimizer's state stays on the device, its averages go with it: remove "
            "cpu_offload and offload_optimizer; more ranks leave less state on each"
        )
