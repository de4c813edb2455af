"""Blur kernels of the Real-ESRGAN degradation (arXiv 2107.10833, section 3.1), and the filter that applies them.

Coordinates: x is the column, y the row, both from -(k-1)/2 to (k-1)/2 for a kernel of k × k pixels. Every kernel is
even, K(-x, -y) = K(x, y), and sums to 1.
"""

from __future__ import annotations

import math
from functools import cache

import torch
import torch.nn.functional as F

GAUSSIAN_KINDS = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso")
"""Kinds of bivariate Gaussian-like kernels; `sinc` is the one other kind."""


def kernel_from_parameters(
    kind: str,
    kernel_size: int,
    *,
    sigma_x: float | None = None,
    sigma_y: float | None = None,
    theta: float | None = None,
    beta: float | None = None,
    cutoff: float | None = None,
    pad_to: int | None = None,
) -> torch.Tensor:
    """One kernel, (kernel_size, kernel_size) or (pad_to, pad_to) float64, sum 1.

    With Σ = R diag(σx², σy²) Rᵀ, R the rotation by `theta` (radians), and q = zᵀ Σ⁻¹ z of the pixel z = (x, y):

        iso, aniso      exp(-q/2)
        generalized_*   exp(-q^β/2)
        plateau_*       1/(1 + q^β)
        sinc            ω J1(ω r) / (2π r), the circular low-pass of `cutoff` ω (radians per pixel); ω²/4π in the centre

    The *iso kinds have σy = σx (pixels) and no rotation. `pad_to` surrounds the normalised kernel by zeros.
    Raises ValueError for an unknown kind, an even size, and a parameter that the kind needs and that is missing.
    """
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"a kernel of {kernel_size} pixels has no centre: kernel_size must be odd and positive")
    if kind == "sinc":
        kernel = _sinc(kernel_size, _needed(kind, "cutoff", cutoff))
    elif kind in GAUSSIAN_KINDS:
        sigma_x = _needed(kind, "sigma_x", sigma_x)
        if kind.endswith("aniso"):
            sigma_y, theta = _needed(kind, "sigma_y", sigma_y), _needed(kind, "theta", theta)
        else:
            sigma_y, theta = sigma_x, 0.0
        q = _quadratic_form(kernel_size, sigma_x, sigma_y, theta)
        if kind.startswith("generalized"):
            kernel = torch.exp(-0.5 * q ** _needed(kind, "beta", beta))
        elif kind.startswith("plateau"):
            kernel = 1 / (1 + q ** _needed(kind, "beta", beta))
        else:
            kernel = torch.exp(-0.5 * q)
    else:
        raise ValueError(f"unknown kernel kind {kind!r}: choose one of {', '.join((*GAUSSIAN_KINDS, 'sinc'))}")
    kernel = kernel / kernel.sum()
    return kernel if pad_to is None else _pad_kernel(kernel, pad_to)


def blur(images: torch.Tensor, kernels: list[torch.Tensor]) -> torch.Tensor:
    """Filter every image by its own kernel, the border mirrored without repeating the edge pixel ("reflect").

    images   (B,C,H,W) float32; B kernels, each (k,k), odd k, k//2 < min(H, W)
    returns  (B,C,H,W)

    By FFT: most kernels are neither small nor separable, and its cost hardly depends on their size.
    """
    size = max(kernel.shape[-1] for kernel in kernels)
    kernels_Bkk = torch.stack([_pad_kernel(kernel, size) for kernel in kernels]).to(images)
    height, width = images.shape[-2:]
    reach = size // 2
    padded = F.pad(images, (reach, reach, reach, reach), mode="reflect")
    n_rows, n_columns = _fast_fft_length(padded.shape[-2]), _fast_fft_length(padded.shape[-1])

    def transform(pixels: torch.Tensor) -> torch.Tensor:
        """2-D FFT, transposed: every one-dimensional FFT runs along contiguous memory."""
        return torch.fft.fft(torch.fft.rfft(pixels, n=n_columns).transpose(-1, -2).contiguous(), n=n_rows)

    # The conjugate makes it a correlation, out[i] = Σ_j padded[i+j] kernel[j]; into the first H × W nothing wraps.
    product = transform(padded).mul_(transform(kernels_Bkk).conj()[:, None])
    rows = torch.fft.ifft(product)[..., :height].transpose(-1, -2).contiguous()
    return torch.fft.irfft(rows, n=n_columns)[..., :width]


def _needed(kind: str, name: str, value: float | None) -> float:
    if value is None:
        raise ValueError(f"a kernel of kind {kind!r} needs {name}")
    return value


def _grid(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x and y of every pixel, both (size, size) float64."""
    axis = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return x, y


def _quadratic_form(size: int, sigma_x: float, sigma_y: float, theta: float) -> torch.Tensor:
    """zᵀ Σ⁻¹ z: rotate z back into the axes of the ellipse, then divide by the sigmas."""
    x, y = _grid(size)
    cos, sin = math.cos(theta), math.sin(theta)
    return ((cos * x + sin * y) / sigma_x) ** 2 + ((cos * y - sin * x) / sigma_y) ** 2


def _sinc(size: int, cutoff: float) -> torch.Tensor:
    radius = torch.hypot(*_grid(size))
    centre = radius == 0
    radius[centre] = 1.0  # any number: it is replaced
    kernel = cutoff * torch.special.bessel_j1(cutoff * radius) / (2 * math.pi * radius)
    return torch.where(centre, cutoff**2 / (4 * math.pi), kernel)


def _pad_kernel(kernel: torch.Tensor, size: int) -> torch.Tensor:
    margin = size - kernel.shape[-1]
    if margin < 0 or margin % 2:
        raise ValueError(f"a kernel of {kernel.shape[-1]} pixels cannot be centred in {size}: pad to a larger odd size")
    return F.pad(kernel, (margin // 2,) * 4)


@cache
def _fast_fft_length(length: int) -> int:
    """The next even number without prime factors above 5: odd and prime lengths are up to four times slower."""
    while True:
        rest = length
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1 and length % 2 == 0:
            return length
        length += 1
