"""Several processes of one run: they share the list, or each picture."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from sat_sr.cli import main
from sat_sr.cli import worker as worker_module
from sat_sr.cli.arguments import parse_arguments
from sat_sr.cli.sharing import Sharing
from sat_sr.image_io import PictureError
from sat_sr.programs.launcher import Process

ROOT = Path(__file__).resolve().parents[2]


def test_ranks_that_plan_at_different_times_take_no_name_from_one_another(
    cli, picture, monkeypatch, network, meanwhile
):
    """Rank 1 plans when rank 0 has written its first picture, and so numbers on from that: y becomes a_sr_3, too."""
    pictures = [picture(f"{folder}/a.png", seed=seed) for seed, folder in enumerate("xyz")]
    flags = ["--seed", "1", "--out-dir", "out"]
    for name, path in zip("xyz", pictures, strict=True):
        cli(path, "--seed", "1", "-o", f"{name}.png")
    monkeypatch.setenv("WORLD_SIZE", "2")

    def second_rank():
        monkeypatch.setenv("RANK", "1")
        assert main.main([*map(str, pictures), *flags, f"--network={network}"]) == 0

    meanwhile(second_rank, call=1)
    monkeypatch.setenv("RANK", "0")
    outcome = cli(*pictures, *flags)
    assert outcome.code == 0
    assert "out/a_sr_3.png has appeared meanwhile: written to out/a_sr_" in outcome.err
    made = {path.read_bytes() for path in Path("out").iterdir()}
    assert made == {Path(f"{name}.png").read_bytes() for name in "xyz"}
    for rank in "01":  # each knows its own again, whatever their numbers are
        monkeypatch.setenv("RANK", rank)
        assert "1 done" not in cli(*pictures, *flags, "--skip-existing").out
    assert {path.read_bytes() for path in Path("out").iterdir()} == made


def test_ranks_whose_outputs_lie_beside_the_pictures_do_each_picture_once(
    cli, picture, monkeypatch, network, meanwhile
):
    """Rank 1 finds an output of rank 0 in the folder: its share must stay the same."""
    for seed, name in enumerate(("m", "n", "o", "p")):
        picture(f"photos/{name}.png", seed=seed)
    picture("photos/m_sr.png", (24, 20))  # of an earlier run: rank 0 writes m_sr_2.png
    monkeypatch.setenv("WORLD_SIZE", "2")

    def second_rank():
        monkeypatch.setenv("RANK", "1")
        assert main.main(["photos", "--out-dir", "photos", f"--network={network}"]) == 0

    meanwhile(second_rank, call=1)
    monkeypatch.setenv("RANK", "0")
    outcome = cli("photos", "--out-dir", "photos")
    assert outcome.code == 0
    made = [f"{name}{number}.png" for name, number in (("m", "_sr_2"), ("n", "_sr"), ("o", "_sr"), ("p", "_sr"))]
    assert sorted(os.listdir("photos")) == sorted([*made, *(f"{name}.png" for name in "mnop"), "m_sr.png"])
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    records = list(map(json.loads, cli("photos", "--out-dir", "photos", "--skip-existing", "--json").out.splitlines()))
    done = {record["input"]: record["output"] for record in records if "output" in record}
    assert done == {f"photos/{name}.png": f"photos/{name}_sr.png" for name in "mnop"}, "what is an output has none"
    left_out = {record["input"]: record["reason"] for record in records if "reason" in record}
    assert sorted(left_out) == sorted(f"photos/{name}" for name in (*made, "m_sr.png"))
    assert left_out["photos/m_sr_2.png"].endswith("it bears the output name of photos/m.png")


def test_ranks_share_the_list(cli, picture, monkeypatch):
    pictures = [picture(f"{name}/same.png", seed=seed) for seed, name in enumerate("abcde")]
    lines = []
    for rank, names in ((0, ("SLURM_PROCID", "SLURM_NTASKS")), (1, ("RANK", "WORLD_SIZE"))):
        with monkeypatch.context() as patch:
            patch.setenv(names[0], str(rank))
            patch.setenv(names[1], "2")
            outcome = cli(*pictures, "--seed", "1", "--skip-existing")
            assert outcome.code == 0
            lines += [line for line in outcome.out.splitlines() if " -> samples" in line]
    assert sorted(line.partition(" -> ")[0] for line in lines) == [
        *(f"[0] {pictures[index]}" for index in (0, 2, 4)),
        *(f"[1] {pictures[index]}" for index in (1, 3)),
    ]
    # Distinct names for equal ones, and none twice.
    assert sorted(os.listdir("samples")) == sorted(["same_sr.png", *(f"same_sr_{n}.png" for n in (2, 3, 4, 5))])


def test_ranks_compute_one_picture_together(cli, picture, network, pixels):
    path = picture("a.png", (20, 30))
    Path("bad.png").write_text("no picture")
    flags = ["--network", network, "--seed", "1", "--device", "cpu"]
    code = (  # forked from one process that has imported everything: that takes longer than all the rest
        "import os, socket, sys, torch, sat_sr.cli.main, sat_sr.inference.denoiser\n"
        "with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]\n"
        "children = {}\n"
        "for rank in range(2):\n"
        "    pid = os.fork()\n"
        "    if not pid:\n"
        "        os.environ |= dict(RANK=str(rank), WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))\n"
        "        torch.set_num_threads(1)\n"
        "        os._exit(sat_sr.cli.main.main(sys.argv[1:]))\n"
        "    children[pid] = rank\n"
        "sys.exit(sum(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *map(str, ["bad.png", path, *flags, "--split-picture"])],
        capture_output=True, text=True, timeout=300, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert result.returncode == 2, result.stderr  # 1 of each
    assert result.stdout.count("-> samples/a_sr.png") == 1, "one rank speaks for all"
    assert result.stderr.count("error: bad.png ") == 1 and "[1]" not in result.stderr
    assert cli(path, *flags, "-o", "alone.png").code == 0
    assert np.abs(pixels("samples/a_sr.png").astype(int) - pixels("alone.png")).max() <= 1


def test_a_rank_that_fails_waits_for_the_others_under_torchrun(monkeypatch):
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port}.items():
        monkeypatch.setenv(name, str(value))
    notes = []

    def finish(rank: int, failed: bool) -> threading.Thread:
        thread = threading.Thread(target=Sharing(Process(rank, 2)).finish, args=(failed, notes.append), daemon=True)
        thread.start()
        return thread

    finish(0, failed=True).join(timeout=20)  # others than torchrun end no rank because of another
    assert not notes
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    first = finish(0, failed=True)
    first.join(timeout=2)
    assert first.is_alive()
    assert notes == ["this rank is done, and waits for 1 other(s) so that torchrun does not end them"]
    second = finish(1, failed=False)
    for thread in (first, second):
        thread.join(timeout=20)
        assert not thread.is_alive()


def test_a_picture_that_one_rank_cannot_read_is_done_by_none():
    class Ranks:
        first_with = staticmethod(lambda here: 1)

    def no_memory():
        raise MemoryError

    reported = []
    with pytest.raises(PictureError, match="rank 1 cannot do it"):
        Sharing(Process(0, 2), Ranks()).agree(lambda: "picture", reported.append)
    assert not reported
    with pytest.raises(MemoryError):
        Sharing(Process(1, 2), Ranks()).agree(no_memory, reported.append)
    assert reported == ["there is not enough memory: ask for a smaller size"]


def test_a_folder_that_cannot_be_written_is_the_failure_of_its_pictures(cli, picture):
    paths = [picture("in/a.png"), picture("in/sub/b.png")]
    Path("out").mkdir()
    Path("out/sub").touch()
    outcome = cli("in", "--recursive", "--out-dir", "out")
    assert outcome.code == 1 and os.listdir("out") and Path("out/a_sr.png").exists()
    assert f"{paths[1].relative_to(Path.cwd())}: " in outcome.err
    assert cli(paths[1], "--out-dir", "out/sub").code == 2


@pytest.mark.parametrize(("rank", "code", "said"), [("0", 2, ["[0] error: one is not like the other"]), ("1", 1, [])])
def test_ranks_that_differ_end_all_and_the_first_one_tells(cli, picture, monkeypatch, rank, code, said):
    from sat_sr.inference import rendezvous

    def join(*args, **kwargs):
        raise rendezvous.RanksDiffer("one is not like the other")

    monkeypatch.setattr(rendezvous, "join", join)
    for name, value in {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    outcome = cli(picture("a.png"))
    assert (outcome.code, outcome.err.splitlines()) == (code, said)
    assert not Path("samples").exists()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1, 0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, (3, 8, 1, 2)),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}, (3, 8, 1, 1)),
        (  # srun -n 7 on four nodes, as `man srun` writes it
            {"SLURM_PROCID": "6", "SLURM_NTASKS": "7", "SLURM_NODEID": "3", "SLURM_STEP_TASKS_PER_NODE": "2(x3),1"},
            (6, 7, 0, 1),
        ),
        (
            {"SLURM_PROCID": "5", "SLURM_NTASKS": "7", "SLURM_NODEID": "2", "SLURM_STEP_TASKS_PER_NODE": "2(x3),1"},
            (5, 7, 0, 2),
        ),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "7"}, (0, 1, 0, 1)),  # the batch script
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}, (1, 8, 0, 1)),
        (  # the shell of an allocation
            {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"},
            (0, 1, 0, 1),
        ),
    ],
)
def test_which_rank_this_is(environment, expected):
    process = Process.of(environment)
    assert (process.rank, process.world_size, process.local_rank, process.local_world_size) == expected


def test_ranks_that_share_a_list_have_one_seed(cli, picture, monkeypatch):
    pictures = [picture(f"{name}.png") for name in "ab"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    seeds = []
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        seeds += [json.loads(line)["seed"] for line in cli(*pictures, "--json").out.splitlines()]
    assert seeds == [0, 0]


def test_one_process_splits_no_picture(cli, picture):
    outcome = cli(picture("a.png"), "--split-picture")
    assert outcome.code == 0 and "note: --split-picture has no effect on one process" in outcome.err


def test_ranks_share_no_standard_input(cli, picture, monkeypatch):
    """Those of torchrun would each read a part of it."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    outcome = cli("-")
    assert outcome.code == 2 and "2 ranks cannot share standard input" in outcome.err


@pytest.mark.parametrize(
    ("rank", "world", "local_world", "told"),
    [
        ("x", "2", "1", "RANK=x"),
        ("2", "2", "1", "RANK=2"),
        ("0", "2", "0", "LOCAL_WORLD_SIZE=0"),
        ("", "2", "1", "RANK is not set"),
    ],
)
def test_ranks_that_cannot_be(cli, picture, monkeypatch, rank, world, local_world, told):
    for name, value in {"RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": local_world}.items():
        monkeypatch.setenv(name, value)
    outcome = cli(picture("a.png"))
    assert outcome.code == 2 and told in outcome.err.replace("'", "")


def test_each_rank_has_a_gpu_of_its_own_for_everything(network, monkeypatch):
    """PyTorch works on the first GPU where none is named, and to begin there takes some of its memory."""
    chosen = []
    monkeypatch.setattr(worker_module, "resolve_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    args = parse_arguments(["a.png", "--dtype", "float32"])
    for local_rank in range(3):
        worker = worker_module.Worker(args, network, seed=0, local_rank=local_rank, local_ranks=3)
        assert chosen.pop() == worker.device == torch.device("cuda", local_rank % 2) and worker.on_device == 2
