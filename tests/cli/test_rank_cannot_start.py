"""Ranks of which one cannot start, as the weights on its node are damaged: those that share a list do their part, those
that would compute one picture together all end, with a sentence."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sat_sr.checkpoint import FORMAT, load

ROOT = Path(__file__).resolve().parents[2]
# Each rank has its own --network.
PROGRAM = (
    "import os, sys\nfrom sat_sr.cli.main import main\n"
    "sys.exit(main([*sys.argv[3:], '--device', 'cpu', '--network', sys.argv[1 + int(os.environ['RANK'])]]))"
)


def torchrun(networks, arguments) -> subprocess.CompletedProcess:
    Path("program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "program.py"]
    return subprocess.run(
        [*command, *map(str, [*networks, *arguments])],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def said(output: str) -> list[str]:
    """What the ranks themselves say is wrong."""
    return [line for line in output.splitlines() if re.match(r"\[\d\] error:", line)]


@pytest.fixture
def damaged(network, tmp_path):
    """Weights that break off."""
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(network.read_bytes()[:-1])
    return path


def test_the_others_do_their_part_of_a_list(cli, picture, network, damaged):
    result = torchrun([network, damaged], [picture(f"{name}.png") for name in "abcde"])
    assert result.returncode == 1  # torchrun's own
    assert sorted(os.listdir("samples")) == ["a_sr.png", "c_sr.png", "e_sr.png"]
    cut, left = said(result.stderr)
    assert cut.startswith(f"[1] error: {damaged} is cut off or damaged")
    assert left == "[1] error: 2 picture(s) of rank 1 are not done"
    assert "interrupted" not in result.stderr


def test_ranks_that_compute_pictures_together_all_end(cli, picture, network, damaged):
    result = torchrun([network, damaged], [picture("a.png"), picture("b.png"), "--split-picture"])
    assert len(said(result.stderr)) == 2, result.stderr
    cut, known = sorted(said(result.stderr), reverse=True)
    assert cut.startswith(f"[1] error: {damaged} is cut off or damaged")
    assert known == "[0] error: rank 1 cannot start: its message says why"
    _, _, of_torchrun = result.stderr.partition("Traceback")
    assert "interrupted" not in result.stderr and "ChildFailedError" in of_torchrun
    assert not Path("samples").exists()


def test_ranks_that_compute_pictures_together_leave_none_to_the_others(cli, picture, network, tmp_path):
    """Damage that is found when the values are read, after they have met."""
    path = tmp_path / "damaged.pt"
    torch.save({"module": load(network).tensors, FORMAT: {"config": load(network).config.to_dict()}}, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    result = torchrun([path, path], [picture("a.png"), picture("b.png"), "--split-picture"])
    damage = [f"[{rank}] error: {path} is damaged" for rank in range(2)]
    assert [line.partition(" (Bad CRC-32")[0] for line in sorted(said(result.stderr))] == damage
