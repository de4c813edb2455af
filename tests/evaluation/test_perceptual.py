"""The perceptual distances against the packages' own call."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest
import torch

from sat_sr.evaluation.perceptual import PerceptualDistance, missing_packages

needs_stlpips = pytest.mark.skipif(bool(missing_packages("stlpips")), reason="stlpips_pytorch is not installed")


@pytest.fixture(scope="module")
def stlpips():
    return PerceptualDistance("stlpips")


@needs_stlpips
def test_equals_the_package(stlpips):
    rng = np.random.default_rng(0)
    target, first, second = (rng.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(3))

    def package(a, b):
        a, b = (torch.tensor(x).permute(2, 0, 1)[None] / 127.5 - 1 for x in (a, b))
        with torch.no_grad():
            return float(stlpips.model(a, b))

    for picture in (first, second):  # the second re-uses the target's features
        assert stlpips(target, picture) == pytest.approx(package(target, picture), rel=1e-5)
    assert stlpips(first, target) == pytest.approx(package(first, target), rel=1e-5)
    assert stlpips(target, target) == 0.0


@needs_stlpips
def test_stand_ins_do_not_stay(stlpips):
    for module in ("torchvision", "IPython", "torchsummary"):
        assert (module in sys.modules) <= (importlib.util.find_spec(module) is not None)


def test_a_missing_package_is_named(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lpips" else real(name))
    with pytest.raises(ModuleNotFoundError, match="pip install lpips"):
        PerceptualDistance("lpips")
