"""The weights that ship enlarge a photograph that they never saw better than bicubic interpolation does.

Bars lie a little beyond what was measured on this crop, so that a change for the worse is noticed; what was measured is
written beside each. docs/quality.md has the means over many tiles.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sat_sr.evaluation.artefacts import grid_ratio
from sat_sr.evaluation.metrics import downscale, luma, psnr
from sat_sr.evaluation.perceptual import PerceptualDistance, missing_packages

ROOT = Path(__file__).parents[1]
WEIGHTS = ROOT / "ckpt" / "mini.safetensors"
SETTINGS = ("default", "fast")


@pytest.fixture(scope="module")
def upscaler():
    from sat_sr.inference.upscaler import Upscaler

    return Upscaler.from_checkpoint(WEIGHTS, device="cpu")


@pytest.fixture(scope="module")
def settings(upscaler):
    return {"default": upscaler.defaults, "fast": upscaler.fast}


@pytest.fixture(scope="module")
def pictures(upscaler, settings) -> dict[str, np.ndarray]:
    """The middle of an example, what it was made of, its bicubic interpolation and ours, as files would hold them."""
    lr = np.asarray(Image.open(ROOT / "examples" / "flower.png"))[32:96, 32:96]
    target = np.asarray(Image.open(ROOT / "examples" / "flower_original.png"))[128:384, 128:384]
    bicubic = downscale(lr, target.shape[:2]).round().astype(np.uint8)
    ours = {name: upscaler(lr, seed=0, **settings[name].to_dict()) for name in SETTINGS}
    return {"target": target, "lr": lr, "bicubic": bicubic, **ours}


@pytest.mark.parametrize(("name", "most"), [("default", 0.46), ("fast", 0.52)])  # 0.41 and 0.47 times bicubic's
def test_nearer_to_the_eye_than_bicubic(pictures, name, most):
    if missing := missing_packages("stlpips"):
        pytest.skip(f"needs {', '.join(missing)}")
    distance = PerceptualDistance("stlpips")
    ours, bicubic = (distance(pictures["target"], pictures[p]) for p in (name, "bicubic"))
    assert ours < most * bicubic


@pytest.mark.parametrize(("name", "least"), [("default", -0.05), ("fast", 0.43)])  # +0.06 and +0.54 dB
def test_error_against_bicubic(pictures, name, least):
    target = luma(pictures["target"])
    ours, bicubic = (psnr(target, luma(pictures[p])) for p in (name, "bicubic"))
    assert ours - bicubic > least


@pytest.mark.parametrize(("name", "least"), [("default", 53), ("fast", 51)])  # 54.7 and 52.9 dB; bicubic 36.3
def test_output_reduced_is_the_input(pictures, name, least):
    assert psnr(pictures["lr"].astype(np.float32), downscale(pictures[name], (64, 64))) > least


# Ratios of gradients: patches against elsewhere, blocks against elsewhere, blocks against lines at the same place in a
# patch. The worst calls had 1.10, 1.13, 1.18 (default; the photograph itself has 1.16 at the last of these) and 1.05,
# 1.15, 1.12 (fast). With a grid at rest: 1.30, 1.34, 1.10 and 1.42, 1.46, 1.14.
@pytest.mark.parametrize(
    ("name", "patch_bar", "block_bar", "lines_bar"), [("default", 1.14, 1.18, 1.22), ("fast", 1.09, 1.19, 1.16)]
)
def test_no_call_leaves_its_grid(upscaler, settings, pictures, name, patch_bar, block_bar, lines_bar):
    patch, block = upscaler.model.config.patch_size, upscaler.model.config.image_block_size
    output, places = luma(pictures[name]), settings[name].grid_offsets(block)
    assert len(set(places)) == {"default": 8, "fast": 4}[name]  # each call has its lines elsewhere
    for place in places:
        assert grid_ratio(output, patch, [place]) < patch_bar, place
        assert grid_ratio(output, block, [place]) < block_bar, place
        assert grid_ratio(output, block, [place], among=patch) < lines_bar, place
