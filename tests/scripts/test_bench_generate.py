"""The benchmark: its figures agree with each other and with the closed forms, on a tiny network."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sat_sr.config import InfDiTConfig
from sat_sr.inference.workload import Workload

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench_generate.py"
SIZES = ["--num-layers", "2", "--hidden-size", "32", "--num-attention-heads", "2"]
SIZES += ["--image-block-size", "16", "--image-size", "64", "--vector-dim", "0"]


def bench(*arguments):
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, timeout=120)


def test_figures_and_ratios(tmp_path):
    from sat_sr.inference.planner import make_plan
    from sat_sr.model.counts import flops, parameter_count

    earlier, now = tmp_path / "earlier.json", tmp_path / "now.json"
    config = InfDiTConfig(2, 32, 2, 4, 16, 64, 0)
    case = {
        "canvas": [32, 64], "mode": "full", "seconds": 1e6, "measured_mib": 1e-9,
    }  # fmt: skip
    earlier.write_text(json.dumps({"cases": [case]}))
    arguments = ["--canvas", "32x64", "--mode", "full,ar", "--repeat", "3", "--threads", "1", "--cpu-time"]
    result = bench(*SIZES, *arguments, "--json", str(now), "--against", str(earlier))
    assert result.returncode == 0, result.stderr
    report = json.loads(now.read_text())
    assert report["config"] == config.to_dict() and report["parameters"] == parameter_count(config)
    assert [c["mode"] for c in report["cases"]] == ["full", "ar"]
    for c in report["cases"]:
        assert len(c["all_seconds"]) == 3 and c["seconds"] == sorted(c["all_seconds"])[1]
        assert c["gflops"] * c["seconds"] * 1e9 == pytest.approx(flops(config, (2, 4)))
        assert c["share"] == pytest.approx(c["gflops"] / (sum(c["peak_gflops"]) / 2))
        assert c["of_stock"] == pytest.approx(sorted(c["stock_seconds"])[1] / c["seconds"])
        assert 0 < c["of_stock"] < 1, "the whole takes longer than its parts"
        plan = make_plan(Workload(config, (32, 64), kernel=c["kernel"]), mode=c["mode"])
        assert c["predicted_mib"] * 2**20 == pytest.approx(plan.device_bytes - 4 * parameter_count(config))
    rows = [line for line in result.stdout.splitlines() if line.startswith("| 32×64")]
    assert len(rows) == 2 and len({row.count("|") for row in rows}) == 1
    then = float(rows[0].split("|")[-3].strip(" ×"))
    assert then == pytest.approx(1e6 / report["cases"][0]["seconds"], rel=1e-3)
    assert rows[1].endswith("| new | new |")


def test_a_case_that_fails_does_not_end_the_others(tmp_path):
    """flex is not for a CPU."""
    arguments = ["--canvas", "32x32", "--mode", "full", "--kernel", "flex,merge", "--repeat", "0"]
    result = bench(*SIZES, *arguments, "--json", str(tmp_path / "figures.json"))
    assert result.returncode == 1 and "Traceback" not in result.stderr
    report = json.loads((tmp_path / "figures.json").read_text())
    (case,), (failed,) = report["cases"], report["failed"]
    assert case["kernel"] == "merge" and case["seconds"] == case["first_seconds"] > 0
    assert failed.startswith("32x32, mode full, kernel flex, offload auto: kernel 'flex' needs a CUDA device")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--canvas", "30x64", *SIZES], "canvas 30x64: must be whole blocks of 16"),
        (["--canvas", "large"], "write height x width, like 512x4096"),
        (["--mode", "fast"], "--mode fast: choose from auto, full, ar2, ar"),
        (["--repeat", "-1"], "--repeat must be at least 0"),
        (["--hidden-size", "30"], "must be a multiple of 16"),
    ],
)
def test_what_cannot_be_is_said(arguments, said):
    result = bench(*arguments)
    assert result.returncode == 2 and said in result.stderr and "Traceback" not in result.stderr


def test_a_memory_that_cannot_be_read_shows_the_forms():
    result = bench(*SIZES, "--canvas", "16x16", "--memory", "lots")
    assert result.returncode == 1 and "write it like 8GiB" in result.stderr and "Traceback" not in result.stderr
