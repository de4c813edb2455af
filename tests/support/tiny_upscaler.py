"""A network of two layers, how it is sampled, and pictures for it."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from sat_sr.config import InfDiTConfig
from sat_sr.sampling import SamplingSettings

CONFIG = InfDiTConfig(
    num_layers=2, hidden_size=32, num_attention_heads=2, image_block_size=16, image_size=64, vector_dim=0
)
SETTINGS = SamplingSettings(sampler="euler", num_steps=2, sigma_max=2.0)
QUICK = {"num_steps": 1, "sigma_max": 0.5}


def tensor_picture(height=7, width=9, batch=1, seed=0):
    """Colours that change smoothly, (B, 3, h, w) in [-1, 1]."""
    coarse = torch.rand(batch, 3, 3, 3, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return F.interpolate(coarse, (height, width), mode="bilinear")


def bytes_picture(height=7, width=9):
    return ((tensor_picture(height, width)[0].permute(1, 2, 0) + 1) / 2 * 255).round().byte().numpy()


def bicubic(image, size):
    return F.interpolate(image, size, mode="bicubic", antialias=True).clamp(-1, 1)
