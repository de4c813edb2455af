"""On a GPU: the program trains, saves, validates, and resumes from the middle to where it would have come anyway."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
ROOT = Path(__file__).parents[2]


def averages(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "6" / "ema.safetensors")


@pytest.mark.parametrize(
    "engine",
    [
        ["--precision=bf16"],
        ["--precision=bf16", "--zero-stage=2", "--degrade-on-device", "--checkpoint-activations"],
        ["--precision=fp32", "--zero-stage=0", "--optimizer=muon", "--tf32"],
    ],
    ids=["bf16", "degraded there", "muon"],
)
def test_a_run_on_the_gpu_goes_on_from_its_middle(tmp_path, tiny_flags, shards, engine):
    """GPU kernels may sum in another order each time: not to the bit, as on the CPU."""
    flags = [*tiny_flags, "--train-data", str(shards), "--valid-data", str(shards), "--device=cuda", *engine]
    flags += ["--train-iters=6", "--save-interval=3", "--eval-interval=3", "--micro-batch-size=2"]

    def train(name: str) -> str:
        command = [sys.executable, "train_text2image_sr.py", *flags, "--save", str(tmp_path / name)]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
        return result.stdout

    said = train("whole")
    assert "from single process, CUDA" in said
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    (tmp_path / "cut" / "latest").write_text("3")
    assert "at step 3" in train("cut")
    whole, cut = averages(tmp_path / "whole"), averages(tmp_path / "cut")
    start = safetensors.torch.load_file(tmp_path / "whole" / "3" / "ema.safetensors")
    moved = max((whole[name] - tensor).abs().max().item() for name, tensor in start.items())
    apart = max((whole[name] - tensor).abs().max().item() for name, tensor in cut.items())
    assert moved > 1e-4 and apart < 0.05 * moved
    logs = [[json.loads(line) for line in (tmp_path / n / "log.jsonl").open()] for n in ("whole", "cut")]
    for ours, theirs in zip(*logs, strict=True):
        assert (ours["kind"], ours["step"]) == (theirs["kind"], theirs["step"])
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.02)
    steps = {kind: [record["step"] for record in logs[0] if record["kind"] == kind] for kind in ("train", "valid")}
    assert steps == {"train": [1, 2, 3, 4, 5, 6], "valid": [3, 6]}
