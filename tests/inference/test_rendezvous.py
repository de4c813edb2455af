"""A rank that waits for others that do not come can be interrupted, says what it waits for, and does not wait for ever.

As a program (PICTURE OUTPUT): the command line, which says so at once.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from PIL import Image

from sat_sr.inference import rendezvous

ROOT = Path(__file__).parents[2]


@pytest.fixture
def place(monkeypatch):
    """A meeting place where nobody else comes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    return port


@pytest.mark.parametrize("rank", [0, 1])
def test_ctrl_c_ends_the_waiting(place, rank, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RANK": str(rank), "WORLD_SIZE": "2"}
    with subprocess.Popen(
        [sys.executable, __file__, tmp_path / "a.png", tmp_path / "b.png"],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        said = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        said += process.communicate(timeout=60)[1]
    assert process.returncode == 130, said
    assert f"[{rank}] note: rank {rank} of 2 waits for the others at 127.0.0.1:{place}, for 0:05:00 at most" in said
    assert "Traceback" not in said and not (tmp_path / "b.png").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_the_waiting_has_an_end(place, rank, monkeypatch):
    monkeypatch.setattr(rendezvous, "RENDEZVOUS_TIMEOUT", timedelta(seconds=1))
    with pytest.raises(ConnectionError, match=rf"rank {rank} of 2 has not met the others at 127.0.0.1:{place} \(.+\):"):
        rendezvous.join({}, "cpu", rank, 2)


def test_a_meeting_place_that_is_taken_is_reported_at_once(place):
    with socket.socket() as taken:
        taken.bind(("", place))
        taken.listen()
        with pytest.raises(ConnectionError, match="a free MASTER_PORT"):
            rendezvous.join({}, "cpu", 0, 2)


def test_ranks_that_have_parted_can_meet_again_in_the_store_of_torchrun():
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    code = (
        "import sys; from sat_sr.inference.rendezvous import join\n"
        "for meeting in range(2):\n"
        "    ranks = join({}, 'cpu', int(sys.argv[1]), 2)\n"
        "    print(ranks.first_with(ranks.rank == 1)); ranks.close(); ranks.close()"
    )
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank)],
            env={**os.environ, **environment, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    assert [process.communicate(timeout=120)[0] for process in processes] == ["1\n1\n"] * 2


@pytest.mark.parametrize("absent", [0, 1])
def test_ranks_that_wait_for_one_that_cannot_start_are_told(place, absent):
    """Also by rank 0, at which they meet."""
    code = (
        "import sys; from sat_sr.inference.rendezvous import RanksDiffer, decline, join\n"
        "rank, absent = map(int, sys.argv[1:])\n"
        "if rank == absent: sys.exit(decline(rank, 3))\n"
        "try: join({}, 'cpu', rank, 3)\n"
        "except RanksDiffer as error: print(error)"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank), str(absent)],
            env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
        )
        for rank in range(3)
    ]  # fmt: skip
    told = [process.communicate(timeout=120)[0] for process in processes]
    reason = f"rank {absent} cannot start: its message says why\n"
    assert told == ["" if rank == absent else reason for rank in range(3)]
    assert [process.returncode for process in processes] == [0, 0, 0]


def test_of_lists_that_differ_the_first_difference_is_named():
    said = rendezvous._difference(
        [json.dumps({"pictures": names}) for names in (["a: to do", "b: to do"], ["a: to do"])]
    )
    assert said.startswith("rank 0 has pictures='b: to do', rank 1 has None: start all ranks")


@pytest.mark.parametrize(("given", "expected"), [(None, "4"), ("16", "16")])
def test_exchanges_leave_most_of_a_gpu_to_the_network(place, monkeypatch, given, expected):
    """Set before NCCL looks at it; what the user has set stays."""
    monkeypatch.setenv("NCCL_MAX_CTAS", given or "")
    if not given:
        monkeypatch.delenv("NCCL_MAX_CTAS")
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(rendezvous, "_gpu", lambda device: "a GPU")
    seen = []
    monkeypatch.setattr(rendezvous, "_in_background", lambda *_: seen.append(os.environ.get("NCCL_MAX_CTAS")))
    rendezvous.join({}, "cuda", 0, 2)
    assert seen == [expected]


if __name__ == "__main__":
    from sat_sr.cli.main import main

    rendezvous._PATIENCE = 0
    sys.exit(main([sys.argv[1], "-o", sys.argv[2], "--device", "cpu"]))
