"""A picture over several processes equals that of one; processes that do not fit together say so once."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sat_sr.inference.ranks import Ranks
from sat_sr.inference.schedule import Schedule

ROOT = Path(__file__).parents[2]

# Ranks are forked from one process that has imported everything: importing takes longer than all the rest.
FORK = """
import os, sys, traceback

def fork(world, port, main, *arguments):
    children = []
    for rank in range(world):
        child = os.fork()
        if child:
            children.append(child)
            continue
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        try:
            main(rank, *arguments)
        except SystemExit as error:
            os._exit(int(error.code))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
"""

# A whole Heun run over a high and a wide picture, in both orders and mixed, the state on the device and on the host.
PICTURES = """
import torch
from sat_sr.config import InfDiTConfig
from sat_sr.diffusion.edm import karras_sigmas
from sat_sr.diffusion.samplers import heun
from sat_sr.inference.denoiser import Denoiser
from sat_sr.inference.memory import Plan
from sat_sr.inference.ranks import join
from sat_sr.inference.schedule import Schedule
from sat_sr.model.inf_dit import InfDiT

CASES = [
    ((3, 2), ("layer",), "none"),
    ((2, 5), ("layer",), "state"),
    ((3, 2), ("block",), "state"),
    ((2, 5), ("block",), "none"),
    ((3, 2), ("layer", "block"), "none"),
    ((2, 5), ("block", "layer"), "state"),
]

def main(rank, path):
    ranks = join({"seed": 1}, "cpu", rank, int(os.environ["WORLD_SIZE"]))
    config = InfDiTConfig(
        num_layers=3, hidden_size=16, num_attention_heads=2, image_block_size=8, image_size=64, vector_dim=0
    )
    model, generator = InfDiT(config).requires_grad_(False), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.25)
    pictures = {}
    for grid, orders, offload in CASES:
        schedule = Schedule(grid, (2, 2), orders[rank % len(orders)], ranks.part(grid))
        plan, here = Plan(schedule, "merge", "cpu", offload, 0, 0), schedule.pixels(8)
        lr = torch.rand(1, 3, grid[0] * 2, grid[1] * 2, generator=torch.Generator().manual_seed(1))
        lr_upsampled = torch.nn.functional.interpolate(lr, scale_factor=4)
        x = lr_upsampled + 3 * torch.randn(lr_upsampled.shape, generator=torch.Generator().manual_seed(2))
        denoiser = Denoiser(model, plan, lr, lr_upsampled[here], neighbours=ranks.neighbours())
        part = heun(denoiser, x[here], karras_sigmas(3, sigma_max=3.0))
        pictures[f"{grid} {orders} {offload}"] = ranks.gather(part, schedule, 8)
    if rank == 0:
        torch.save(pictures, path)
    else:
        assert all(picture is None for picture in pictures.values())

for argument in sys.argv[1:]:
    world, port, path = argument.split(",")
    if any(fork(int(world), int(port), main, path)):
        sys.exit(f"{world} ranks failed")
"""

DIFFERENT = """
from sat_sr.inference.ranks import join

def main(rank):
    try:
        join({"seed": 7 if rank < 2 else 8, "scale": 4.0}, "cpu", rank, 3)
    except ValueError as error:
        print(f"error: {error}", flush=True)
        raise SystemExit(2)

print(fork(3, int(sys.argv[1]), main))
"""


def run(code, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", FORK + code, *map(str, arguments)],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Number of ranks -> their pictures."""
    folder = tmp_path_factory.mktemp("ranks")
    result = run(PICTURES, *(f"{world},{free_port()},{folder / str(world)}" for world in (1, 2, 3)))
    assert result.returncode == 0, result.stderr
    return {world: torch.load(folder / str(world), weights_only=True) for world in (1, 2, 3)}


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_make_the_same_picture(pictures, world):
    alone, together = pictures[1], pictures[world]
    assert together.keys() == alone.keys() and len(together) == 6
    for name, picture in together.items():
        assert picture.std() > 0.1
        torch.testing.assert_close(picture, alone[name], rtol=0, atol=2e-5 * float(alone[name].abs().max()), msg=name)


def test_ranks_with_different_arguments_stop_with_one_message():
    result = run(DIFFERENT, free_port())
    said = [line for line in result.stdout.splitlines() if "error:" in line]
    assert said == ["error: rank 0 has seed=7, rank 2 has 8: start all ranks with the same arguments"]
    assert "[2, 1, 1]" in result.stdout, result.stderr


def test_parts_cover_the_longer_side_evenly():
    for grid in [(7, 3), (3, 7), (8, 8)]:
        for world in (1, 2, 3, 7):
            parts = [Ranks(rank, world).part(grid) for rank in range(world)]
            assert [block for part in parts for block in part] == list(range(max(grid)))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
    with pytest.raises(ValueError, match="3x2 blocks cannot be split over 4 ranks: start at most 3"):
        Ranks(0, 4).part((3, 2))


def test_pixels_of_a_part():
    canvas = torch.arange(5 * 8 * 2 * 8).view(1, 1, 5 * 8, 2 * 8)
    assert torch.equal(canvas[Schedule((5, 2), (1, 1), "layer", range(1, 3)).pixels(8)], canvas[:, :, 8:24])
    wide = canvas.transpose(2, 3)
    assert torch.equal(wide[Schedule((2, 5), (1, 1), "layer", range(4, 5)).pixels(8)], wide[..., 32:])
