"""The program of training: flags, ranks, what is settled before anything runs, and what ends it."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sat_sr.checkpoint import save_safetensors
from sat_sr.config import InfDiTConfig
from sat_sr.model.layout import parameter_shapes
from sat_sr.training.arguments import parse_arguments
from sat_sr.training.deepspeed_config import read_deepspeed_config
from sat_sr.training.preemption import Preemption
from sat_sr.training.ranks import find_ranks, wait_for_all
from sat_sr.training.recipe import settle
from sat_sr.training.tf32 import tf32

ROOT = Path(__file__).parents[2]
NEEDED = ["--train-data", ";shards", "--save", "run"]

# The release's launcher, word for word but for the paths.
RELEASE = shlex.split(
    """--model-parallel-size 1 --experiment-name sr --num-layers 28 --vocab-size 1 --hidden-size 1280
    --num-attention-heads 16 --max-sequence-length 256 --layernorm-epsilon 1e-6 --layernorm-order pre
    --tokenizer-type fake --hidden-dropout 0 --attention-dropout 0 --in-channels 6 --out-channels 3 --image-size 512
    --patch-size 4 --nogate --no-crossmask --input-time adaln --config-path configs/text2image-sr.yaml --random-position
    --qk-ln --image-condition --vector-dim 768 --re-position --cross-lr --mode pretrain --train-iters 1000000
    --eval-interval 1000 --eval-iters 1 --save ./ckpt --save-interval 5000 --log-interval 20 --train-data ';DIR1,DIR2'
    --valid-data ';DIR' --split 1,0,0 --iterable-dataset --no-load-rng --deepspeed
    --deepspeed_config scripts/ds_config_zero_clip.json --lr-dropout 0.07 --text-dropout 0.1
    --cross-attn-hidden-size 640 --num-workers 6 --seed 17 --image-block-size 128"""
)


def refusal(capsys, *flags):
    with pytest.raises(SystemExit) as stop:
        parse_arguments([*NEEDED, *flags])
    assert stop.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_the_release_s_command_line_is_understood_and_what_it_cannot_change_is_said_once():
    settings = parse_arguments(RELEASE)
    assert settings.model == InfDiTConfig.preset("official")
    assert settings.train_iters == 10**6 and settings.save_interval == 5000 and settings.num_workers == 6
    assert settings.random_position and settings.lr_dropout == 0.07 and settings.train_data == [";DIR1,DIR2"]
    (note,) = settings.notes
    said = re.findall(r"(--[a-z-]+) \(", note)
    assert len(said) == len(set(said)) == 25 and {"--qk-ln", "--text-dropout", "--split", "--deepspeed"} <= set(said)
    values = read_deepspeed_config(ROOT / settings.deepspeed_config)
    recipe = settle(settings, values, world_size=64, use_cuda=True)
    assert (recipe.batch, recipe.precision, recipe.zero_stage, recipe.clip_grad) == (64, "bf16", 1, 0.1)
    assert (recipe.lr, recipe.betas, recipe.eps, recipe.weight_decay) == (1e-4, (0.9, 0.999), 1e-8, 1e-4)


def test_the_default_deepspeed_json_is_there_from_any_folder_and_is_the_release_s(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    default = read_deepspeed_config(parse_arguments(NEEDED).deepspeed_config)
    assert default == read_deepspeed_config(ROOT / parse_arguments(RELEASE).deepspeed_config)


def test_dashes_and_underscores_are_the_same_and_sizes_go_over_the_preset():
    settings = parse_arguments([*NEEDED, "--preset", "mini", "--num_layers=3", "--image_block_size", "16"])
    assert (settings.model.num_layers, settings.model.image_block_size, settings.model.hidden_size) == (3, 16, 192)
    assert parse_arguments([*NEEDED, "--load", "model.pt"]).model is None  # the file decides


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--layernorm-order", "post"], ["--layernorm-order post", "must be pre"]),
        (["--mode", "inference"], ["--mode inference", "generate_sr_big.py"]),
        (["--hidden-size", "100", "--num-attention-heads", "8"], ["hidden_size=100", "multiple of 8"]),
        (["--preset", "giant"], ["giant", "official, mini"]),
        (["--lr-dropout", "7"], ["--lr-dropout: 7 must lie between 0 and 1"]),
        (["--save-interval", "0"], ["--save-interval: 0 must be an integer of at least 1"]),
        (["--gradient-weight", "-1"], ["--gradient-weight: -1 must be 0 or a positive number"]),
        (["--ema-decay", "1"], ["--ema-decay 1", "below 1"]),
        (["--lr", "nan"], ["--lr: nan must be a number above 0"]),
        (["--clip-grad", "-1"], ["--clip-grad: -1 must be 0 or a positive number"]),
        (["--timeout", "0"], ["--timeout: 0 must be a number above 0"]),
        (["--p-mean", "inf"], ["--p-mean: inf must be a number, such as -1"]),
        (["--timeout", "1e30"], ["--timeout 1e+30", "at most 1e+06"]),
        (["--threads", "1000000"], ["--threads: 1000000 must be an integer of at most 1024"]),
        (["--seed", "99999999999999999999"], ["seed 99999999999999999999 must be an integer between 0 and 2**63 - 1"]),
        (["--trian-iters", "5"], ["--trian-iters"]),
    ],
)
def test_wrong_flags_are_named(capsys, flags, words):
    message = refusal(capsys, *flags)
    assert all(word in message for word in words), message


def test_without_data_or_folder_nothing_starts_but_a_dry_run(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["--save", "run"])
    assert "--train-data is missing" in capsys.readouterr().err
    assert parse_arguments(["--dry-run"]).dry_run


def test_ranks_from_torchrun_from_slurm_and_alone(monkeypatch, tmp_path):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\n[ "$*" = "show hostnames node[3-4]" ] && printf "node3\\nnode4\\n"\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    slurm = {
        "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NTASKS": "8", "SLURM_NODELIST": "node[3-4]",
        "SLURM_JOBID": "1234567", "SLURM_STEP_ID": "0",
    }  # fmt: skip
    ranks = find_ranks(slurm)
    assert (ranks.rank, ranks.local_rank, ranks.world_size) == (5, 1, 8)
    assert (ranks.master_addr, ranks.master_port, ranks.source) == ("node3", 14567, "Slurm")
    part = find_ranks({**slurm, "SLURM_NODELIST": "node[1-4]", "SLURM_STEP_NODELIST": "node[3-4]"})
    assert part.master_addr == "node3"  # srun --relative=2 --nodes=2
    torchrun = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "host", "MASTER_PORT": "29500"}
    ranks = find_ranks(slurm | torchrun)  # torchrun inside a Slurm step: torchrun numbers the ranks
    assert (ranks.rank, ranks.world_size, ranks.master_addr, ranks.source) == (3, 4, "host", "torchrun")
    alone = find_ranks({})
    assert (alone.rank, alone.world_size, alone.master_addr) == (0, 1, "127.0.0.1")
    batch = {**slurm, "SLURM_PROCID": "0"}
    del batch["SLURM_STEP_ID"]  # in the batch script, before srun
    assert find_ranks(batch).world_size == 1
    with pytest.raises(ValueError, match="SLURM_NTASKS is not set"):
        find_ranks({name: value for name, value in slurm.items() if name != "SLURM_NTASKS"})
    shell = {**slurm, "SLURM_PROCID": "0", "SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"}
    assert find_ranks(shell).world_size == 1  # of an interactive allocation of eight tasks
    for one in ("RANK", "WORLD_SIZE"):
        with pytest.raises(ValueError, match=r"started by torchrun, but .* not set"):
            find_ranks({one: "1"})
    with pytest.raises(ValueError, match="MASTER_PORT='abc': must be a port's number"):
        find_ranks(torchrun | {"MASTER_PORT": "abc"})
    with pytest.raises(ValueError, match="LOCAL_RANK='x' in the environment: must be a number"):
        find_ranks(torchrun | {"LOCAL_RANK": "x"})
    with pytest.raises(ValueError, match=r"cannot read SLURM_NODELIST='node\[9\]'"):
        find_ranks(slurm | {"SLURM_NODELIST": "node[9]"})


def run(*arguments):
    command = [sys.executable, "train_text2image_sr.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_shards_that_match_nothing_end_the_program_with_one_sentence(tmp_path):
    result = run("--train-data", f"{tmp_path}/*.tar", "--save", str(tmp_path / "run"), "--device", "cpu")
    assert result.returncode == 1
    said = f"error: shards '{tmp_path}/*.tar': nothing matches that is a shard or holds some"
    assert result.stderr.splitlines() == [said]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--degradation", "harsh"], "unknown degradation 'harsh' in 'harsh': known are strong, mild, clean"),
        (["--degradation", "clean,mild", "--image-size", "32"], "--image-size 32 with --degradation clean,mild: crop"),
    ],
)
def test_a_degradation_that_cannot_be_is_named_before_anything_starts(monkeypatch, capsys, flags, words):
    from sat_sr.training import launch

    ended = []
    monkeypatch.setattr(launch.os, "_exit", ended.append)
    launch.launch(parse_arguments(["--dry-run", "--device", "cpu", *flags]), Preemption())
    assert ended == [1] and f"error: {words}" in capsys.readouterr().err


@pytest.mark.parametrize("has_cuda", [True, False])
def test_a_gpu_whose_memory_runs_out_is_told_in_one_sentence(monkeypatch, capsys, has_cuda):
    from sat_sr.training import launch

    def train(*_):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 77 * 2**30)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**20, 79.5 * 2**30))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(launch, "_train", train)
    monkeypatch.setattr(launch, "_check_data", lambda settings: None)
    ended = []
    monkeypatch.setattr(launch.os, "_exit", ended.append)
    launch.launch(parse_arguments([*NEEDED, "--device=cpu"]), Preemption())
    (said,) = capsys.readouterr().err.splitlines()
    assert ended == [1]
    figures = " (77.0 GiB were in use at the peak, the device has 79.5 GiB)" if has_cuda else ""
    assert said.startswith(f"error: the memory of the GPU ran out{figures}: --micro-batch-size 1")
    ways_out = re.findall(r"--[a-z0-9-]+", said)
    assert {"--checkpoint-activations", "--zero-stage"} <= set(ways_out)
    offered = [*NEEDED, "--micro-batch-size=1", "--gradient-accumulation-steps=2", "--checkpoint-activations"]
    assert parse_arguments([*offered, "--zero-stage=2"]).zero_stage == 2  # they are flags
    assert len(ways_out) == 4


def dry_run(monkeypatch, capsys, *flags):
    """What a dry run in this process says before its settings, without the time of day, and the settings."""
    from sat_sr.training import launch

    monkeypatch.setattr(launch.os, "_exit", lambda code: pytest.fail(capsys.readouterr().err))
    assert launch.launch(parse_arguments(["--dry-run", "--device", "cpu", *flags]), Preemption()) == 0
    said, settings = capsys.readouterr().out.split("{\n", 1)
    return re.sub(r"(?m)^\d\d:\d\d:\d\d ", "", said), json.loads("{" + settings)


@pytest.mark.parametrize("world", [1, 2])
def test_one_rank_waits_for_nobody(monkeypatch, world):
    waited = []
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: world)
    monkeypatch.setattr(torch.distributed, "barrier", lambda: waited.append(world))
    wait_for_all()
    assert len(waited) == world - 1


def test_tf32_is_for_what_is_inside():
    products = torch.backends.cuda.matmul
    for allowed in (True, False):
        with pytest.raises(ZeroDivisionError), tf32(allowed):
            assert products.allow_tf32 == allowed
            _ = 1 / 0
        assert not products.allow_tf32


def test_both_rates_of_muon_are_told(monkeypatch, capsys):
    flags = ["--optimizer", "muon", "--zero-stage", "0", "--muon-lr", "0.012", "--lr", "2e-3"]
    said, _ = dry_run(monkeypatch, capsys, *flags)
    assert "| muon lr 0.012 for matrices, adamw lr 0.002 for the rest, weight decay" in said
    said, _ = dry_run(monkeypatch, capsys, "--lr", "2e-3")
    assert "| adamw lr 0.002, weight decay" in said and "muon" not in said


def test_a_run_that_goes_on_does_not_open_what_it_was_started_from(monkeypatch, capsys, tmp_path):
    config = InfDiTConfig(
        num_layers=1, hidden_size=32, num_attention_heads=2, image_block_size=16, image_size=64, vector_dim=0
    )
    weights = tmp_path / "runs" / "mine" / "7" / "ema.safetensors"
    weights.parent.mkdir(parents=True)
    save_safetensors(weights, {name: torch.zeros(shape) for name, shape in parameter_shapes(config).items()}, config)
    flags = ["--degradation", "clean", "--load", "moved.pt", "--save", str(tmp_path / "runs")]
    with pytest.raises(pytest.fail.Exception, match=r"error: moved.pt: no such checkpoint"):
        dry_run(monkeypatch, capsys, *flags, "--experiment-name", "other")  # no checkpoint to go on from there
    (weights.parent / "training.json").write_text("{}")  # of a complete checkpoint
    said, settings = dry_run(monkeypatch, capsys, *flags, "--experiment-name", "mine")
    assert said.count("moved.pt") == 1
    assert f"--load moved.pt is not read: {tmp_path / 'runs' / 'mine'} resumes from its last checkpoint" in said
    assert settings["model"] == config.to_dict() and settings["load"] is None
    (tmp_path / "runs" / "mine" / "latest").write_text("7")  # until now it was the newest one that was found
    assert dry_run(monkeypatch, capsys, *flags, "--experiment-name", "mine") == (said, settings)


def test_pictures_that_are_all_too_small_end_the_program_with_one_sentence(shards, tmp_path):
    """Found by a worker process, after the program has started in earnest."""
    flags = ["--preset", "mini", "--num-layers", "1", "--hidden-size", "24", "--device", "cpu", "--num-workers", "2"]
    result = run(*flags, "--train-data", str(shards), "--save", str(tmp_path / "run"))
    assert result.returncode == 1
    (said,) = result.stderr.splitlines()
    assert re.match(r"error: no picture of at least 128x128 pixels in 2 shards \(.*\): \d+ too small; check", said)


def test_a_signal_while_it_starts_is_heard(shards, tmp_path):
    """Slurm's warning may come before the first step: the run saves after it, and says that it is not done."""
    flags = ["--preset", "mini", "--num-layers", "1", "--hidden-size", "24", "--device", "cpu", "--num-workers", "0"]
    flags += ["--image-size", "32", "--degradation", "clean", "--train-iters", "50"]
    command = [sys.executable, "-u", "train_text2image_sr.py", *flags, "--train-data", str(shards)]
    with subprocess.Popen([*command, "--save", str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        while "rank(s) from single process" not in process.stdout.readline():  # then SAT and DeepSpeed are imported
            assert process.poll() is None
        process.send_signal(signal.SIGUSR1)
        assert "stopped by a signal, saved at step 1" in process.stdout.read()
    assert process.returncode == 75 and (tmp_path / "latest").read_text() == "1"


@pytest.mark.parametrize("gone", ["disk", "reader"])
def test_a_run_whose_output_ends_goes_on(tiny_flags, tmp_path, gone):
    """`sbatch --output` on a full disk; `2>&1 | tee` of a connection that has broken."""
    reads, writes = os.pipe()
    os.close(reads)
    with open("/dev/full" if gone == "disk" else writes, "w") as place, open(tmp_path / "errors", "w") as errors:
        code = subprocess.run(
            [sys.executable, "train_text2image_sr.py", *tiny_flags, "--train-iters=2", "--save", str(tmp_path / "run")],
            cwd=ROOT, stdout=place, stderr=errors if gone == "disk" else place, timeout=300,
        ).returncode  # fmt: skip
    assert code == 0 and (tmp_path / "run" / "latest").read_text() == "2"
    if gone == "disk":
        (said,) = (tmp_path / "errors").read_text().splitlines()
        assert said.startswith("standard output cannot be written (No space left on device): the run goes on without")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the worker in Linux's /proc")
@pytest.mark.parametrize("interval", ["1", "1000000"])  # most of the time in writing, or in computing
def test_a_data_worker_that_was_killed_is_told_in_one_sentence(tiny_flags, tmp_path, interval):
    flags = [*tiny_flags, "--num-workers=1", "--train-iters=1000000", f"--log-interval={interval}"]
    errors = tmp_path / "errors.txt"
    command = [sys.executable, "train_text2image_sr.py", *flags, "--save", str(tmp_path / "run"), "--save-interval=5"]
    with open(errors, "w") as file, subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=file, text=True
    ) as process:  # fmt: skip
        try:
            while "saved" not in process.stdout.readline():
                assert process.poll() is None
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            own = [pid for pid in children if b"train_text2image_sr.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
            (worker,) = map(int, own)  # forked; PyTorch may have started a process that compiles
            os.kill(worker, signal.SIGKILL)
            process.stdout.read()
            assert process.wait(timeout=60) == 1
        finally:
            process.kill()
    (said,) = errors.read_text().splitlines()
    assert said.startswith("error: a data worker was killed, most likely because the memory ran out: give fewer --num")


@pytest.mark.parametrize(
    ("zero", "words"),
    [
        ({"stage": 1, "offload_optimizer": {"device": "none", "pin": 3}}, ".*pin 3"),
        ({"stage": 1, "allgather_bucket_size": 3}, r"it \(allgather_bucket_size must be a multiple of .*\): correct"),
    ],
)
def test_what_deepspeed_itself_refuses_is_told_in_one_sentence(tiny_flags, tmp_path, zero, words):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": zero}))
    result = run(*tiny_flags, "--save", str(tmp_path / "run"), "--deepspeed-config", str(path))
    assert result.returncode == 1
    (said,) = result.stderr.splitlines()
    assert re.match(rf"error: --deepspeed-config {path}: DeepSpeed does not accept (?:{words})", said)


def test_a_section_that_decides_nothing_is_told_once(monkeypatch, capsys, tmp_path):
    path = tmp_path / "ds.json"
    path.write_text('{"activation_checkpointing": {"partition_activations": true}}')
    said, _ = dry_run(monkeypatch, capsys, "--deepspeed-config", str(path))
    assert said.count("activation_checkpointing in the DeepSpeed JSON decides nothing: --checkpoint-activations") == 1


def test_crops_that_are_no_whole_blocks_are_refused_before_anything_starts(monkeypatch, capsys):
    with pytest.raises(pytest.fail.Exception, match=r"--image-size 40: crops must be whole blocks, .* 16"):
        dry_run(monkeypatch, capsys, "--degradation", "clean", "--image-size", "40", "--image-block-size", "16")


def test_a_dry_run_shows_settings_and_size_and_writes_nothing(tmp_path):
    shards = [tmp_path / "a b" / "0.tar", tmp_path / "c" / "0.tar"]
    for shard in shards:
        shard.parent.mkdir()
        shard.touch()
    result = run(
        *("--dry-run", "--device", "cpu", "--save", str(tmp_path / "run"), "--micro-batch-size", "2", "--nogate"),
        *("--train-data", f"{tmp_path}/a*/*.tar", f";{shards[1].parent}"),
    )
    assert result.returncode == 0, result.stderr
    assert "model of 753,762,928 parameters" in result.stdout
    assert result.stdout.count("accepted, and changes nothing: --nogate (the network has no gates)") == 1
    settings = json.loads(result.stdout[result.stdout.index("{\n") :])
    assert settings["model"] == InfDiTConfig.preset("official").to_dict()
    assert settings["deepspeed"]["train_micro_batch_size_per_gpu"] == 2
    assert not (tmp_path / "run").exists()


def test_a_rank_whose_partner_was_refused_says_so_in_one_sentence(tiny_flags, tmp_path):
    """Rank 0 alone makes the folder, when the ranks have met."""
    (tmp_path / "file").touch()
    command = [sys.executable, "train_text2image_sr.py", *tiny_flags, "--save", str(tmp_path / "file" / "run")]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(listener.getsockname()[1]), "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            command, cwd=ROOT, env=os.environ | meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        first, second = (rank.communicate(timeout=120)[1].splitlines() for rank in ranks)
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [1, 1]
    assert len(first) == 1 and "no folder can be made there" in first[0]
    assert second == ["error: another rank has ended: its message, or the launcher's, says why"]
