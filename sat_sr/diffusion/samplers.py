"""Samplers: free functions from a denoiser and noise levels to a picture.

All share one signature, `sampler(denoise, x, sigmas, *, callback=None) -> x`:

denoise   D(x, sigma): (B, 3, H, W) float32 and a float -> the denoised picture, same shape; one network call
x         (B, 3, H, W) float32, the start: a picture plus sigmas[0] times unit noise
sigmas    (N+1,) strictly falling, the last 0
callback  called after step i of N with (i, N, x)

State and arithmetic are float32 whatever the network computes in. ValueError for noise levels that do not fall.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch

Denoise = Callable[[torch.Tensor, float], torch.Tensor]
Callback = Callable[[int, int, torch.Tensor], None]


def _steps(sigmas: torch.Tensor):
    """(i, sigma_i, sigma_{i+1}) as Python floats."""
    steps = [(i, *levels) for i, levels in enumerate(pairwise(float(s) for s in sigmas))]
    if not steps or not all(sigma > sigma_next >= 0 for _, sigma, sigma_next in steps):
        raise ValueError(f"sigmas {[round(float(s), 6) for s in sigmas]}: must fall at every step, down to 0")
    return steps


@torch.no_grad()
def euler(denoise: Denoise, x: torch.Tensor, sigmas: torch.Tensor, *, callback: Callback | None = None) -> torch.Tensor:
    """First order: N network calls."""
    steps = _steps(sigmas)
    for i, sigma, sigma_next in steps:
        slope = (x - denoise(x, sigma)).div_(sigma)
        x = x.add(slope, alpha=sigma_next - sigma)
        if callback:
            callback(i, len(steps), x)
    return x


@torch.no_grad()
def heun(denoise: Denoise, x: torch.Tensor, sigmas: torch.Tensor, *, callback: Callback | None = None) -> torch.Tensor:
    """Second order, EDM Algorithm 1 (no churn): 2N-1 network calls, the last step is Euler's."""
    steps = _steps(sigmas)
    for i, sigma, sigma_next in steps:
        slope = (x - denoise(x, sigma)).div_(sigma)
        guess = x.add(slope, alpha=sigma_next - sigma)
        if sigma_next > 0:
            slope_next = (guess - denoise(guess, sigma_next)).div_(sigma_next)
            guess = x.add(slope.add_(slope_next), alpha=(sigma_next - sigma) / 2)
        x = guess
        if callback:
            callback(i, len(steps), x)
    return x


@torch.no_grad()
def dpmpp_2m(
    denoise: Denoise, x: torch.Tensor, sigmas: torch.Tensor, *, callback: Callback | None = None
) -> torch.Tensor:
    """DPM-Solver++(2M) (arXiv 2211.01095, Algorithm 2): second order from the last two calls, N network calls."""
    steps = _steps(sigmas)
    previous, h_previous = None, None
    for i, sigma, sigma_next in steps:
        denoised = denoise(x, sigma).to(x.dtype)
        if sigma_next == 0:
            x = denoised
        else:
            h = math.log(sigma / sigma_next)  # step in lambda = -ln(sigma)
            estimate = denoised
            if previous is not None:
                estimate = denoised.lerp(previous, -h / (2 * h_previous))  # linear in lambda, at the step's middle
            x = x.mul(sigma_next / sigma).add_(estimate, alpha=1 - sigma_next / sigma)
            previous, h_previous = denoised, h
        if callback:
            callback(i, len(steps), x)
    return x


@torch.no_grad()
def unipc(
    denoise: Denoise, x: torch.Tensor, sigmas: torch.Tensor, *, callback: Callback | None = None
) -> torch.Tensor:
    """UniPC (arXiv 2302.04867, Algorithms 5 and 7, B(h) = e^-h - 1): third order, N network calls.

    Every network call serves twice: it corrects the step that led to its noise level, then predicts the next.
    """
    steps = _steps(sigmas)
    denoised = denoise(x, steps[0][1]).to(x.dtype)
    previous, h_previous = None, None
    for i, sigma, sigma_next in steps:
        if sigma_next == 0:
            x = denoised
        else:
            h = math.log(sigma / sigma_next)  # step in lambda = -ln(sigma)
            base = x.mul(sigma_next / sigma).add_(denoised, alpha=-math.expm1(-h))  # first order
            predicted = base
            if previous is not None:
                r = -h_previous / h  # the earlier point in units of this step
                slope = (previous - denoised).div_(r)
                predicted = base.add(slope, alpha=-math.expm1(-h) / 2)
            following = denoise(predicted, sigma_next).to(x.dtype)
            if previous is None:
                x = base.add_(following - denoised, alpha=-math.expm1(-h) / 2)
            else:
                weight_slope, weight_following = _corrector_weights(h, r)
                x = base.add_(slope, alpha=-math.expm1(-h) * weight_slope)
                x = x.add_(following - denoised, alpha=-math.expm1(-h) * weight_following)
            previous, h_previous, denoised = denoised, h, following
        if callback:
            callback(i, len(steps), x)
    return x


def _corrector_weights(h: float, r: float) -> tuple[float, float]:
    """Weights of the differences to the points at r and at 1 (in steps) that make the corrector third order."""
    phi_1 = math.expm1(-h)
    phi_2 = phi_1 / -h - 1
    phi_3 = phi_2 / -h - 0.5
    b_1, b_2 = phi_2 / phi_1, 2 * phi_3 / phi_1
    at_r = (b_1 - b_2) / (1 - r)  # of [[1, 1], [r, 1]] (at_r, at_1) = (b_1, b_2)
    return at_r, b_1 - at_r


SAMPLERS = {"heun": heun, "euler": euler, "dpmpp_2m": dpmpp_2m, "unipc": unipc}


def network_calls(sampler: str, num_steps: int) -> int:
    """Network calls of a run with `num_steps` steps."""
    return 2 * num_steps - 1 if sampler == "heun" else num_steps
