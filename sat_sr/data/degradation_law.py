"""What is drawn for each picture that `degradation.degrade` degrades: named laws, mixtures of them, and the draw."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from sat_sr.data.kernels import GAUSSIAN_KINDS

KERNEL_SIZES = (7, 9, 11, 13, 15, 17, 19, 21)
KIND_PROBS = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)  # of GAUSSIAN_KINDS
RESIZE_MODES = ("area", "bilinear", "bicubic")
DRAWS = 48  # uniform numbers set aside for one sample; a sample needs at most 38


@dataclass(frozen=True)
class StageConfig:
    """What one stage draws from: probabilities in [0, 1], ranges (low, high)."""

    blur_prob: float
    blur_sigma: tuple[float, float]  # pixels
    beta_generalized: tuple[float, float]
    beta_plateau: tuple[float, float]
    resize_probs: tuple[float, float, float]  # up, down, keep
    resize_range: tuple[float, float]
    noise_sigma: tuple[float, float]  # grey levels of 8 bit
    poisson_scale: tuple[float, float]
    jpeg_quality: tuple[int, int]
    sinc_prob: float = 0.1
    gaussian_prob: float = 0.5  # else Poisson
    gray_prob: float = 0.4


@dataclass(frozen=True)
class DegradationConfig:
    """A named law of degradations. Without stages it is the bicubic resize alone."""

    name: str
    stages: tuple[StageConfig, StageConfig] | None
    final_sinc_prob: float = 0.8


_STRONG_1 = StageConfig(
    blur_prob=1.0,
    blur_sigma=(0.2, 3.0),
    beta_generalized=(0.5, 4.0),
    beta_plateau=(1.0, 2.0),
    resize_probs=(0.2, 0.7, 0.1),
    resize_range=(0.3, 1.5),
    noise_sigma=(1.0, 15.0),
    poisson_scale=(0.05, 2.0),
    jpeg_quality=(60, 95),
)
_STRONG_2 = StageConfig(
    blur_prob=0.5,
    blur_sigma=(0.2, 1.5),
    beta_generalized=(0.5, 4.0),
    beta_plateau=(1.0, 2.0),
    resize_probs=(0.3, 0.4, 0.3),
    resize_range=(0.6, 1.2),
    noise_sigma=(1.0, 12.0),
    poisson_scale=(0.05, 1.0),
    jpeg_quality=(60, 100),
)
_MILD_BETAS = {"beta_generalized": (0.5, 2.0), "beta_plateau": (1.0, 1.5)}

PRESETS: dict[str, DegradationConfig] = {
    config.name: config
    for config in (
        DegradationConfig("strong", (_STRONG_1, _STRONG_2)),
        DegradationConfig(
            "mild",
            (
                replace(_STRONG_1, blur_sigma=(0.2, 1.5), **_MILD_BETAS),
                replace(_STRONG_2, blur_sigma=(0.2, 1.0), **_MILD_BETAS),
            ),
        ),
        DegradationConfig("clean", None),
    )
}

Mixture = list[tuple[float, DegradationConfig]]
Kernel = dict[str, Any]
"""Keyword arguments of `kernel_from_parameters`."""


@dataclass(frozen=True)
class StageParams:
    """What one stage does to one picture."""

    kernel: Kernel | None
    resize_scale: float
    resize_mode: str
    noise: str  # "gaussian" or "poisson"
    noise_strength: float  # Gaussian: sigma in grey levels of 8 bit; Poisson: factor
    gray_noise: bool
    jpeg_quality: int


@dataclass(frozen=True)
class DegradationParams:
    """What is done to one picture. Without stages: the bicubic resize alone."""

    stages: tuple[StageParams, StageParams] | None
    final_kernel: Kernel | None = None
    final_resize_mode: str = "bicubic"
    jpeg_last: bool = False


def parse_degradation(text: str) -> Mixture:
    """`strong`, or a mixture such as `clean:0.5,mild:0.5`: presets with relative weights, 1 where none is given.

    Raises ValueError for an unknown preset and for a weight that is not a positive number.
    """
    mixture = []
    for part in text.split(","):
        name, colon, weight_text = part.strip().partition(":")
        if name not in PRESETS:
            raise ValueError(f"unknown degradation {name!r} in {text!r}: known are {', '.join(PRESETS)}")
        try:
            weight = float(weight_text) if colon else 1.0
        except ValueError:
            weight = math.nan
        if not 0 < weight < math.inf:
            raise ValueError(f"weight {weight_text!r} of {name!r} in degradation {text!r}: give a positive number")
        mixture.append((weight, PRESETS[name]))
    return mixture


def sample_params(
    config: DegradationConfig | Mixture, batch: int, generator: torch.Generator
) -> list[DegradationParams]:
    """Draw the degradations of `batch` pictures, each on its own; of a mixture, each picture draws its preset too.

    Always takes batch × DRAWS numbers from the generator (of any device), whatever the outcome.
    """
    mixture = [(1.0, config)] if isinstance(config, DegradationConfig) else config
    uniforms = torch.rand(batch, DRAWS, dtype=torch.float64, generator=generator, device=generator.device)
    return [_draw_params(mixture, iter(row)) for row in uniforms.tolist()]


# ---------------------------------------------------------------- drawing: `u` yields uniform numbers of [0, 1)


def _draw_params(mixture: Mixture, u: Iterator[float]) -> DegradationParams:
    weights, configs = zip(*mixture, strict=True)
    config = _choose(u, configs, weights)
    if config.stages is None:
        return DegradationParams(stages=None)
    return DegradationParams(
        stages=(_draw_stage(config.stages[0], u), _draw_stage(config.stages[1], u)),
        final_kernel=_draw_sinc(u, _choose(u, KERNEL_SIZES), math.pi / 3) if next(u) < config.final_sinc_prob else None,
        final_resize_mode=_choose(u, RESIZE_MODES),
        jpeg_last=next(u) < 0.5,
    )


def _draw_stage(config: StageConfig, u: Iterator[float]) -> StageParams:
    kernel = _draw_kernel(config, u) if next(u) < config.blur_prob else None
    low, high = config.resize_range
    direction = _choose(u, ("up", "down", "keep"), config.resize_probs)
    scale = {"up": (1.0, high), "down": (low, 1.0), "keep": (1.0, 1.0)}[direction]
    noise = "gaussian" if next(u) < config.gaussian_prob else "poisson"
    strength = config.noise_sigma if noise == "gaussian" else config.poisson_scale
    lowest, highest = config.jpeg_quality
    return StageParams(
        kernel=kernel,
        resize_scale=_uniform(u, *scale),
        resize_mode=_choose(u, RESIZE_MODES),
        noise=noise,
        noise_strength=_uniform(u, *strength),
        gray_noise=next(u) < config.gray_prob,
        jpeg_quality=_choose(u, range(lowest, highest + 1)),
    )


def _draw_kernel(config: StageConfig, u: Iterator[float]) -> Kernel:
    size = _choose(u, KERNEL_SIZES)
    if next(u) < config.sinc_prob:
        return _draw_sinc(u, size, math.pi / 3 if size < 13 else math.pi / 5)
    kind = _choose(u, GAUSSIAN_KINDS, KIND_PROBS)
    kernel: Kernel = {"kind": kind, "kernel_size": size, "sigma_x": _uniform(u, *config.blur_sigma)}
    if kind.endswith("aniso"):
        kernel |= {"sigma_y": _uniform(u, *config.blur_sigma), "theta": _uniform(u, -math.pi, math.pi)}
    if kind.startswith(("generalized", "plateau")):
        low, high = config.beta_generalized if kind.startswith("generalized") else config.beta_plateau
        # Half of the shapes below 1 and half above, however far the range reaches on either side.
        kernel["beta"] = _uniform(u, low, 1.0) if next(u) < 0.5 else _uniform(u, 1.0, high)
    return kernel


def _draw_sinc(u: Iterator[float], size: int, lowest_cutoff: float) -> Kernel:
    return {"kind": "sinc", "kernel_size": size, "cutoff": _uniform(u, lowest_cutoff, math.pi)}


def _uniform(u: Iterator[float], low: float, high: float) -> float:
    return low + (high - low) * next(u)


def _choose(u: Iterator[float], options: Sequence[Any], weights: Sequence[float] | None = None) -> Any:
    weights = weights or [1.0] * len(options)
    left = next(u) * sum(weights)
    for option, weight in zip(options, weights, strict=True):
        left -= weight
        if left < 0:
            return option
    return options[-1]  # rounding may leave a trace above zero
