"""Whatever ends a run in the middle: whole pictures only are left, and the same command goes on."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


def test_control_c_leaves_whole_pictures_only_and_the_run_continues(cli, picture, upscaler, monkeypatch):
    before = signal.getsignal(signal.SIGINT)  # a test run in the background ignores it
    pictures = [picture(f"{name}.png") for name in "abc"]
    original, calls = upscaler.run, itertools.count()

    def interrupted(*args, **kwargs):
        if next(calls) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(upscaler, "run", interrupted)
        outcome = cli(*pictures, "--seed", "1")
    assert outcome.code == 130
    assert "interrupted" in outcome.err and "Traceback" not in outcome.err
    assert os.listdir("samples") == ["a_sr.png"]
    assert signal.getsignal(signal.SIGINT) is before

    outcome = cli(*pictures, "--seed", "1", "--skip-existing")
    assert outcome.code == 0 and outcome.out.splitlines()[-1] == "2 done, 1 skipped"
    assert sorted(os.listdir("samples")) == ["a_sr.png", "b_sr.png", "c_sr.png"]


def test_a_second_control_c_ends_at_once():
    code = (
        "import os, signal\nfrom sat_sr.cli.main import _signals\n"
        "with _signals():\n"
        "    try: os.kill(os.getpid(), signal.SIGINT); signal.pause()\n"
        "    except KeyboardInterrupt: os.kill(os.getpid(), signal.SIGINT); print('not ended')"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (130, "")


def test_a_killed_run_leaves_no_half_picture_and_continues(cli, picture, size_of):
    pictures = [picture(f"{name}.png") for name in "abc"]
    assert end_while_writing(cli, pictures, signal.SIGKILL) == -signal.SIGKILL
    assert len(list(Path("samples").glob(".sat-sr-*"))) == 1, "the half-written picture"
    assert [path.name for path in Path("samples").glob("*.png")] == ["a_sr.png"]
    written = os.stat("samples/a_sr.png").st_mtime_ns

    outcome = cli(*pictures, "--seed", "1", "--skip-existing")
    assert outcome.code == 0 and outcome.out.splitlines()[-1] == "2 done, 1 skipped"
    assert sorted(os.listdir("samples")) == ["a_sr.png", "b_sr.png", "c_sr.png"], "leftovers are swept"
    assert os.stat("samples/a_sr.png").st_mtime_ns == written
    assert size_of("samples/b_sr.png") == (24, 20)


def end_while_writing(cli, pictures, number: signal.Signals) -> int:
    """Exit code of a process of its own that gets a signal when its second picture is written but not renamed yet."""
    child = os.fork()
    if not child:
        code = 1
        try:
            torch.set_num_threads(1)  # the threads of OpenMP did not survive the fork
            syncs = itertools.count()
            os.fsync = lambda file: None if next(syncs) != 2 else time.sleep(600)  # each file and its folder are synced
            code = cli(*pictures, "--seed", "1").code
        finally:
            os._exit(code)
    try:
        wait_until(lambda: Path("samples/a_sr.png").exists() and list(Path("samples").glob(".sat-sr-*")))
        time.sleep(0.1)
    finally:
        os.kill(child, number)
        status = os.waitpid(child, 0)[1]
    return os.waitstatus_to_exitcode(status)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_a_picture_is_written_leaves_no_part_of_it(cli, picture, number, code):
    assert end_while_writing(cli, [picture(f"{name}.png") for name in "abc"], number) == code
    assert os.listdir("samples") == ["a_sr.png"]


def wait_until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
