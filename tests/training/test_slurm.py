"""Two nodes of a real Slurm: a job that is killed, resubmitted, preempted and requeued trains as one that is not; and
one of the two goes on alone."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SLURM = Path(__file__).with_name("slurm_local.sh")
STEPS = 120


def missing():
    absent = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if not shutil.which(name)]
    if absent:
        return f"no {', '.join(absent)} here: apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "a local Slurm must be started as root"


pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(missing()), reason=missing())]


def free_ports(count):
    """The first of `count` neighbouring free ports."""
    for first in range(16817, 30000, 10):
        sockets = [socket.socket() for _ in range(count)]
        try:
            for at, listener in enumerate(sockets):
                listener.bind(("127.0.0.1", first + at))
            return first
        except OSError:
            continue
        finally:
            for listener in sockets:
                listener.close()
    pytest.skip("no free ports for a local Slurm")


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A running cluster; gives a function that runs one of Slurm's commands and returns what it prints."""
    for name in [name for name in os.environ if name.startswith(("SLURM_", "MASTER_"))]:
        monkeypatch.delenv(name)
    folder = tmp_path / "slurm"
    monkeypatch.setenv("SLURM_LOCAL_DIR", str(folder))
    monkeypatch.setenv("SLURM_LOCAL_PORT", str(free_ports(3)))
    monkeypatch.setenv("PYTHON", sys.executable)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def run(*command, check=True):
        result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
        assert not check or result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
        return result.stdout

    try:
        subprocess.run(["bash", str(SLURM), "start", "2", "2"], check=True, timeout=60, stdout=subprocess.DEVNULL)
        monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        yield run
    finally:
        subprocess.run(["bash", str(SLURM), "stop"], check=True, timeout=60)


def records(folder):
    """{step: loss} of the run's log so far."""
    path = folder / "log.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    parsed = [json.loads(line) for line in lines if line.endswith("\n")]
    return {record["step"]: record["loss"] for record in parsed if record["kind"] == "train"}


def test_killed_resubmitted_preempted_and_requeued_it_trains_as_if_undisturbed(slurm, tiny_flags, shards, tmp_path):
    def submit(name, nodes=2, steps=STEPS):
        flags = [
            *tiny_flags,
            "--vector-dim=0",
            f"--valid-data={shards}",
            f"--train-iters={steps}",
            "--save-interval=20",
        ]
        printed = slurm(
            "sbatch", f"--nodes={nodes}", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1", "--time=10",
            f"--output={tmp_path}/{name}.txt", "scripts/train.sbatch",
            *flags, "--save", str(tmp_path), "--experiment-name", name,
        )  # fmt: skip
        return re.search(r"\d+", printed).group()

    def wait(what, condition, job, may_fail=False, seconds=150):
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            state = job_state(job)
            output = [path.read_text()[-2000:] for path in tmp_path.glob("*.txt")]
            assert may_fail or state not in ("FAILED", "TIMEOUT", "NODE_FAIL"), (what, state, output)
            assert time.monotonic() < deadline, (what, state, output)
            time.sleep(0.1)
        return value

    def job_state(job):
        return re.search(r"JobState=(\w+)", slurm("scontrol", "show", "job", job)).group(1)

    def reached(name, step):
        return lambda: max(records(tmp_path / name), default=0) >= step

    undisturbed = submit("undisturbed")
    first = submit("disturbed")
    wait("first steps", reached("disturbed", 25), first)
    slurm("scancel", "--signal=KILL", f"{first}.0")  # the ranks, without a warning
    wait("the kill", lambda: job_state(first) in ("FAILED", "CANCELLED"), first, may_fail=True)
    assert 25 <= max(records(tmp_path / "disturbed")) < STEPS

    second = submit("disturbed")
    wait("more steps", reached("disturbed", 60), second)
    slurm("scancel", "--signal=USR1", second)
    # Requeued jobs wait two minutes; we wait just until the nodes have done with the first start.
    wait("the requeueing", lambda: "Restarts=1" in slurm("scontrol", "show", "job", second), second)
    wait("its place in the queue", lambda: job_state(second) == "PENDING", second)
    slurm("scontrol", "update", f"JobId={second}", "StartTime=now+5")
    for job in (second, undisturbed):
        wait("the end", lambda job=job: job_state(job) == "COMPLETED", job)

    output = (tmp_path / "disturbed.txt").read_text()
    assert len(re.findall(r"resuming .* at step", output)) == 2 and "stopped by a signal, saved at step" in output
    assert "2 rank(s) from Slurm" in output
    whole, disturbed = records(tmp_path / "undisturbed"), records(tmp_path / "disturbed")
    assert list(whole) == list(disturbed) == list(range(1, STEPS + 1))
    assert whole == disturbed

    third = submit("disturbed", nodes=1, steps=STEPS + 10)  # as if a node were lost, or all were taken
    wait("the end on one node", lambda: job_state(third) == "COMPLETED", third)
    output = (tmp_path / "disturbed.txt").read_text()
    assert "ranks 1 (was 2), samples per step 1 (was 2)" in output
    assert list(records(tmp_path / "disturbed")) == list(range(1, STEPS + 11))
