"""Shards of small random pictures, and flags of a model that trains in milliseconds."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

TINY = {
    "preset": "mini", "num-layers": 1, "hidden-size": 32, "num-attention-heads": 2, "image-size": 32,
    "image-block-size": 16, "degradation": "clean", "num-workers": 0, "lr": 1e-3, "device": "cpu", "threads": 1,
    "log-interval": 1, "eval-interval": 100, "save-interval": 100, "eval-steps": 2,
}  # fmt: skip


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """A folder of two shards with five pictures each."""
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    for shard in range(2):
        with tarfile.open(folder / f"{shard:04d}.tar", "w") as tar:
            for number in range(5):
                picture = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((40, 48))
                data = io.BytesIO()
                picture.save(data, format="PNG")
                info = tarfile.TarInfo(f"picture{shard}_{number}.png")
                info.size = data.tell()
                data.seek(0)
                tar.addfile(info, data)
    return folder


@pytest.fixture(scope="session")
def tiny_flags(shards):
    """Everything but --save and --train-iters."""
    return [*(f"--{name}={value}" for name, value in TINY.items()), "--train-data", f"{shards}/{{0000..0001}}.tar"]
