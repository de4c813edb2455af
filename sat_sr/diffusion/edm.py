"""EDM (Karras et al., arXiv 2206.00364): preconditioning, noise levels, loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

SIGMA_DATA = 0.5


class Preconditioning(NamedTuple):
    """The four scalings of EDM, Table 1, each with the shape of sigma."""

    c_skip: torch.Tensor
    c_out: torch.Tensor
    c_in: torch.Tensor
    c_noise: torch.Tensor


def precondition(sigma: torch.Tensor) -> Preconditioning:
    """EDM, Table 1 ("Network and preconditioning"), with sigma_data = 0.5.

    sigma    > 0, any shape; (B, 1, 1, 1) gives scalings that fit pictures (B, 3, H, W)
    returns  four tensors of the shape and dtype of sigma
    """
    total = sigma**2 + SIGMA_DATA**2
    return Preconditioning(
        c_skip=SIGMA_DATA**2 / total,
        c_out=sigma * SIGMA_DATA / total.sqrt(),
        c_in=1 / total.sqrt(),
        c_noise=sigma.log() / 4,
    )


def karras_sigmas(
    num_steps: int = 20, sigma_min: float = 0.002, sigma_max: float = 40.0, rho: float = 7.0
) -> torch.Tensor:
    """Noise levels of a sampling run: EDM, eq. 5, and a final 0.

    returns  (num_steps + 1,) float32, falling from sigma_max to sigma_min, then 0
    Raises ValueError unless num_steps >= 1 and 0 < sigma_min <= sigma_max < infinity.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps}: at least one step is needed")
    if not 0 < sigma_min <= sigma_max < math.inf:
        raise ValueError(f"sigma_min={sigma_min}, sigma_max={sigma_max}: must be 0 < sigma_min <= sigma_max")
    ramp = torch.arange(num_steps, dtype=torch.float64) / max(num_steps - 1, 1)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    sigmas = (high + ramp * (low - high)) ** rho
    return torch.cat([sigmas, sigmas.new_zeros(1)]).float()


def sample_training_sigmas(
    batch: int,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
    p_mean: float = -1.0,
    p_std: float = 1.4,
    minimum: float = 1e-3,
) -> torch.Tensor:
    """Noise levels for training: ln sigma ~ N(p_mean, p_std²).

    generator  of the device; None: PyTorch's global one
    minimum    sigmas below are raised to it
    returns    (batch,) float32 on the device
    """
    normal = torch.randn(batch, generator=generator, device=device)
    return (normal * p_std + p_mean).exp().clamp_min(minimum)


def stratified_training_sigmas(
    batch: int,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
    p_mean: float = -1.0,
    p_std: float = 1.4,
    minimum: float = 1e-3,
) -> torch.Tensor:
    """As `sample_training_sigmas`, but one from each of `batch` equally likely ranges, in random order: (batch,).

    Each sample alone has the same distribution; a batch covers all noise levels, so the loss varies less.
    """
    uniform = (torch.arange(batch, device=device) + torch.rand(batch, generator=generator, device=device)) / batch
    uniform = uniform[torch.randperm(batch, generator=generator, device=device)]
    normal = torch.special.ndtri(uniform.clamp(1e-6, 1 - 1e-6))
    return (normal * p_std + p_mean).exp().clamp_min(minimum)


def denoise(
    model,
    x: torch.Tensor,
    sigma: torch.Tensor,
    lr: torch.Tensor,
    lr_upsampled: torch.Tensor,
    clip_embedding: torch.Tensor | None = None,
    position_offset: tuple[int, int] = (0, 0),
) -> torch.Tensor:
    """D(x; sigma), EDM eq. 7. c_in scales all six input channels, those of the condition too.

    x, lr_upsampled  (B, 3, H, W)
    sigma            (B,)
    lr               (B, 3, H/4, W/4)
    clip_embedding   (B, V), when the model has a CLIP input
    position_offset  (row, column) added to the rotary ids, in tokens
    returns          (B, 3, H, W) in the dtype of x

    The network runs in its own dtype; the scalings and the sum stay in that of x (float32).
    """
    scale = precondition(sigma.view(-1, 1, 1, 1).to(x.dtype))
    dtype = model.dtype
    output = model(
        (scale.c_in * torch.cat([x, lr_upsampled], dim=1)).to(dtype),
        scale.c_noise.flatten(),
        lr.to(dtype),
        None if clip_embedding is None else clip_embedding.to(dtype),
        position_offset,
    )
    return scale.c_skip * x + scale.c_out * output.to(x.dtype)


def mean_square(error: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) -> (B,)"""
    return error.square().mean(dim=(1, 2, 3))


def edm_loss(
    model,
    target: torch.Tensor,
    noise: torch.Tensor,
    sigma: torch.Tensor,
    lr: torch.Tensor,
    lr_upsampled: torch.Tensor,
    clip_embedding: torch.Tensor | None = None,
    position_offset: tuple[int, int] = (0, 0),
    norm: Callable[[torch.Tensor], torch.Tensor] = mean_square,
) -> torch.Tensor:
    """Loss of each sample, EDM eq. 8 with lambda(sigma) = 1/c_out²: (B,) float32.

    target  (B, 3, H, W) in [-1, 1]
    noise   the same shape, unit normal
    sigma   (B,)
    norm    of the error, (B, 3, H, W) -> (B,); the paper's is the mean square

    The others as in `denoise`.
    """
    noisy = target + sigma.view(-1, 1, 1, 1) * noise
    denoised = denoise(model, noisy, sigma, lr, lr_upsampled, clip_embedding, position_offset)
    weight = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
    return weight * norm((denoised - target).float())
