"""Options and fixtures shared by all tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sat_sr.config import InfDiTConfig

TINY = InfDiTConfig(
    num_layers=3, hidden_size=32, num_attention_heads=2, image_block_size=16, image_size=64, vector_dim=8
)


def pytest_addoption(parser):
    parser.addoption(
        "--golden-dir", type=Path, default=Path(__file__).parent / "golden", help="folder of recorded cases"
    )


@pytest.fixture(scope="session")
def golden_dir(request) -> Path:
    return request.config.getoption("--golden-dir")


@pytest.fixture(scope="session")
def make_model():
    """config -> InfDiT with all parameters random: a fresh one has zeros where the differences would be."""

    def make(config: InfDiTConfig = TINY):
        from sat_sr.model.inf_dit import InfDiT

        model, generator = InfDiT(config).eval().requires_grad_(False), torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            fan_in = parameter.shape[-1] if parameter.ndim > 1 else 16
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * fan_in**-0.5)
        return model

    return make
