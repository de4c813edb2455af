"""More detail, or less: what the network adds to the interpolated input, enlarged.

D is the denoised picture, u the upsampled input. D + (w - 1)(D - u) is what classifier-free guidance does
(arXiv 2207.12598), with interpolation in place of the unconditional network. As in guidance, it pays off only at high
noise levels (arXiv 2404.07724): there it decides how much is drawn, and the calls after it draw that cleanly; at low
ones it would enlarge grain.
"""

from __future__ import annotations

import torch

from sat_sr.diffusion.samplers import Denoise

LEAST_SIGMA = 0.5


class Detail:
    """A denoiser whose pictures are `detail` times as far from the interpolated input.

    denoise       D(x; sigma)
    lr_upsampled  (B, 3, H, W), of the part that `denoise` computes
    detail        w; 1 changes nothing
    """

    def __init__(self, denoise: Denoise, lr_upsampled: torch.Tensor, detail: float):
        self.denoise, self.lr_upsampled, self.detail = denoise, lr_upsampled, detail

    def __call__(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        denoised = self.denoise(x, sigma)
        if sigma < LEAST_SIGMA:
            return denoised
        return denoised.mul_(self.detail).add_(self.lr_upsampled, alpha=1 - self.detail)
