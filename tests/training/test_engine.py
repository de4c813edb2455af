"""What the trainer computes, saves and tells: against a plain loop, through crashes, line by line."""

import math
import re
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "engine_program.py"


@pytest.fixture(scope="module")
def reports(tmp_path_factory, tiny_flags, run_ranks):
    """{world size: [report of each rank]}"""
    flags = [*tiny_flags, "--train-iters", "6", "--micro-batch-size", "2", "--gradient-accumulation-steps", "2"]
    return run_ranks(PROGRAM, {size: tmp_path_factory.mktemp(f"engine{size}") for size in (1, 2)}, flags)


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("engine", ["zero1", "stage0"])
def test_training_is_that_of_a_plain_loop_over_single_samples(reports, world_size, engine):
    """Batches, accumulation, ranks, clipping, warm-up and decay of the rate, AdamW, its weight decay, the average."""
    first = reports[world_size][0][f"plain {engine}"]
    for report in reports[world_size]:
        found = report[f"plain {engine}"]
        assert found["moved"] > 1e-3
        assert found["weights"] < 1e-5 and found["average"] < 1e-5
        assert found["engine's norms"] == pytest.approx(found["norms"], rel=1e-4)
        assert min(found["norms"]) > 0.1  # clipped
        assert found["losses"] == first["losses"]
    assert first["engine's losses"] == pytest.approx(first["losses"], rel=1e-5)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_dry_run_tells_the_memory_that_the_engine_takes(reports, world_size):
    memory = reports[world_size][0]["memory"]
    assert len(memory) == 8
    for name, (found, told) in memory.items():
        assert told == pytest.approx(found, rel=0.03), name


@pytest.mark.parametrize("batches", ["workers", "device"])
def test_batches_of_workers_and_of_the_device_are_resumed_exactly_too(reports, batches):
    (report,) = reports[1]
    whole, resumed = report[f"{batches} whole"], report[f"{batches} 3+3"]
    assert len(whole["steps"]) == 6 and len({step["samples"] for step in whole["steps"]}) == 6
    assert whole == resumed


def test_a_crash_between_any_two_changes_of_a_save_leaves_a_checkpoint_that_is_resumed(reports):
    (report,) = reports[1]
    *crashes, whole = report["crashes"]
    assert all(crash["crashed"] for crash in crashes) and not whole["crashed"]
    assert len(crashes) > 15
    steps = [int(crash["latest"]) for crash in report["crashes"]]
    assert steps == sorted(steps) and set(steps) == {2, 4} and steps[-2] == 4  # old ones go after `latest` is switched
    for crash, step in zip(report["crashes"], steps, strict=True):
        assert crash["resumed"] == step, crash  # weights and average are those of that step
        assert crash["position"] == (step == 4)
        assert crash["cleaned"] == ["6", "config.json", "latest", "lock", "tensorboard"], crash
    assert {"tmp-4"} <= {name for crash in crashes for name in crash["left"]}


def test_what_a_run_says(reports):
    (report,) = reports[1]
    said = "\n".join(line.partition(" ")[2] for line in report["said"])  # without the time of day
    number = r"[\d.]+"
    lines = re.findall(
        rf"^step (\d)/6 \| loss ({number}) \| grad norm ({number}) \| lr ({number}e-\d\d) \| {number} samples/s \| "
        rf"data {number} forward {number} backward {number} step {number} s \| {number} GiB \| \d+ s left$",
        said,
        re.MULTILINE,
    )
    records = {kind: [r for r in report["records"] if r["kind"] == kind] for kind in ("train", "valid", "data")}
    assert [record["step"] for record in records["train"]] == [int(line[0]) for line in lines] == [2, 4, 6]
    for (_, loss, norm, rate), record in zip(lines, records["train"], strict=True):
        assert (loss, norm, rate) == (f"{record['loss']:.4f}", f"{record['grad_norm']:.3f}", f"{record['lr']:.2e}")
    assert [record["lr"] for record in records["train"]] == pytest.approx([1e-3, 0.6e-3, 0.2e-3])
    assert [record["step"] for record in records["valid"]] == [3, 6]
    for record in records["valid"]:
        told = f"step {record['step']} | validation loss {record['loss']:.4f} | PSNR of samples {record['psnr']:.2f} dB"
        assert told in said.splitlines()
    assert re.search(r"^data so far: .*\d+ too small", said, re.MULTILINE)
    assert re.search(r"^data so far: .*\d+ converted: grey", said, re.MULTILINE)
    assert records["data"][-1]["too small"] > 0 and records["data"][-1]["converted: grey"] > 0
    assert len(re.findall(r"^saved .*/told/[46] in \d+ s$", said, re.MULTILINE)) == 2
    assert "stopped by a signal, saved at step 4: run the same command again to resume" in said
    assert re.search(r"^resuming .*/told at step 4$", said, re.MULTILINE)
    assert "differs from" not in said
    assert "\nvalidation: 2 crops, 1 converted: grey\n" in said
    assert "validation: 3 crops (4 asked for), 1 converted: grey, 1 too small" in report["more validation"]
    differing = "samples per step 2 (was 4), micro batch 1 (was 2), --p-mean 0.5 (was -1.0)"
    assert f"differs from step 6 on: {differing}\n" in report["changed"]
    assert report["pictures"] == ["00000003.png", "00000006.png"]


