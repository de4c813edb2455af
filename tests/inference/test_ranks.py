"""A picture over several processes equals that of one; processes that do not fit together find it out, all of them."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sat_sr.inference.ranks import Ranks
from sat_sr.inference.schedule import Schedule

ROOT = Path(__file__).parents[2]


def run(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, Path(__file__).with_name("rank_program.py"), *map(str, arguments)],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of the pictures, and what the command line said."""
    folder = tmp_path_factory.mktemp("ranks")
    Image.effect_noise((6, 4), 50).convert("RGB").save(folder / "small.png")
    result = run("pictures", folder, *(free_port() for _ in range(5)))
    assert result.returncode == 0, result.stdout + result.stderr
    return folder, result.stdout


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_make_the_same_picture(made, world):
    alone, together = (torch.load(made[0] / str(number), weights_only=True) for number in (1, world))
    assert together.keys() == alone.keys() and len(together) == 6
    for name, picture in together.items():
        assert picture.std() > 0.1
        torch.testing.assert_close(picture, alone[name], rtol=0, atol=2e-5 * float(alone[name].abs().max()), msg=name)


def test_command_line_splits_one_picture(made):
    folder, said = made
    told = [line for line in said.splitlines() if "small.png ->" in line]
    assert len(told) == 2 and told[1].startswith("[0]")  # the first rank speaks for both
    alone, together = (np.asarray(Image.open(folder / f"{world}.png"), dtype=int) for world in (1, 2))
    assert alone.shape == (24, 36, 3) and alone.std() > 10
    assert abs(alone - together).max() <= 1  # rounding to 8 bits


def test_ranks_plan_by_the_least_memory_of_them(made):
    """They hand each other lines of one place, so all plan the same; rank 0 alone would take larger groups."""
    plans = dict(re.findall(r"(rank . of .) plans (\[.*?\])", made[1]))
    alone, first, second = (plans[name] for name in ("rank 0 of 1", "rank 0 of 2", "rank 1 of 2"))
    assert first == second and "groups of 1x1 blocks" in first and re.search(r"groups of \dx3 blocks", alone)


def test_neighbours_are_connected_before_the_first_picture():
    """NCCL connects two ranks at their first message: when both are there, not when one has a line to send. And with
    whatever they have to say by the store later, they are as patient as with a line."""
    result = run("met", free_port())
    assert "[0, 0, 0]" in result.stdout, result.stderr
    for said in ("rank 0: 0->1", "rank 1: 1<-0 1->2", "rank 2: 2<-1"):
        assert f"{said}, then waits 2:00:00 for" in result.stdout


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("same_gpu", "rank 1 and rank 2 have the same GPU: start one rank for each, or use --device cpu"),
        ("different", "rank 0 has seed=7, rank 2 has 8: start all ranks with the same arguments"),
    ],
)
def test_ranks_that_do_not_fit_together_all_raise_the_same(what, sentence):
    result = run(what, free_port())
    said = [line for line in result.stdout.splitlines() if "error:" in line]
    assert said == [f"error: {sentence}"] * 3, result.stderr
    assert "[2, 2, 2]" in result.stdout


def test_parts_cover_the_longer_side_evenly():
    for grid in [(7, 3), (3, 7), (8, 8)]:
        for world in (1, 2, 3, 7):
            parts = [Ranks(rank, world).part(grid) for rank in range(world)]
            assert [block for part in parts for block in part] == list(range(max(grid)))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
    with pytest.raises(ValueError, match="2x3 blocks cannot be split over 4 ranks: start at most 3"):
        Ranks(0, 4).part((3, 2))


def test_pixels_of_a_part():
    canvas = torch.arange(5 * 8 * 2 * 8).view(1, 1, 5 * 8, 2 * 8)
    assert torch.equal(canvas[Schedule((5, 2), (1, 1), "layer", range(1, 3)).pixels(8)], canvas[:, :, 8:24])
    wide = canvas.transpose(2, 3)
    assert torch.equal(wide[Schedule((2, 5), (1, 1), "layer", range(4, 5)).pixels(8)], wide[..., 32:])
