"""scripts/plot_log.py: the curves of a run, also of a log that is damaged."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "plot_log.py"


def line(kind: str, step: int, loss: float) -> str:
    return json.dumps({"kind": kind, "step": step, "loss": loss}) + "\n"


@pytest.fixture
def plot(tmp_path):
    """plot(log) -> exit code, what was said, the drawing"""

    def plot(log: str, svg: str = "a.svg"):
        (tmp_path / "log.jsonl").write_text(log)
        command = [sys.executable, SCRIPT, tmp_path, tmp_path / svg]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60)
        drawn = tmp_path / svg
        return result.returncode, result.stderr, drawn.read_text() if drawn.exists() else ""

    return plot


TRAIN = line("train", 20, 1.0) + line("train", 40, 0.1)


def test_the_curve_goes_from_the_first_to_the_last_step_and_smaller_losses_lie_lower(plot):
    code, said, svg = plot(TRAIN + line("data", 40, 9.0) + '{"kind": "train", "ste')
    assert (code, said) == (0, "")
    (x0, y0), (x1, y1) = [map(float, point.split(",")) for point in re.search('points="(.*?)"', svg)[1].split()]
    assert x1 - x0 == pytest.approx(x0 - 56) and x1 == 704  # step 40 at the right end, 20 in the middle
    assert y0 < y1 and "circle" not in svg


def test_a_validation_behind_the_last_interval_lies_inside(plot):
    _, _, svg = plot(TRAIN + line("valid", 60, 0.5))
    (x,) = map(float, re.findall('circle cx="(.*?)"', svg))
    assert x == 704
    assert max(float(point.split(",")[0]) for point in re.search('points="(.*?)"', svg)[1].split()) < 704


@pytest.mark.parametrize("bad", ["\0\0\0\n", "[1]\n", '{"kind": "train"}\n', line("valid", 40, float("nan"))])
def test_what_cannot_be_drawn_is_left_out_and_told(plot, bad):
    first, second = TRAIN.splitlines(keepends=True)
    code, said, svg = plot(first + bad + second)
    assert code == 0 and "1 line(s) left out" in said and svg == plot(TRAIN)[2]


def test_a_folder_that_is_not_there_and_a_log_of_one_interval_are_named(plot):
    code, said, _ = plot(TRAIN, "gone/a.svg")
    assert code == 2 and "a.svg: there is no folder " in said and "gone; make it first" in said
    code, said, _ = plot(line("train", 20, 1.0))
    assert code == 2 and "has 1 logged intervals: two are needed" in said
