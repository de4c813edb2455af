"""Perceptual distances: networks from packages, loaded once, fed with 8-bit pictures.

ST-LPIPS (arXiv 2207.13686) carries its weights in its wheel; LPIPS (arXiv 1801.03924) downloads those of its trunk on
first use. Both: 0 for equal pictures, the lower the better.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import types
from collections.abc import Iterator

import numpy as np
import torch

# Imported by stlpips_pytorch at its top and not used by the network that we take: module -> the name it imports.
UNUSED_BY_STLPIPS = {"torchvision": "models", "IPython": "embed", "torchsummary": "summary"}


def missing_packages(metric: str) -> list[str]:
    """Packages that a perceptual metric needs and that are not installed."""
    needed = {"stlpips": ["stlpips_pytorch"], "lpips": ["lpips", "torchvision"]}[metric]
    return [package for package in needed if importlib.util.find_spec(package) is None]


@contextlib.contextmanager
def _stand_ins(names: dict[str, str]) -> Iterator[None]:
    """Empty modules in place of those that are not installed, removed at the end.

    They must not stay: other packages ask whether torchvision is there.
    """
    absent = {module: name for module, name in names.items() if importlib.util.find_spec(module) is None}
    for module, name in absent.items():
        stand_in = types.ModuleType(module)
        setattr(stand_in, name, None)
        sys.modules[module] = stand_in
    try:
        yield
    finally:
        for module in absent:
            del sys.modules[module]


class PerceptualDistance:
    """Distance of pictures from a target whose features are computed once.

    metric   "stlpips" or "lpips"; both with AlexNet as trunk
    device   where the network runs, in float32
    Raises ModuleNotFoundError when a package is not installed.
    """

    def __init__(self, metric: str, device: str | torch.device = "cpu") -> None:
        if missing := missing_packages(metric):
            raise ModuleNotFoundError(f"metric {metric} needs: pip install {' '.join(missing)}; or leave it out")
        if metric == "stlpips":
            with _stand_ins(UNUSED_BY_STLPIPS):
                from stlpips_pytorch import stlpips
            model = stlpips.LPIPS(net="alex", variant="shift_tolerant", verbose=False)
        else:
            import lpips

            model = lpips.LPIPS(net="alex", verbose=False)
        self.model = model.to(device).eval().requires_grad_(False)
        self.device = device
        self._target: tuple[np.ndarray, list[torch.Tensor]] | None = None

    @torch.inference_mode()
    def __call__(self, target: np.ndarray, picture: np.ndarray) -> float:
        """target, picture (H, W, 3) uint8, sides of at least 32 pixels; pass the same target object to use it again."""
        if self._target is None or self._target[0] is not target:
            self._target = (target, self._features(target))
        distance = 0.0
        for ours, theirs, weigh in zip(self._features(picture), self._target[1], self.model.lins, strict=True):
            distance += float(weigh((ours - theirs).square()).mean())
        return distance

    def _features(self, picture: np.ndarray) -> list[torch.Tensor]:
        """Activations of the five layers, each token scaled to unit length: what both metrics compare."""
        x = torch.tensor(picture, device=self.device).float().permute(2, 0, 1)[None].div(127.5).sub(1)
        return [a / (a.norm(dim=1, keepdim=True) + 1e-10) for a in self.model.net(self.model.scaling_layer(x))]
