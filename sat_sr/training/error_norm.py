"""How the error of a denoised picture is measured in training.

EDM's loss is the mean square. Any positive definite quadratic form has the same best denoiser, the conditional mean, so
samplers need not know which one a network was trained with. But a network that is not perfect errs where it costs
least. Small ones that decode each patch by itself leave steps between patches, which the mean square hardly counts and
the eye finds at once; so here the error's differences between neighbouring pixels may cost extra, those across the
borders of patches in particular.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sat_sr.diffusion.edm import mean_square


@dataclass(frozen=True)
class ErrorNorm:
    """‖e‖² = mean e² + gradient_weight · mean (Δe)² + seam_weight · mean over patch borders (Δe)²

    Δe are the differences of pixels side by side and one above the other; the means of the two directions are summed.

    patch_size  pixels between borders; the picture starts with a whole patch
    """

    patch_size: int
    gradient_weight: float = 0.0
    seam_weight: float = 0.0

    def __call__(self, error: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B,)"""
        norm = mean_square(error)
        if not (self.gradient_weight or self.seam_weight):
            return norm
        for axis in (2, 3):
            steps = error.diff(dim=axis)
            norm = norm + self.gradient_weight * mean_square(steps)
            if self.seam_weight and error.shape[axis] > self.patch_size:
                borders = torch.arange(self.patch_size - 1, steps.shape[axis], self.patch_size, device=error.device)
                norm = norm + self.seam_weight * mean_square(steps.index_select(axis, borders))
        return norm
