"""The two-stage degradation of Real-ESRGAN (arXiv 2107.10833, section 3) that makes LR training inputs, scale 4.

    stage 1   blur · resize · noise · JPEG
    stage 2   blur · resize · noise
    the end   {resize to 1/4 · sinc · JPEG} or {JPEG · resize to 1/4 · sinc}, then 8 bit

`sample_params` draws what happens to each picture, `degrade` does it. Both depend on nothing but their arguments: the
same state of the generator gives the same bits on the same device. A step handles pictures of equal size as one batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F

from sat_sr.config import LR_FACTOR
from sat_sr.data.jpeg import jpeg
from sat_sr.data.kernels import GAUSSIAN_KINDS, blur, kernel_from_parameters
from sat_sr.diffusion.resize import resize

KERNEL_SIZES = (7, 9, 11, 13, 15, 17, 19, 21)
KIND_PROBS = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)  # of GAUSSIAN_KINDS
RESIZE_MODES = ("area", "bilinear", "bicubic")
SMALLEST_SIDE = 44  # at 1/4 of it, mirroring for the largest kernel still finds its 10 pixels
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


@torch.no_grad()
def degrade(batch: torch.Tensor, params: Sequence[DegradationParams], generator: torch.Generator) -> torch.Tensor:
    """Apply one degradation to each picture; `generator` makes the noise.

    batch      (B,3,H,W) float32 RGB in [0, 1]; H, W multiples of 4, at least 44 (any multiple of 4 without stages)
    params     B of them, from `sample_params`
    generator  of the device of `batch`
    returns    (B,3,H/4,W/4) float32 in [0, 1], multiples of 1/255

    Raises ValueError where an argument breaks these conditions.
    """
    _check(batch, params, generator)
    height, width = batch.shape[-2:]
    lr_size = (height // LR_FACTOR, width // LR_FACTOR)
    low: list[torch.Tensor | None] = [
        resize(image[None], lr_size)[0] if p.stages is None else None for image, p in zip(batch, params, strict=True)
    ]
    staged = [i for i, p in enumerate(params) if p.stages is not None]
    images = [batch[i] for i in staged]
    rest = [params[i] for i in staged]
    first, second = [p.stages[0] for p in rest], [p.stages[1] for p in rest]

    images = _blur(images, [s.kernel for s in first])
    images = _resize(images, [(_scaled((height, width), s.resize_scale), s.resize_mode) for s in first])
    images = _noise(images, first, generator)
    images = _jpeg(images, [s.jpeg_quality for s in first])

    images = _blur(images, [s.kernel for s in second])
    images = _resize(images, [(_scaled(lr_size, s.resize_scale), s.resize_mode) for s in second])
    images = _noise(images, second, generator)

    images = _jpeg(images, [None if p.jpeg_last else p.stages[1].jpeg_quality for p in rest])
    images = _resize(images, [(lr_size, p.final_resize_mode) for p in rest])
    images = _blur(images, [p.final_kernel for p in rest])
    images = _jpeg(images, [p.stages[1].jpeg_quality if p.jpeg_last else None for p in rest])

    for i, image in zip(staged, images, strict=True):
        low[i] = image
    return _to_8_bit(torch.stack(low))


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


# ---------------------------------------------------------------- the steps: lists of pictures (3,h,w) of any sizes


def _together(
    step: Callable[[torch.Tensor, list[Any]], torch.Tensor],
    images: list[torch.Tensor],
    settings: Sequence[Any],
    alike: Callable[[Any], Hashable] = lambda setting: None,
) -> list[torch.Tensor]:
    """Run a batched step on the pictures of equal size whose settings are `alike`; setting None skips a picture."""
    groups: dict[Hashable, list[int]] = {}
    for i, (image, setting) in enumerate(zip(images, settings, strict=True)):
        if setting is not None:
            groups.setdefault((image.shape, alike(setting)), []).append(i)
    images = list(images)
    for members in groups.values():
        alone = len(members) == 1  # the usual case on the CPU: spare the copy
        batch = images[members[0]][None] if alone else torch.stack([images[i] for i in members])
        done = step(batch, [settings[i] for i in members])
        for i, image in zip(members, done, strict=True):
            images[i] = image
    return images


def _blur(images: list[torch.Tensor], kernels: list[Kernel | None]) -> list[torch.Tensor]:
    return _together(lambda batch, group: blur(batch, [kernel_from_parameters(**k) for k in group]), images, kernels)


def _resize(images: list[torch.Tensor], targets: list[tuple[tuple[int, int], str]]) -> list[torch.Tensor]:
    """To (height, width) by mode, without antialiasing: that is the degradation's, not the method's own resize."""

    def step(batch: torch.Tensor, group: list[tuple[tuple[int, int], str]]) -> torch.Tensor:
        size, mode = group[0]
        return batch if batch.shape[-2:] == size else F.interpolate(batch, size=size, mode=mode)

    return _together(step, images, targets, alike=lambda target: target)


def _jpeg(images: list[torch.Tensor], qualities: list[int | None]) -> list[torch.Tensor]:
    return _together(jpeg, images, qualities)


def _noise(images: list[torch.Tensor], stages: list[StageParams], generator: torch.Generator) -> list[torch.Tensor]:
    noisy = []
    for image, stage in zip(images, stages, strict=True):
        make = gaussian_noise if stage.noise == "gaussian" else poisson_noise
        noisy.append((image + make(image, stage.noise_strength, stage.gray_noise, generator)).clamp_(0, 1))
    return noisy


def gaussian_noise(image: torch.Tensor, sigma: float, gray: bool, generator: torch.Generator) -> torch.Tensor:
    """(3,h,w), or (1,h,w) where one channel serves all three; `sigma` in grey levels of 8 bit."""
    shape = (1 if gray else 3, *image.shape[-2:])
    return torch.randn(shape, generator=generator, device=image.device).mul_(sigma / 255)


def poisson_noise(image: torch.Tensor, scale: float, gray: bool, generator: torch.Generator) -> torch.Tensor:
    """Photon noise of (3,h,w) in [0, 1], times `scale`; (1,h,w), that of the luma, where one channel serves all three.

    The picture is rounded to 8 bit, and full white is worth `peak` photons: the number of different levels found,
    rounded up to a power of two.
    """
    if gray:
        image = 0.2989 * image[:1] + 0.587 * image[1:2] + 0.114 * image[2:]
    levels = (image * 255).round_().clamp_(0, 255)
    index = levels.flatten().int()
    peak = 2 ** math.ceil(math.log2(torch.bincount(index, minlength=256).count_nonzero().item()))
    # Only 256 rates exist: look a photon count up by its level and a random 12-bit quantile. That is much cheaper than
    # torch.poisson, and the same law but for the outermost 1/8192 on either side.
    table = _poisson_quantiles(peak, image.device)
    quantile = torch.randint(4096, index.shape, generator=generator, device=image.device, dtype=torch.int32)
    photons = table.index_select(0, index.mul_(4096).add_(quantile)).view_as(levels)
    return photons.mul_(scale / peak).sub_(levels.mul_(scale / 255))


@cache
def _poisson_quantiles(peak: int, device: torch.device) -> torch.Tensor:
    """(256·4096,) float32 photon counts: at 4096 l + j the quantile (j + 1/2)/4096 of the Poisson law of peak·l/255."""
    rates = torch.arange(256, dtype=torch.float64)[:, None] * (peak / 255)
    counts = torch.arange(math.ceil(peak + 6 * math.sqrt(peak) + 6), dtype=torch.float64)
    cumulative = torch.special.gammaincc(counts + 1, rates)  # P(N <= count)
    quantiles = ((torch.arange(4096, dtype=torch.float64) + 0.5) / 4096).expand(256, -1).contiguous()
    return torch.searchsorted(cumulative, quantiles).flatten().float().to(device)


def _scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    return int(size[0] * scale), int(size[1] * scale)


def _to_8_bit(images: torch.Tensor) -> torch.Tensor:
    return images.clamp(0, 1).mul_(255).round_().div_(255)


def _check(batch: torch.Tensor, params: Sequence[DegradationParams], generator: torch.Generator) -> None:
    if batch.ndim != 4 or batch.shape[1] != 3 or 0 in batch.shape:
        raise ValueError(f"the batch has shape {tuple(batch.shape)}: (B, 3, H, W) is wanted, with nothing empty")
    if batch.dtype != torch.float32:
        raise ValueError(f"the batch is {batch.dtype}: float32 in [0, 1] is wanted; divide 8-bit pictures by 255")
    height, width = batch.shape[-2:]
    if height % LR_FACTOR or width % LR_FACTOR:
        raise ValueError(f"pictures of {width}x{height}: both sides must be multiples of {LR_FACTOR}; crop them first")
    if min(height, width) < SMALLEST_SIDE and any(p.stages for p in params):
        raise ValueError(f"pictures of {width}x{height}: no side may be less than {SMALLEST_SIDE} pixels")
    low, high = (value.item() for value in batch.aminmax())
    if not (low >= 0 and high <= 1):  # written so that NaN fails
        raise ValueError(f"values from {low:.4g} to {high:.4g}: the range is [0, 1]; map [-1, 1] by (x + 1) / 2 first")
    if len(params) != len(batch):
        raise ValueError(f"{len(params)} degradations for {len(batch)} pictures: draw them with batch={len(batch)}")
    if generator.device.type != batch.device.type:
        raise ValueError(f"the generator is on {generator.device}, the pictures on {batch.device}: use one device")
