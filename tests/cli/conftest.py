"""The program, called in this process: importing SAT takes seconds, a picture milliseconds."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sat_sr.checkpoint import save_safetensors
from sat_sr.config import InfDiTConfig

TINY = InfDiTConfig(
    num_layers=2, hidden_size=16, num_attention_heads=2, image_block_size=16, image_size=64, vector_dim=0
)
SETTINGS = {"name": "euler", "num_steps": 2, "sigma_max": 2.0, "fast": {"num_steps": 1}}


@dataclass
class Outcome:
    """What a call gave: exit code, standard output and standard error."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def network(tmp_path_factory) -> Path:
    """A checkpoint with random weights, small enough for hundreds of pictures."""
    from sat_sr.model.inf_dit import InfDiT

    model, generator = InfDiT(TINY), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter.shape[-1] if parameter.ndim > 1 else 16
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * fan_in**-0.5)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_safetensors(path, model.state_dict(), TINY, sampler_defaults=SETTINGS)
    return path


@pytest.fixture(scope="session")
def upscaler(network):
    from sat_sr import Upscaler

    return Upscaler.from_checkpoint(network, device="cpu")


@pytest.fixture
def cli(network, upscaler, tmp_path, monkeypatch, capfd):
    """call(*arguments, load=False) -> Outcome, in an empty folder, with the random weights unless others are named.

    load  read the weights from their file instead of taking those in memory
    """
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object, load: bool = False) -> Outcome:
        from sat_sr.cli import main, worker

        argv = [str(argument) for argument in arguments]
        if not any(argument.startswith("--network") for argument in argv):
            argv.append(f"--network={network}")
        with monkeypatch.context() as patch:
            if not load:
                patch.setattr(worker.Upscaler, "from_checkpoint", lambda *args, **kwargs: upscaler)
            capfd.readouterr()
            try:
                code = main.main(argv)
            except SystemExit as end:
                code = end.code
        out, err = capfd.readouterr()
        return Outcome(code, out, err)

    return call


@pytest.fixture
def picture(tmp_path):
    """make(name, size=(6, 5), seed=0) -> path of a new picture of smooth colours."""

    def make(name: str, size: tuple[int, int] = (6, 5), seed: int = 0) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        colours = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
        Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC).save(path)
        return path

    return make


@pytest.fixture(scope="session")
def size_of():
    """size_of(path) -> (width, height) of a picture file."""

    def size_of(path) -> tuple[int, int]:
        with Image.open(path) as image:
            return image.size

    return size_of


@pytest.fixture(scope="session")
def pixels():
    """pixels(path) -> those of a picture file, (h, w[, channels])."""

    def pixels(path) -> np.ndarray:
        return np.asarray(Image.open(path))

    return pixels


@pytest.fixture
def meanwhile(monkeypatch, upscaler):
    """meanwhile(act, call=0): let `act` happen while the network computes picture number `call`."""

    def meanwhile(act, call: int = 0) -> None:
        original, calls = upscaler.run, itertools.count()

        def run(*args, **kwargs):
            if next(calls) == call:
                act()
            return original(*args, **kwargs)

        monkeypatch.setattr(upscaler, "run", run)

    return meanwhile
