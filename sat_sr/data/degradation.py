"""The two-stage degradation of Real-ESRGAN (arXiv 2107.10833, section 3) that makes LR training inputs, scale 4.

    stage 1   blur · resize · noise · JPEG
    stage 2   blur · resize · noise
    the end   {resize to 1/4 · sinc · JPEG} or {JPEG · resize to 1/4 · sinc}, then 8 bit

What happens to each picture is drawn in `degradation_law`, and done here. Both depend on nothing but their arguments:
the same state of the generator gives the same bits on the same device. A step handles pictures of equal size as one
batch.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from sat_sr.config import LR_FACTOR
from sat_sr.data.camera_noise import gaussian_noise, poisson_noise
from sat_sr.data.degradation_law import DegradationParams, Kernel, StageParams
from sat_sr.data.jpeg import jpeg
from sat_sr.data.kernels import blur, kernel_from_parameters
from sat_sr.diffusion.resize import resize

SMALLEST_SIDE = 44  # at 1/4 of it, mirroring for the largest kernel still finds its 10 pixels


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
