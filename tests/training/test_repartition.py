"""A run that goes on with more or fewer ranks than it had."""

import json
import shutil
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "repartition_program.py"
ENGINES = ("zero1", "zero2", "bf16", "accumulated", "stage0", "muon")
# Gradients of bf16 are summed in float32 by another of DeepSpeed's optimizers, with files of its own.
ACCUMULATED = {
    "zero_optimization": {"stage": 1},
    "bf16": {"enabled": True},
    "data_types": {"grad_accum_dtype": "fp32"},
    "gradient_clipping": 0.1,
}


@pytest.fixture(scope="module")
def reports(tmp_path_factory, tiny_flags, run_ranks):
    """{"begun": of two ranks, 1: of the one that goes on, 3: of three, "back": of two that go on where three were}"""
    flags = [*tiny_flags, "--train-iters", "6", "--micro-batch-size", "2"]
    begun, alone, three, back = (tmp_path_factory.mktemp(name) for name in ("begun", "alone", "three", "back"))
    for folder in (begun, alone, three, back):
        (folder / "accumulated.json").write_text(json.dumps(ACCUMULATED))
    found = {"begun": run_ranks(PROGRAM, {2: begun}, flags)[2]}
    for folder in (alone, three):
        for name in ENGINES:
            shutil.copytree(begun / name, folder / name)
        for file in begun.glob("*.pt"):
            shutil.copy(file, folder)
    found |= run_ranks(PROGRAM, {1: alone, 3: three}, flags)
    for name in ENGINES:
        shutil.copytree(three / f"{name}-back", back / name)
        shutil.copytree(begun / name, back / "positions" / name)
    found["back"] = run_ranks(PROGRAM, {2: back}, flags)[2]
    found["said"] = {ranks: (folder / "output0.txt").read_text() for ranks, folder in ((1, alone), (3, three))}
    return found


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("ranks", [1, 3])
def test_weights_moments_and_averages_are_those_that_two_ranks_had(reports, ranks, name):
    for report in reports[ranks]:
        compared, alike = report[f"{name} compared"]
        assert compared > 20 and alike and report[f"{name} differs"] == []
        assert report[f"{name} updates"] == reports["begun"][0][f"{name} updates"] == [3]
        assert report[f"{name} network"]


@pytest.mark.parametrize("name", ["zero1", "zero2", "bf16"])
@pytest.mark.parametrize("ranks", [1, 3])
def test_the_float32_weights_are_those_that_deepspeeds_converter_finds(reports, ranks, name):
    assert all(report[f"{name} converted"] is True for report in reports[ranks])


@pytest.mark.parametrize("name", ENGINES)
def test_what_went_through_three_ranks_trains_on_two_as_if_it_had_not(reports, name):
    for begun, back in zip(reports["begun"], reports["back"], strict=True):
        assert back[f"{name} back"]["steps"] == begun[f"{name} whole"]["steps"][3:]
        assert back[f"{name} back"]["weights"] == begun[f"{name} whole"]["weights"]
        assert back[f"{name} back"]["ema"] == begun[f"{name} whole"]["ema"]


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("ranks", [1, 3])
def test_the_run_goes_on_to_its_end_with_an_epoch_that_nobody_had_begun(reports, ranks, name):
    furthest = max(turn for report in reports["begun"] for turn in report[f"{name} passes"])
    for report in reports[ranks]:
        assert report[f"{name} passes"] == [furthest + 1]
        assert len(report[f"{name} steps"]) == 3 and report[f"{name} logged"] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("ranks", [1, 3])
def test_what_is_different_is_told(reports, ranks):
    said = reports["said"][ranks]
    assert f"differs from step 3 on: ranks {ranks} (was 2), samples per step {2 * ranks} (was 4)" in said
    dealt = f"shards were dealt to 2 x 1 ranks x workers and now are to {ranks} x 1"
    assert f"samples are read in another order from step 3 on: {dealt}" in said
