"""Training cut and resumed equals training in one go; what ranks, engines and bad samples may and may not change."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "rank_program.py"
ROOT = PROGRAM.parents[2]


@pytest.fixture(scope="module")
def reports(tmp_path_factory, tiny_flags, run_ranks):
    """{world size: [report of each rank]}, and where and how they ran."""
    flags = [*tiny_flags, "--train-iters", "6", "--micro-batch-size", "2", "--gradient-accumulation-steps", "2"]
    folders = {world_size: tmp_path_factory.mktemp(f"ranks{world_size}") for world_size in (1, 2)}
    found = run_ranks(PROGRAM, folders, flags, killed=(2, 1))  # a rank that dies by its own hand, at the end
    found["folders"], found["flags"] = folders, flags
    return found


CUTS = [(1, "zero1", "3+3"), (1, "zero1", "2+2+2"), (2, "zero1", "3+3"), (2, "zero1", "2+2+2"), (2, "zero2", "3+3"),
        (2, "bf16", "3+3"), (2, "muon", "3+3")]  # fmt: skip


@pytest.mark.parametrize("world_size, engine, cut", CUTS)
def test_a_run_that_was_cut_equals_the_whole_run_bit_by_bit(reports, world_size, engine, cut):
    for report in reports[world_size]:
        whole, resumed = report[f"{engine} whole"], report[f"{engine} {cut}"]
        assert len(whole["steps"]) == len(resumed["steps"]) == 6
        for step, (a, b) in enumerate(zip(whole["steps"], resumed["steps"], strict=True)):
            assert a == b, f"step {step}"  # keys, pixels, learning rate, gradient norm
        assert whole["weights"] == resumed["weights"]
        assert whole["ema"] == resumed["ema"]
        assert whole["weights"] != whole["ema"]


def test_both_rates_of_muon_are_logged_and_the_one_of_adamw(reports):
    report = reports[2][0]
    assert report["muon rates"] and report["zero1 rates"]
    for matrices, others in report["muon rates"]:
        assert matrices / others == pytest.approx(0.02 / 1e-3)  # --muon-lr and --lr, on the same schedule
    assert {others for _, others in report["zero1 rates"]} == {None}


def test_ranks_have_the_same_weights_and_their_own_samples(reports):
    first, second = reports[2]
    for name in ("zero1 whole", "zero2 whole", "bf16 whole", "muon whole"):
        assert first[name]["weights"] == second[name]["weights"]
        assert first[name]["ema"] == second[name]["ema"]
        assert [s["samples"] for s in first[name]["steps"]] != [s["samples"] for s in second[name]["steps"]]
    assert len({step["samples"] for report in reports[2] for step in report["zero1 whole"]["steps"]}) == 12


def test_zero_2_and_zero_1_are_the_same_training(reports):
    for report in reports[2]:
        norms = [[step["grad_norm"] for step in report[f"{name} whole"]["steps"]] for name in ("zero1", "zero2")]
        assert norms[0] == pytest.approx(norms[1], rel=1e-4)


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("engine", ["zero1", "bf16", "muon"])
def test_a_loss_that_is_not_finite_on_one_rank_is_skipped_by_all_and_too_many_end_the_run(reports, world_size, engine):
    skips = [report["skips"][engine] for report in reports[world_size]]
    for report in skips:
        assert report["bad step counted"] == 1 and not report["bad step changed"]
        assert report["good step resets"] == 0 and report["good step changed"]
        message = report["bad end"]
        assert "2 steps in a row" in message and "step 3" in message and "loss " in message
        assert set(report["bad end logged"]) == {1}  # a skipped step has no loss
        assert report["bad end saved"] == [1]  # and is no reason to save
    damaged = skips[-1]
    assert all(key in damaged["bad end"] for key in damaged["bad end keys"])


@pytest.mark.parametrize("world_size", [1, 2])
def test_bad_steps_cost_no_good_checkpoint_at_the_end_of_a_run_or_when_it_is_stopped(reports, world_size):
    for report in reports[world_size]:
        message = report["bad last"]
        assert message.startswith(
            "2 steps in a row without a finite gradient, the last is step 6, the end of the run, which is not"
        )
        assert "write the name of an earlier one into `latest`" in message
        assert report["bad last saved"] == [4]
        assert report["bad single saved"] == [4, 6]  # one skipped step has spoiled nothing
        assert report["bad stopped saved"] == [2, 3]  # though one is to be kept


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_partitioned_average_is_that_of_the_whole_weights(reports, world_size):
    for report in reports[world_size]:
        assert report["average error"] < 1e-7
        assert report["ema inside"] == report["ema gathered"] and report["restored"]


def test_engines_compute_the_same_gradients(reports):
    (report,) = reports[1]
    assert report["moved"] > 1e-4
    assert report["stage 0 distance"] < 1e-6 and report["checkpointed distance"] < 1e-6
    assert report["checkpointed norms"] == pytest.approx(report["stage 1 norms"], rel=1e-5)
    assert report["stage 0 norms"] == pytest.approx(report["stage 1 norms"], rel=1e-4)
    assert report["bf16 norms"] == pytest.approx(report["stage 1 norms"], rel=0.05)


def test_what_does_not_fit_the_run_is_refused_by_name(reports):
    (report,) = reports[1]
    assert "no picture of at least 32x32" in report["empty valid"] and "--valid-data" in report["empty valid"]
    assert "of the 4 ranks that saved it the files of 1, 2, 3 are not there" in report["other ranks"]
    assert "optimizer adamw, this start has muon" in report["other optimizer"]
    assert "--load" in report["other optimizer"]
    assert "precision fp32, this start has bf16" in report["other precision"]
    assert "zero partitioned, this start has stage 0" in report["other partition"]
    assert "num_layers 1 (here 2)" in report["other model"]
    for name, file in (("cut", "mp_rank_00_model"), ("gone", "mp_rank_00_model"), ("emptied", "rank_00_optim")):
        said = report[f"{name} file"]
        assert f"{file}_states.pt is damaged or missing (" in said and "an earlier checkpoint into `latest`" in said
    assert "ema.safetensors is cut off or damaged" in report["averages file"]
    assert "optim_states.pt is damaged (Bad CRC-32 for file" in report["flipped file"]
    for name in ("averages", "flipped"):
        assert report[f"{name} file"].endswith("; or write the name of an earlier checkpoint into `latest`")
    assert report["engines built for the refused"] == 1  # for the one without validation pictures
    assert report["logs left alone"]


def test_the_clipping_of_a_resumed_run_is_that_of_its_command_line(reports):
    (report,) = reports[1]
    assert report["clipping"] == [0.25, 0.1]


def test_the_clip_embedding_conditions_and_averaged_weights_start_a_fine_tuning(reports):
    (report,) = reports[1]
    assert report["clip learnt"] > 1e-4  # was zero
    assert report["tuned step"] == 0
    assert report["tuned weights"] == report["tuned ema"] == report["clip weights"]
    assert report["official tuned"] == [0, True]  # a .pt of the official layout gives the weights as they are in it
    assert report["clip precision"] == [
        ["torch.float32"],
        ["torch.float32"],
    ]  # as generation computes it; the file: bf16
    assert report["tower kept"] and report["held open"] == []  # NFS removes no folder with an open file


def test_another_clip_tower_is_told(reports):
    (report,) = reports[1]
    assert "differs" not in report["same tower"]
    assert re.search(r"differs from step 6 on: CLIP tower (\w{8}) \(was (?!\1)\w{8}\)\n", report["other tower"])


def test_validation_is_of_the_averaged_weights_and_the_picture_shows_its_target(reports):
    (report,) = reports[1]
    logged = report["logged"]
    assert len(report["recomputed"]) == 5
    for name, loss in report["recomputed"].items():
        assert logged[name] == pytest.approx(loss, rel=1e-5)
    assert logged["loss"] == pytest.approx(sum(report["recomputed"].values()) / 5, rel=1e-5)
    assert report["picture size"] == [3, 2 * 32, 4 * 32] and report["target in picture"] < 0.5 / 127
    assert logged["psnr"] == pytest.approx(report["psnr in picture"], abs=0.05)  # 8 bits are shown


def test_a_full_disk_ends_the_run_by_name_and_costs_no_checkpoint(reports):
    (report,) = reports[1]
    if "full disk" not in report:
        pytest.skip("this user may not mount a small disk (unshare --map-root-user --mount, mount -t tmpfs)")
    folder = reports["folders"][1] / "disk" / "a run"
    code, said, latest, _ = report["full disk"].pop("0.0")  # not even room for the log of the start
    assert code == 1 and latest == "2"
    assert said.startswith("error: No space left on device: ") and str(folder) in said and "is intact" in said
    assert len(report["full disk"]) == 3
    for code, said, latest, left in report["full disk"].values():
        assert code == 1 and latest == "2" and left == []
        assert said.startswith(f"error: checkpoint 4 could not be written to {folder} (")
        assert "0.0 GiB are free" in said and "2, the one before, is intact" in said
    assert report["room again"] == [0, "6"]


def test_a_rank_that_dies_is_noticed_and_costs_no_checkpoint(reports):
    report = reports[2][0]
    assert report["seconds to notice"] < 60 and report["death"]
    assert report["left by the dead"] == "2"


def torchrun(output, *flags):
    """The program on two ranks, output into a file; the ranks' environment is torchrun's alone."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with open(output, "w") as log:
        return subprocess.Popen(
            [*command, "train_text2image_sr.py", *flags], env=environment, cwd=ROOT, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip


def end(process):
    for child in children(process):
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    process.kill()
    process.wait()


def children(process):
    try:
        return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):  # has ended
        return []


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the ranks in Linux's /proc")
def test_torchrun_resumes_what_a_dead_rank_left_and_ends_within_a_minute_when_one_is_killed(reports, tmp_path):
    folder, output = reports["folders"][2] / "death", tmp_path / "output.txt"
    flags = [*reports["flags"], "--train-iters", "1000000", "--save-interval", "5", "--save", str(folder)]
    process = torchrun(output, *flags)
    try:
        deadline = time.monotonic() + 240
        while (folder / "latest").read_text() in ("2", "5"):
            assert process.poll() is None and time.monotonic() < deadline, output.read_text()[-3000:]
            time.sleep(0.2)
        environments = {pid: Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") for pid in children(process)}
        (victim,) = [pid for pid, environment in environments.items() if b"RANK=1" in environment]
        os.kill(victim, signal.SIGKILL)
        assert process.wait(timeout=60) not in (0, 75)
    finally:
        end(process)
    said = output.read_text()
    assert "resuming" in said and "at step 2" in said
    assert re.search(rf"rank +: 1 .*\n +exitcode +: -9 \(pid: {victim}\)", said), said[-3000:]
    latest = folder / (folder / "latest").read_text()
    parts = {"training.json", "ema.safetensors", "mp_rank_00_model_states.pt", "data_rank_0.json", "data_rank_1.json"}
    assert parts <= {file.name for file in latest.iterdir()} and len(list(latest.glob("*optim_states.pt"))) == 2


def test_torchrun_ends_within_a_minute_when_one_rank_fails_before_the_ranks_have_met(tmp_path):
    """Rank 0 alone looks for the shards before the others are joined; those wait for it."""
    output = tmp_path / "output.txt"
    process = torchrun(output, "--train-data", f"{tmp_path}/none.tar", "--save", str(tmp_path / "run"), "--device=cpu")
    try:
        assert process.wait(timeout=60) not in (0, 75)
    finally:
        end(process)
    assert f"error: shards '{tmp_path}/none.tar': nothing matches" in output.read_text()


def test_the_checkpoint_has_the_official_layout_and_the_averaged_weights_beside_it(reports):
    import torch

    from sat_sr.checkpoint import load
    from sat_sr.model.layout import parameter_shapes

    tag = reports["folders"][2] / "zero1-whole" / "6"
    averaged, raw = load(tag), load(tag / "mp_rank_00_model_states.pt")
    assert averaged.path.name == "ema.safetensors" and averaged.config.num_layers == 1
    for checkpoint in (averaged, raw):
        assert {name: tuple(t.shape) for name, t in checkpoint.tensors.items()} == parameter_shapes(averaged.config)
    assert not all(torch.equal(tensor, raw.tensors[name]) for name, tensor in averaged.tensors.items())
    module = torch.load(tag / "mp_rank_00_model_states.pt", weights_only=False)["module"]
    assert set(module) == set(parameter_shapes(averaged.config))
