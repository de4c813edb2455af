"""The host's memory that --estimate tells against the largest resident size of a process that does the picture."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
THIN = "--preset mini --num-layers 1 --hidden-size 32 --num-attention-heads 1 --image-block-size 128"
SETTINGS = {
    "thin": ["--sampler", "euler", "--color-fix", "backprojection"],
    "mini": [],  # its own: dpmpp_2m and back-projection
}

# A process in between: a new one counts what that which starts it had resident, and this one has gigabytes.
LAUNCHER = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
sys.exit(code)
"""


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """name -> checkpoint: the one that ships, and one whose pictures are most of the memory."""
    thin = tmp_path_factory.mktemp("weights") / "thin.safetensors"
    subprocess.run(
        [sys.executable, "scripts/init_checkpoint.py", thin, *THIN.split()], cwd=ROOT, check=True, capture_output=True
    )
    return {"thin": thin, "mini": ROOT / "ckpt" / "mini.safetensors"}


@pytest.mark.skipif(sys.platform != "linux", reason="resident sizes are counted otherwise elsewhere")
@pytest.mark.parametrize(
    ("name", "mode", "size"),
    [
        ("mini", "full", (256, 256)), ("mini", "ar2", (192, 320)), ("mini", "ar", (192, 160)),
        ("thin", "full", (512, 512)), ("thin", "ar2", (384, 512)), ("thin", "ar", (512, 512)),
        ("thin", "auto", (8, 8)),
    ],
)  # fmt: skip
def test_the_estimate_is_what_the_process_takes(cli, picture, networks, name, mode, size):
    command = [
        str(picture("a.png", size)), f"--network={networks[name]}", "--inference_type", mode, "--num-steps", "1",
        *SETTINGS[name],
    ]  # fmt: skip
    estimate = json.loads(cli(*command, "--estimate", "--json", load=True).out)
    run = subprocess.run(
        [sys.executable, "-c", LAUNCHER, sys.executable, ROOT / "generate_sr_big.py", *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # each thread has buffers of its own
        capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert estimate["predicted_host_bytes"] == pytest.approx(int(run.stdout), rel=0.15)
