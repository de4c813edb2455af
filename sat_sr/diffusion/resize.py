"""The one resize of the method: antialiased bicubic, and the two conditions made with it."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from sat_sr.config import LR_FACTOR, lr_size


def resize(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bicubic resize with antialiasing (kernel a = -0.5), as the model was trained with.

    Without `antialias` PyTorch takes a = -0.75 instead, which differs by up to 0.2 of the range.

    image    (B, c, h, w) float
    size     (H, W) pixels
    returns  (B, c, H, W), not clamped: bicubic overshoots
    """
    if size[1] == 1:  # PyTorch's result for a single column is not a resize: make two
        column = F.interpolate(image, (image.shape[-2], 1), mode="bicubic", antialias=True, align_corners=False)
        image, size = column.expand(-1, -1, -1, 2).contiguous(), (size[0], 2)
        return F.interpolate(image, size=size, mode="bicubic", antialias=True, align_corners=False)[..., :1]
    return F.interpolate(image, size=size, mode="bicubic", antialias=True, align_corners=False)


def lr_condition(image: torch.Tensor, canvas: tuple[int, int]) -> torch.Tensor:
    """(B, 3, h, w) at a quarter of the canvas (H, W): (B, 3, H/4, W/4), the input itself if it has that size."""
    size = lr_size(canvas)
    return image if image.shape[-2:] == size else resize(image, size)


def lr_conditions(image: torch.Tensor, canvas: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The two conditions of the network, made from the input.

    image    (B, 3, h, w) in [-1, 1], any size
    canvas   (H, W) pixels, multiples of 4
    returns  lr (B, 3, H/4, W/4): for CLIP and the LR cross-attention, not clamped;
             lr_upsampled (B, 3, H, W), clipped to [-1, 1]: joined to the noisy canvas

    Raises ValueError when a canvas side is not a multiple of 4.
    """
    height, width = canvas
    if height % LR_FACTOR or width % LR_FACTOR:
        raise ValueError(f"canvas {width}x{height}: both sides must be multiples of {LR_FACTOR}")
    return lr_condition(image, canvas), resize(image, canvas).clamp(-1, 1)
