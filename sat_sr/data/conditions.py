"""The LR inputs of a training batch: degraded, resized as the network wants them, sometimes replaced by noise."""

from __future__ import annotations

import torch

from sat_sr.data.degradation import degrade
from sat_sr.data.degradation_law import Mixture, sample_params
from sat_sr.diffusion.resize import lr_conditions


def make_conditions(
    target: torch.Tensor, degradation: Mixture, generator: torch.Generator, lr_dropout: float = 0.07
) -> tuple[torch.Tensor, torch.Tensor]:
    """Degrade sharp pictures and make both LR inputs of them, on whatever device they are.

    target       (B,3,H,W) in [-1, 1], sides multiples of 4
    degradation  see `parse_degradation`
    generator    of the device of `target`; its state decides everything
    lr_dropout   probability that a sample's LR inputs are replaced by noise
    returns      lr (B,3,H/4,W/4) and lr_upsampled (B,3,H,W), in [-1, 1]
    """
    params = sample_params(degradation, target.shape[0], generator)
    low = degrade((target + 1).mul_(0.5).clamp_(0, 1), params, generator)
    lr, lr_upsampled = lr_conditions(low * 2 - 1, tuple(target.shape[-2:]))
    return drop_lr(lr, lr_upsampled, lr_dropout, generator)


def drop_lr(
    lr: torch.Tensor, lr_upsampled: torch.Tensor, probability: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Replace both LR inputs of some samples by Gaussian noise, clamped to [-1, 1], independent in the two.

    lr (B,3,h,w), lr_upsampled (B,3,H,W); returned new, unless no sample is hit.
    """
    dropped = torch.rand(lr.shape[0], generator=generator, device=lr.device) < probability
    if not dropped.any():
        return lr, lr_upsampled
    dropped = dropped[:, None, None, None]

    def noise(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator, device=like.device).clamp_(-1, 1)

    return torch.where(dropped, noise(lr), lr), torch.where(dropped, noise(lr_upsampled), lr_upsampled)
