"""The two programs, from the first import on: from any folder, without what must be installed, interrupted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sat_sr.programs import start

ROOT = Path(__file__).parents[2]
PROGRAMS = ["generate_sr_big.py", "train_text2image_sr.py"]


def run(program, *arguments, cwd, options=(), **environment):
    command = [sys.executable, *options, str(ROOT / program), *arguments]
    environment = os.environ | environment
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_from_any_folder(program, tmp_path):
    result = run(program, "--help", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"usage: {program} ")


@pytest.mark.parametrize(("program", "arguments"), zip(PROGRAMS, (["a.png"], ["--dry-run"]), strict=True))
def test_a_python_without_what_it_needs_is_told_the_two_commands(program, arguments, tmp_path):
    result = run(program, *arguments, cwd=tmp_path, options=["-S"])  # without installed packages
    assert (result.returncode, result.stdout) == (2, "")
    (said,) = result.stderr.splitlines()
    assert said.startswith(f"error: {sys.executable} has no module ")
    assert "run `bash generate_sr_big_cli.sh`" in said and "`pip install .`" in said


@pytest.mark.parametrize(("program", "module"), zip(PROGRAMS, ("tqdm", "torch"), strict=True))
def test_ctrl_c_while_it_imports_is_no_traceback(program, module, tmp_path):
    (tmp_path / f"{module}.py").write_text("raise KeyboardInterrupt")
    result = run(program, "--dry-run", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "")


def test_a_module_of_ours_that_is_missing_is_a_fault_and_not_told_to_be_installed(monkeypatch):
    def main(program):
        raise ModuleNotFoundError(f"No module named '{program}'", name=program)

    monkeypatch.setattr(start.importlib, "import_module", main)
    with pytest.raises(ModuleNotFoundError, match=r"sat_sr\.training\.main"):
        start.train()
