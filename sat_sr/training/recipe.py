"""The numbers of a run, settled: the DeepSpeed JSON, the flags over it, and how the batch divides over ranks."""

from __future__ import annotations

import argparse
from dataclasses import dataclass


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

    # DeepSpeed would decide by the first three, and refuses the last, which can only be false, as outdated.
    ours = {"optimizer", "train_batch_size", "fp16", "sparse_gradients"}
    engine = {key: value for key, value in values.items() if key not in ours}
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
        given = None  # the flag overrides the JSON's accumulation
    if total is None:
        return micro, given or 1
    if total % (micro * world_size) or (given and total != micro * given * world_size):
        steps = f" x {given} accumulation steps" if given else ""
        wanted = f"{micro * given * world_size}" if given else f"a multiple of {micro * world_size}"
        divides = total % (micro * world_size) == 0
        raise ValueError(
            f"train_batch_size {total} does not divide into {world_size} rank(s) x micro batch {micro}{steps}: make "
            f"it {wanted}, or {'leave the accumulation steps out' if divides else 'change the micro batch'}"
        )
    return micro, total // (micro * world_size)


def _first(*values):
    return next((value for value in values if value is not None), None)
