"""The scripts for a GPU, run through at tiny sizes on the CPU: all that they call is there, and they leave results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[2]


def dry_run(script: str, out: Path, *arguments: str) -> str:
    """What it prints."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    environment |= {"PYTHON": sys.executable, "OUT": str(out), "DRY_RUN": "1"}
    command = ["bash", f"scripts/gpu/{script}.sh", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed" not in done.stdout.replace(" failed ", "")  # of a table's head
    return done.stdout


def test_bench_generate_measures_every_step_and_a_whole_run(tmp_path):
    said = dry_run("bench_generate", tmp_path)
    report = json.loads((tmp_path / "bench_generate.json").read_text())
    run = report.pop("whole_run")
    assert run["status"] == "done" and run["output_size"] == [96, 96]
    cases = {name: [(case["mode"], case["kernel"]) for case in step["cases"]] for name, step in report.items()}
    auto = [("auto", "sdpa")]
    assert cases == {
        "modes": 3 * auto,
        "places": [("full", "sdpa")],
        "kernels": [*auto, ("auto", "merge")],
        "within_8_gib": auto,
        "compiled": [("auto", "merge")],
        "blocks": [("ar", "sdpa"), ("ar2", "sdpa")],
    }
    assert said.count("| auto |") == 3 + 2 + 1 + 1 and "whole_run: status done" in said


def test_bench_train_measures_steps(tmp_path):
    said = dry_run("bench_train", tmp_path)
    steps = json.loads((tmp_path / "bench_train.json").read_text())["last_steps"]
    assert {name: step["step"] for name, step in steps.items()} == {"train_plain": 4, "train_recomputed": 4}
    assert said.count("| train_") == 2


def test_train_mini_leaves_weights_and_pictures_and_goes_on(tmp_path):
    dry_run("train_mini", tmp_path)
    (picture,) = (tmp_path / "samples").iterdir()
    with Image.open(picture) as image, Image.open(ROOT / "examples/bridge.png") as small:
        assert image.size == (4 * small.width, 4 * small.height)
    assert "weights 0.3 MiB" in dry_run("train_mini", tmp_path)


def test_test_cuda_counts_what_passed(tmp_path):
    lines = [line.split() for line in dry_run("test_cuda", tmp_path).splitlines()]
    rows = {line[0]: [int(cell) for cell in line[1:]] for line in lines if line[:1] in (["cuda"], ["all"])}
    assert rows["cuda"][:2] == [0, 0] and rows["cuda"][2] > 0  # all skipped
    assert rows["all"][0] > 0 and rows["all"][1:3] == [0, 0]
