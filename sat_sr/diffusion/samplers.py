"""Samplers: free functions from a denoiser and noise levels to a picture.

All share one signature, `sampler(denoise, x, sigmas, *, callback=None) -> x`:

denoise   D(x, sigma): (B, 3, H, W) float32 and a float -> the denoised picture, same shape; one network call
x         (B, 3, H, W) float32, the start: a picture plus sigmas[0] times unit noise
sigmas    (N+1,) strictly falling, the last 0
callback  called after step i of N with (i, N, x)

State and arithmetic are float32 whatever the network computes in. ValueError for noise levels that do not fall.

At the size of a poster each picture is gigabytes. The formulas are arranged so that few are alive in a network call,
and what is no longer needed is dropped before the next. No decorators for the same reason: their wrapper would hold the
start until the end. To be called under torch.no_grad().
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


def euler(denoise: Denoise, x: torch.Tensor, sigmas: torch.Tensor, *, callback: Callback | None = None) -> torch.Tensor:
    """First order: N network calls."""
    steps = _steps(sigmas)
    for i, sigma, sigma_next in steps:
        x = x.lerp(denoise(x, sigma).to(x.dtype), 1 - sigma_next / sigma)
        if callback:
            callback(i, len(steps), x)
    return x


def heun(denoise: Denoise, x: torch.Tensor, sigmas: torch.Tensor, *, callback: Callback | None = None) -> torch.Tensor:
    """Second order, EDM Algorithm 1 (no churn): 2N-1 network calls, the last step is Euler's.

    With h = sigma' - sigma and D the denoised picture, Euler's step x' = x + h (x - D)/sigma lies between x and D, and
    its slope is also (x' - D)/sigma'. So to take the mean of both slopes is to add h/2 (D - D')/sigma' to x': three
    pictures in memory, and no small difference of large numbers.
    """
    steps = _steps(sigmas)
    for i, sigma, sigma_next in steps:
        denoised = denoise(x, sigma).to(x.dtype)
        x = x.lerp(denoised, 1 - sigma_next / sigma)
        if sigma_next > 0:
            following = denoise(x, sigma_next).to(x.dtype)
            half = (sigma / sigma_next - 1) / 2
            x = x.add_(following, alpha=half).sub_(denoised, alpha=half)
        denoised = following = None
        if callback:
            callback(i, len(steps), x)
    return x


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
            # Linear in lambda through the last two calls, taken at the step's middle.
            weight = 0 if previous is None else -h / (2 * h_previous)
            x = x.mul(sigma_next / sigma).add_(denoised, alpha=(1 - sigma_next / sigma) * (1 - weight))
            if previous is not None:
                x = x.add_(previous, alpha=(1 - sigma_next / sigma) * weight)
            previous, h_previous = denoised, h
        if callback:
            callback(i, len(steps), x)
    return x


def unipc(denoise: Denoise, x: torch.Tensor, sigmas: torch.Tensor, *, callback: Callback | None = None) -> torch.Tensor:
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
            step = -math.expm1(-h)
            x = x.mul(sigma_next / sigma).add_(denoised, alpha=step)  # first order
            if previous is None:
                following = denoise(x, sigma_next).to(x.dtype)
                x = x.add_(following, alpha=step / 2).sub_(denoised, alpha=step / 2)
            else:
                r = -h_previous / h  # the earlier point in units of this step
                predicted = x.add(previous, alpha=step / (2 * r)).sub_(denoised, alpha=step / (2 * r))
                following = denoise(predicted, sigma_next).to(x.dtype)
                at_previous, at_following = _corrector_weights(h, r)
                x = x.add_(previous, alpha=step * at_previous / r).add_(following, alpha=step * at_following)
                x = x.sub_(denoised, alpha=step * (at_previous / r + at_following))
                predicted = None
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
