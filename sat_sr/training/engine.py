"""The DeepSpeed engine of a run: network, optimizer and ZeRO put together, and its step."""

from __future__ import annotations

import argparse

import deepspeed
import torch
from deepspeed.runtime.config import DeepSpeedConfigError
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from pydantic import ValidationError

from sat_sr.checkpoint import Checkpoint
from sat_sr.training.muon import MuonWithEMA, muon_parameter_groups
from sat_sr.training.optimizer import UNUSED, AdamWWithEMA, parameter_groups
from sat_sr.training.recipe import Recipe
from sat_sr.training.weights import initial_model

SKIPS_BAD_STEPS = "0.19.8"  # of DeepSpeed, with whichever optimizer it picks


def build_engine(
    settings: argparse.Namespace, recipe: Recipe, seed: int, start: Checkpoint | None
) -> deepspeed.DeepSpeedEngine:
    """The engine with a checkpoint's weights, or fresh ones. Called by all ranks together.

    Raises ValueError for a value in the JSON that DeepSpeed does not accept, and for a DeepSpeed that would apply
    updates that are not finite.
    """
    model = initial_model(settings, seed, start)
    model.mixins["adaln_layer"].checkpoint_activations = settings.checkpoint_activations
    for name, parameter in model.named_parameters():
        # Without a gradient they would only be decayed to zero.
        parameter.requires_grad_(not any(unused in name for unused in UNUSED))
    if settings.optimizer == "muon":
        groups = muon_parameter_groups(model, recipe.lr, settings.muon_lr, recipe.weight_decay)
    else:
        groups = parameter_groups(model, recipe.lr, recipe.weight_decay)
    kind = MuonWithEMA if settings.optimizer == "muon" else AdamWWithEMA
    optimizer = kind(groups, betas=recipe.betas, eps=recipe.eps, ema_decay=settings.ema_decay)
    try:
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=recipe.engine)
    except ValidationError as error:  # of what our own table leaves to DeepSpeed
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ValueError(
            f"--deepspeed-config {settings.deepspeed_config}: DeepSpeed does not accept {key} {first['input']!r} "
            f"({first['msg']}): correct it or leave it out"
        ) from error
    except (DeepSpeedConfigError, AssertionError) as error:  # of values that do not go together, or with this version
        raise ValueError(
            f"--deepspeed-config {settings.deepspeed_config}: DeepSpeed does not accept it ({error}): correct that, or "
            "leave it out"
        ) from error
    optimizer.start()
    if recipe.zero_stage:
        require_overflow_check(engine.optimizer)
    return engine


def require_overflow_check(optimizer: object) -> None:
    """Has DeepSpeed's optimizer skip an update of gradients that are not finite, whatever the precision.

    Before 0.18 ZeRO looked at them in float16 only, later in bfloat16 where asked to; its optimizer for bfloat16 with
    float32 accumulation does since 0.19.8. Raises ValueError where it cannot be had.
    """
    if isinstance(optimizer, DeepSpeedZeroOptimizer):
        checks = hasattr(optimizer, "check_grad_overflow")
        optimizer.check_grad_overflow = True
    else:
        checks = hasattr(optimizer, "overflow")
    if not checks:
        raise ValueError(
            f"DeepSpeed {deepspeed.__version__} would apply updates of gradients that are not finite, which spoils the "
            f"weights for good: {SKIPS_BAD_STEPS} or later is wanted, pip install 'deepspeed>={SKIPS_BAD_STEPS}'"
        )


def link_optimizer_state(engine: deepspeed.DeepSpeedEngine) -> None:
    """With ZeRO: lets `safe_get_full_optimizer_state` and its like find the states of a parameter.

    Normally the first update does so; a run that has just resumed has not made one.
    """
    engine.optimizer._lazy_init_hp_params_optimizer_state()


def update(engine: deepspeed.DeepSpeedEngine, recipe: Recipe) -> tuple[bool, float]:
    """After a backward: the engine's step. Returns whether the weights were changed, and the gradients' norm.

    Gradients that are not finite on any rank are thrown away by all.
    """
    if recipe.zero_stage:
        engine.step()
        return engine.was_step_applied(), float(engine.get_global_grad_norm() or 0.0)
    # Without ZeRO the engine looks at no gradient norm: do here what ZeRO does.
    norm = torch.tensor(0.0)
    finite = True
    if engine.is_gradient_accumulation_boundary():
        parameters = list(engine.module.parameters())
        norm = torch.nn.utils.clip_grad_norm_(parameters, recipe.clip_grad or torch.inf)
        finite = bool(norm.isfinite())
        if not finite:
            engine.zero_grad()  # nothing is left for the optimizer to apply
    engine.step()
    return finite, float(norm)
