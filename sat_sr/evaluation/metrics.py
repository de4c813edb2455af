"""The figures of a picture, by name.

Pictures are (H, W, 3) uint8 RGB: what a file would hold. Whole pictures are compared, borders included, because an
upscaler's border is part of its output; only SSIM leaves out the 5 outermost pixels, where its window does not fit.
PSNR and SSIM come from scikit-image.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from sat_sr.diffusion.resize import resize
from sat_sr.evaluation.artefacts import flat_energy, grid_ratio
from sat_sr.evaluation.columns import GRIDS, METRICS, metric_of
from sat_sr.evaluation.perceptual import PerceptualDistance, missing_packages

PSNR_OF_EQUAL_PICTURES = 100.0  # dB; infinity would swallow every mean
LEAST_SIDE = 64  # pixels of a target: 16 of the input, the window of SSIM, the strides of ST-LPIPS
PERCEPTUAL = ("stlpips", "lpips")


def choose_metrics(names: Iterable[str] | None) -> tuple[list[str], str]:
    """The metrics to compute, in the order of METRICS, and a sentence on those left out ("" if none).

    names    None: all whose package is installed
    Raises ValueError for an unknown name, ModuleNotFoundError for one whose package is not installed.
    """
    missing = {name: packages for name in PERCEPTUAL if (packages := missing_packages(name))}
    if names is None:
        left_out = "; ".join(f"{METRICS[n].title} left out: pip install {' '.join(p)}" for n, p in missing.items())
        return [name for name in METRICS if name not in missing], left_out
    names = list(names)
    if unknown := [name for name in names if name not in METRICS]:
        raise ValueError(f"unknown metric {', '.join(unknown)}: the known metrics are {', '.join(METRICS)}")
    for name in names:
        if name in missing:
            raise ModuleNotFoundError(f"metric {name} needs: pip install {' '.join(missing[name])}; or leave it out")
    return [name for name in METRICS if name in names], ""


def luma(picture: np.ndarray) -> np.ndarray:
    """Y of ITU-R BT.601 in studio range 16..235, as papers on super-resolution use it: (H, W) float64."""
    return rgb2ycbcr(picture)[..., 0]


def psnr(target: np.ndarray, picture: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB, peak 255, at most PSNR_OF_EQUAL_PICTURES."""
    if np.array_equal(target, picture):
        return PSNR_OF_EQUAL_PICTURES
    return min(float(peak_signal_noise_ratio(target, picture, data_range=255)), PSNR_OF_EQUAL_PICTURES)


def ssim(target: np.ndarray, picture: np.ndarray) -> float:
    """Structural similarity as in Wang et al. 2004: Gaussian window of σ 1.5 in 11×11 pixels; the mean over channels.

    The mean over all pixels around which the window fits: the outermost 5 are left out.
    """
    return float(
        structural_similarity(
            target,
            picture,
            data_range=255,
            channel_axis=-1 if target.ndim == 3 else None,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


def downscale(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Antialiased bicubic to (H, W), clipped to 0..255, not rounded: (H, W, 3) float32."""
    tensor = torch.tensor(picture).permute(2, 0, 1)[None].float()
    return resize(tensor, size).clamp_(0, 255)[0].permute(1, 2, 0).numpy()


def consistency(lr: np.ndarray, picture: np.ndarray) -> float:
    """PSNR (RGB) between the low-resolution input and the output reduced to its size, in dB."""
    return psnr(lr.astype(np.float32), downscale(picture, lr.shape[:2]))


class Metrics:
    """Computes chosen figures; keeps the perceptual networks, and what one target is compared with many times.

    names    of METRICS
    grids    (patch, block) in pixels: the grids to look for, one figure each, named like "block_grid_32"; more can be
             added later with `look_for`
    device   for the perceptual networks
    """

    def __init__(
        self,
        names: Iterable[str],
        grids: Iterable[tuple[int, int]] = (),
        device: str | torch.device = "cpu",
    ) -> None:
        self.names = list(names)
        self._sizes: dict[str, set[tuple[int, ...]]] = {name: set() for name in GRIDS}
        for patch, block in grids:
            self.look_for(patch, block)
        self.device = device
        self._perceptual: dict[str, PerceptualDistance] = {}

    def look_for(self, patch: int, block: int) -> None:
        """One more network's grids, by the sides of its patches and blocks."""
        for name, sizes in (("patch_grid", (patch,)), ("block_grid", (block,)), ("block_lines", (block, patch))):
            self._sizes[name].add(sizes)

    @property
    def columns(self) -> list[str]:
        """Keys of the figures: the names, those of GRIDS once for every size."""
        columns = []
        for name in self.names:
            sizes = sorted(self._sizes.get(name, ()))
            columns += [f"{name}_{'x'.join(map(str, s))}" for s in sizes] if name in GRIDS else [name]
        return columns

    def __call__(
        self,
        target: np.ndarray,
        lr: np.ndarray,
        picture: np.ndarray,
        columns: Iterable[str] | None = None,
        offsets: Iterable[int] = (0,),
    ) -> dict[str, float | None]:
        """Figures of one output.

        target, picture  (H, W, 3) uint8; lr (h, w, 3) uint8
        columns          all of `columns` if None
        offsets          of the picture on the grid in the calls that made it (`grid_ratio`)
        returns          {column: figure}; None where the picture gives no answer (no flat area, no line of the grid)
        """
        assert target.shape == picture.shape, (target.shape, picture.shape)
        columns, offsets = self.columns if columns is None else list(columns), list(offsets)
        target_y, picture_y = luma(target), luma(picture)
        figures = {}
        for column in columns:
            name, sizes = metric_of(column)
            match name:
                case "psnr_y":
                    value = psnr(target_y, picture_y)
                case "ssim_y":
                    value = ssim(target_y, picture_y)
                case "psnr_rgb":
                    value = psnr(target, picture)
                case "ssim_rgb":
                    value = ssim(target, picture)
                case "stlpips" | "lpips":
                    if name not in self._perceptual:
                        self._perceptual[name] = PerceptualDistance(name, self.device)
                    value = self._perceptual[name](target, picture)
                case "consistency":
                    value = consistency(lr, picture)
                case "patch_grid" | "block_grid":
                    value = grid_ratio(picture_y, *sizes, offsets)
                case "block_lines":
                    block, patch = sizes
                    value = grid_ratio(picture_y, block, offsets, among=patch)
                case "flat_energy":
                    value = flat_energy(picture_y, target_y)
            figures[column] = value if math.isfinite(value) else None
        return figures
