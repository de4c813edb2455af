"""docs/training.md, "A small model on a laptop": its commands as they stand there, on few pictures and a tiny model."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import safetensors.torch
import skimage.data
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "training.md"
# Behind the documented flags, so these count.
TINY = "--num-layers 1 --hidden-size 24 --num-attention-heads 2 --micro-batch-size 1 --num-workers 1 --threads 1"
BRIEF = "--train-iters 4 --eval-interval 2 --save-interval 2 --log-interval 2 --eval-steps 1"


def commands():
    """Those of the section, each on one line, in their order."""
    section = PAGE.read_text(encoding="utf-8").split("## A small model on a laptop")[1].split("\n## ")[0]
    blocks = re.findall(r"^```\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    inline = re.findall(r"`(python scripts/plot_log\.py [^`]*)`", section)
    return [line for line in lines if line.startswith("python ")] + inline


def test_from_a_folder_of_photographs_to_a_picture_upscaled_by_a_model_of_ones_own(tmp_path):
    for name in ("scripts", "sat_sr", "train_text2image_sr.py", "generate_sr_big.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    for folder, pictures in (("train", ("astronaut", "coffee")), ("held_out", ("astronaut",))):
        (tmp_path / "Pictures" / folder).mkdir(parents=True)
        for name in pictures:
            Image.fromarray(getattr(skimage.data, name)()).save(tmp_path / "Pictures" / folder / f"{name}.jpg")
    Image.fromarray(skimage.data.coffee()[:32, :40]).save(tmp_path / "photo.jpg")
    (tmp_path / "python").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    (tmp_path / "python").chmod(0o755)
    environment = os.environ | {
        "HOME": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    said = []
    for line in commands():
        if "train_text2image_sr.py" in line:
            line += f" {TINY} {BRIEF}"
        if "generate_sr_big.py" in line:
            line += " --num-steps 2"
        result = subprocess.run(
            ["bash", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400
        )
        assert result.returncode == 0, f"{line}: {result.stdout[-1000:]}{result.stderr[-2000:]}"
        said.append(result.stdout)
    shards, held_out, trained, _, _, _ = said
    assert "2 samples in 1 shards" in shards and "1 samples in 1 shards" in held_out
    assert "step 4/4 | loss " in trained
    with Image.open(tmp_path / "runs/mine/pictures/00000004.png") as grid:
        assert grid.size == (4 * 128, 128)
    with Image.open(tmp_path / "samples/photo_sr.png") as upscaled:
        assert upscaled.size == (4 * 40, 4 * 32)
    averaged = safetensors.torch.load_file(tmp_path / "runs/mine/4/ema.safetensors")
    exported = safetensors.torch.load_file(tmp_path / "mine.safetensors")
    assert exported.keys() == averaged.keys()
    assert all(torch.equal(tensor, averaged[name].bfloat16()) for name, tensor in exported.items())
    raw = torch.load(tmp_path / "runs/mine/4/mp_rank_00_model_states.pt", weights_only=False)["module"]
    assert not all(torch.equal(tensor, raw[name].bfloat16()) for name, tensor in exported.items())
    assert (tmp_path / "loss.svg").read_text().startswith("<svg")
