"""generate_sr_big_cli.sh: which of its settings reach the program."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

LAUNCHER = Path(__file__).resolve().parents[2] / "generate_sr_big_cli.sh"
PROGRAM = str(LAUNCHER.with_name("generate_sr_big.py"))
SCALE, PLACE, BLOCKS = ["--infer_sr_scale", "4"], ["--out-dir", "samples"], ["--block_batch", "4"]


@pytest.fixture
def python(tmp_path, monkeypatch):
    """An interpreter that imports everything, and otherwise shows what it is called with."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\n[ "$1" = -c ] && exit 0\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv("PYTHON", str(python))


def run(script, *given, cwd):
    return subprocess.run(["bash", script, *given], capture_output=True, text=True, cwd=cwd)


def called(*arguments, cwd):
    result = run(*arguments, cwd=cwd)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


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
def test_settings_give_way_to_what_is_on_the_command_line(python, tmp_path, given, added):
    assert called(LAUNCHER, *given, cwd=tmp_path) == [PROGRAM, *added, *given]


@pytest.mark.parametrize(
    ("given", "added"),
    [
        (["a.png"], ["--num-steps", "7", *SCALE, *PLACE]),
        (["a.png", "--fast"], [*SCALE, *PLACE]),
        (["a.png", "--num_steps=3"], [*SCALE, *PLACE]),
        (["a.png", "--from-picture", "b.png"], PLACE),
    ],
)
def test_edited_steps_give_way_to_a_preset(python, tmp_path, given, added):
    (tmp_path / "scripts").symlink_to(LAUNCHER.parent / "scripts")
    (tmp_path / "generate_sr_big.py").touch()
    edited = tmp_path / "edited.sh"
    edited.write_text(LAUNCHER.read_text().replace('STEPS=""', 'STEPS="7"'))
    assert called(edited, *given, cwd=tmp_path)[1:] == [*added, *given]


def test_a_link_to_the_script_runs_it(python, tmp_path):
    (tmp_path / "upscale").symlink_to(LAUNCHER)
    assert called(tmp_path / "upscale", cwd=tmp_path)[0] == PROGRAM


def test_a_copy_of_the_script_runs_where_it_was_submitted(python, tmp_path, monkeypatch):
    """As sbatch runs it: from its spool."""
    copy = tmp_path / "slurm_script"
    copy.write_text(LAUNCHER.read_text())
    result = run(copy, cwd=tmp_path)
    assert result.returncode == 2 and f"there is no generate_sr_big.py in {tmp_path}" in result.stderr
    monkeypatch.setenv("SLURM_SUBMIT_DIR", str(LAUNCHER.parent))
    assert called(copy, cwd=tmp_path)[0] == PROGRAM
