"""generate_sr_big_cli.sh: which of its settings reach the program."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

LAUNCHER = Path(__file__).resolve().parents[2] / "generate_sr_big_cli.sh"
SCALE, PLACE, BLOCKS = ["--infer_sr_scale", "4"], ["--out-dir", "samples"], ["--block_batch", "4"]


@pytest.mark.parametrize(
    ("given", "added"),
    [
        ([], [*SCALE, *PLACE]),
        (["a b.png"], [*SCALE, *PLACE]),
        (["a.png", "--width", "80"], PLACE),
        (["a.png", "--long_side=80", "-o", "x.png"], []),
        (["a.png", "-ox.png"], SCALE),
        (["--infer_sr_scale=2", "--out_dir", "x"], []),
        (["--inference_type", "ar2"], [*BLOCKS, *SCALE, *PLACE]),
        (["--inference-type=ar2", "--size", "8x8"], [*BLOCKS, *PLACE]),
        (["star2.png", "of a --size -o x.png"], [*SCALE, *PLACE]),  # names, however they look
        (["--", "-o", "--size"], [*SCALE, *PLACE]),
    ],
)
def test_settings_give_way_to_what_is_on_the_command_line(tmp_path, given, added):
    python = tmp_path / "python"  # imports everything, and otherwise shows what it is called with
    python.write_text('#!/bin/sh\n[ "$1" = -c ] && exit 0\nshift\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    environment = os.environ | {"PYTHON": str(python)}
    result = subprocess.run(
        ["bash", LAUNCHER, *given], capture_output=True, text=True, env=environment, cwd=tmp_path, check=True
    )
    assert result.stdout.splitlines() == [*added, *given]
