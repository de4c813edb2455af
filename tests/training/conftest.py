"""Shards of small random pictures, flags of a model that trains in milliseconds, and programs run on several ranks."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
TINY = {
    "preset": "mini", "num-layers": 1, "hidden-size": 32, "num-attention-heads": 2, "image-size": 32,
    "image-block-size": 16, "degradation": "clean", "num-workers": 0, "lr": 1e-3, "device": "cpu", "threads": 1,
    "log-interval": 1, "eval-interval": 100, "save-interval": 100, "eval-steps": 2,
}  # fmt: skip


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """A folder of two shards with five pictures each."""
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    for shard in range(2):
        with tarfile.open(folder / f"{shard:04d}.tar", "w") as tar:
            for number in range(5):
                picture = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((40, 48))
                data = io.BytesIO()
                picture.save(data, format="PNG")
                info = tarfile.TarInfo(f"picture{shard}_{number}.png")
                info.size = data.tell()
                data.seek(0)
                tar.addfile(info, data)
    return folder


@pytest.fixture(scope="session")
def tiny_flags(shards):
    """Everything but --save and --train-iters."""
    return [*(f"--{name}={value}" for name, value in TINY.items()), "--train-data", f"{shards}/{{0000..0001}}.tar"]


def private_mounts():
    """In front of a command: what it mounts nobody else sees, and goes with it. [] where that is not allowed."""
    command = ["unshare", "--map-root-user", "--mount"]
    try:
        subprocess.run([*command, "mount", "-t", "tmpfs", "tmpfs", "/tmp"], check=True, capture_output=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return []
    return command


def start_ranks(program, folder, world_size, flags):
    """A process each rank."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    processes = []
    mounts = private_mounts()
    for rank in range(world_size):
        environment = os.environ | {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **({"PRIVATE_MOUNTS": "yes"} if mounts else {}),
        }  # fmt: skip
        log = open(folder / f"output{rank}.txt", "w")  # noqa: SIM115
        command = [*mounts, sys.executable, str(program), str(folder), *flags]
        processes.append(subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT))
        log.close()
    return processes


@pytest.fixture(scope="session")
def run_ranks():
    """Runs a program that uses rank_tools on one rank and on two, both at the same time."""

    def run(program, folders, flags, killed=None):
        """{world size: [report of each rank]}.

        folders  {world size: folder}
        killed   (world size, rank) of a rank that must end by SIGKILL; all others must end well
        """
        running = {size: start_ranks(program, folder, size, flags) for size, folder in folders.items()}
        found = {}
        try:
            for world_size, processes in running.items():
                folder = folders[world_size]
                for rank, process in enumerate(processes):
                    wanted = -signal.SIGKILL if killed == (world_size, rank) else 0
                    code = process.wait(timeout=400)
                    assert code == wanted, (folder / f"output{rank}.txt").read_text()[-3000:]
                found[world_size] = [
                    json.loads((folder / f"report{rank}.json").read_text()) for rank in range(world_size)
                ]
        finally:
            for process in (p for processes in running.values() for p in processes):
                process.kill()
        return found

    return run