def test_a_list_of_shards_that_has_changed_is_told(reports):
    (report,) = reports[1]
    same, other = report["other shards"]
    assert "differs" not in same
    assert re.search(r"differs from step 2 on: training shards 2, list (\w{8}) \(was 1, list (?!\1)\w{8}\)\n", other)


def test_ranks_that_were_given_other_seeds_use_the_first_and_share_each_pass_over_the_shards(reports):
    first, second = reports[2]
    assert first["seed"] == second["seed"] == 17
    for start in range(0, 20, 5):  # two shards of five pictures, one for each rank
        parts = [set(report["keys"][start : start + 5]) for report in (first, second)]
        assert len(parts[0] | parts[1]) == 10, start
    assert first["seeds told"] == [
        "--seed is not the same on all ranks (18 beside rank 0's): 17, rank 0's, is used",
        "--seed 19 is not used: this run started with seed 17",
    ]
    assert second["seeds told"] == []


@pytest.mark.parametrize("name", ["--train-data", "--valid-data"])
def test_ranks_that_find_other_shards_are_refused(reports, name):
    for report in reports[2]:
        pattern = rf"{name} names other shards on rank 1, on \S+, than on rank 0: number 1 is 0001.tar of [\d,]+ bytes"
        assert re.match(rf"{pattern}, there 0000.tar of [\d,]+ bytes: ", report[f"other {name}"])


def test_ranks_resume_from_the_checkpoint_that_rank_0_finds(reports):
    assert [report["resumed at"] for report in reports[2]] == [2, 2]


def test_fewer_shards_than_workers_are_told(reports):
    (report,) = reports[1]
    assert "shard(s) for" not in report["more validation"]
    assert "1 shard(s) for 2 data workers: each of them reads all" in report["few shards"]


def test_ranks_may_have_their_shards_in_folders_of_their_own(reports):
    first, second = reports[2]
    for report in (first, second):
        assert report["keys of own disks"] == report["keys"]
        assert re.search(r"on rank 1, .* number 2 is 0001.tar of 5,000 bytes, there 0001.tar", report["cut copy"])


def test_the_logged_loss_is_of_all_steps_and_the_time_of_training_alone(reports):
    (report,) = reports[1]
    losses = [record["loss"] for record in report["logged each"]]
    (mean,) = report["logged mean"]
    assert len(losses) == 6 and len(set(losses)) == 6
    assert mean["step"] == 6 and mean["loss"] == pytest.approx(sum(losses) / 6, rel=1e-6)
    seconds = 6 * 4 / mean["samples_per_second"]  # of 2 x 2 samples per step
    assert seconds < report["seconds with two validations"] - 2
    phases = sum(mean[f"seconds_{phase}"] for phase in ("data", "forward", "backward", "step"))
    assert 6 * phases == pytest.approx(seconds, abs=0.2)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_checkpoint_that_is_due_is_saved_before_validation_which_no_signal_waits_for(reports, world_size):
    for report in reports[world_size]:
        assert report["validation failed"] == "2"
        assert report["signal before"] == ["2", 0]
        assert [outcome[:2] for outcome in report["signal during"]] == [[75, "2"], [75, "2"]]
    given_up = "step 2 | validation given up, as a signal asks to stop"
    stopped = "stopped by a signal, saved at step 2: run the same command again to resume"
    (_, _, unsaved), (_, _, saved) = reports[world_size][0]["signal during"]
    assert unsaved[0] == saved[1] == given_up and unsaved[2] == saved[2] == stopped
    assert all(line.startswith("saved ") and line.endswith("/2") for line in (unsaved[1], saved[0]))


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_validation_that_failed_or_was_given_up_comes_at_the_next_start(reports, world_size):
    for rank, report in enumerate(reports[world_size]):
        assert report["signal at the end"] == [75, "6"]
        for name, (steps, weights) in report["made up for"].items():
            assert steps == ([6] if name == "last" else [2, 4, 6]), name
            assert weights == report["uncut"], name
        steps, said = report["once more"]
        assert steps == [6] and "its validation" not in said and ("nothing to do" in said) == (rank == 0)


def test_tensorboard_is_told_the_same(reports):
    (report,) = reports[1]
    first, second = report["events"]
    assert first[0] == ["start", 1, None] and second[0] == ["start", 5, None]  # hides what came after the checkpoint
    events = {(tag, step): value for tag, step, value in first + second if tag != "start"}
    wanted = {}
    for record in report["records"]:
        kind, step = record.pop("kind"), record.pop("step")
        # TensorBoard's names have no spaces and colons.
        wanted |= {(re.sub("[ :]", "_", f"{kind}/{name}"), step): value for name, value in record.items()}
    pictures = {key: events.pop(key) for key in list(events) if key[0] == "valid/samples"}
    assert set(events) == set(wanted)
    assert len([tag for tag, _ in wanted if not tag.startswith("data/")]) == 3 * 9 + 2 * 7
    assert all(math.isclose(events[key], value, rel_tol=1e-6) for key, value in wanted.items())  # float32 there
    assert pictures == {("valid/samples", step): [2 * 32, 4 * 32] for step in (3, 6)}
