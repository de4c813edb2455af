"""What the ranks of test_ranks.py do: forked from one process that has imported everything, as imports take longest.

rank_program.py pictures FOLDER PORT...    pictures of 1, 2 and 3 ranks; then the command line with 1 and 2 ranks
rank_program.py met PORT                   three ranks say how they have met
rank_program.py different PORT             three ranks, one of them with other settings
rank_program.py same_gpu PORT              three ranks, two of them with the same GPU
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable

# (grid, order of the ranks in turn, offload, back-projection, step of the grid): high and wide, both orders, mixed,
# the state on the device and the host, with and without a look at the whole picture in every call, at rest and moving
# on, so that ranks compute rows for the one before, the one after, and both.
CASES = [
    ((3, 2), ("layer",), "none", True, 0),
    ((2, 5), ("layer",), "state", False, 6),
    ((3, 2), ("block",), "state", False, 0),
    ((2, 5), ("block",), "none", True, 0),
    ((3, 2), ("layer", "block"), "none", False, 4),
    ((2, 5), ("block", "layer"), "state", True, 5),
]


def fork(world: int, port: str, main: Callable, *arguments) -> list[int]:
    """Run main(rank, world, *arguments) in that many processes; their exit codes."""
    sys.stdout.flush()
    children = []
    for rank in range(world):
        child = os.fork()
        if child:
            children.append(child)
            continue
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        os.environ.update(LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(world))
        code = 1
        try:
            code = main(rank, world, *arguments) or 0
        except SystemExit as error:
            code = error.code
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(code)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def pictures(rank: int, world: int, path: str) -> None:
    """A Heun run of each case, saved by the first rank with the weights."""
    import torch

    from sat_sr.checkpoint import save_safetensors
    from sat_sr.config import InfDiTConfig
    from sat_sr.diffusion.edm import karras_sigmas
    from sat_sr.diffusion.samplers import heun
    from sat_sr.inference.backprojection import Backprojection
    from sat_sr.inference.canvas import Canvas
    from sat_sr.inference.denoiser import Denoiser
    from sat_sr.inference.moving_grid import MovingGrid
    from sat_sr.inference.planner import Plan
    from sat_sr.inference.rendezvous import join
    from sat_sr.inference.schedule import Schedule
    from sat_sr.model.inf_dit import InfDiT
    from sat_sr.sampling import grid_offsets

    ranks = join({"seed": 1}, "cpu", rank, world)
    config = InfDiTConfig(
        num_layers=3, hidden_size=16, num_attention_heads=2, image_block_size=8, image_size=64, vector_dim=0
    )
    model, generator = InfDiT(config).requires_grad_(False), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.25)
    made = {}
    for grid, orders, offload, backprojection, shift in CASES:
        schedule = Schedule(grid, (2, 2), orders[rank % len(orders)], ranks.part(grid))
        offsets = grid_offsets(shift, 8, calls=5)
        part = ranks.canvas_part(schedule, 8, offsets)
        plan, here = Plan(schedule, "merge", "cpu", offload, 0, 0), (..., part.rows, part.columns)
        lr = torch.rand(1, 3, grid[0] * 2, grid[1] * 2, generator=torch.Generator().manual_seed(1))
        lr_upsampled = torch.nn.functional.interpolate(lr, scale_factor=4)
        x = lr_upsampled + 3 * torch.randn(lr_upsampled.shape, generator=torch.Generator().manual_seed(2))
        moving = {"offsets": offsets, "overlap": part.overlap}
        denoiser = Denoiser(model, plan, lr, lr_upsampled[here], neighbours=ranks.neighbours(), **moving)
        denoise = denoiser
        if backprojection:
            # The last block row and column reach beyond it, all of them where the grid shifts.
            canvas = Canvas.of(tuple(lr.shape[-2:]), 8, scale=3.2 if shift else 3.9)
            denoise = Backprojection(denoiser, lr, canvas, part)
        if shift:
            size, kind = tuple(lr_upsampled.shape[-2:]), {"faithful": backprojection}
            denoise = MovingGrid(denoise, denoiser, lr_upsampled[here], size, part, **kind)
        sample = heun(denoise, x[here], karras_sigmas(3, sigma_max=3.0))
        made[f"{grid} {orders} {offload}"] = ranks.gather(part.without_overlap(sample), schedule, 8)
    if rank == 0:
        torch.save(made, path)
        save_safetensors(f"{path}.safetensors", model.state_dict(), config)
    else:
        assert all(picture is None for picture in made.values())


def command_line(rank: int, world: int, folder: str) -> int:
    """One picture of 5 x 3 blocks, in two passes. The first rank has all memory free, the others little; each tells how
    it plans."""
    import torch.distributed

    from sat_sr.cli import main, worker
    from sat_sr.inference import budget
    from sat_sr.inference.memory import CANVASES_HELD

    plan = worker.Worker.plan

    def tell(self, source):
        work = plan(self, source)
        chosen = [f"{job.plan.schedule}, {job.plan.offload}" for job in work.jobs]
        print(f"rank {rank} of {world} plans {chosen}", flush=True)
        return work

    worker.Worker.plan = tell
    if rank:
        budget.free_bytes = lambda device: (318 + 16 * CANVASES_HELD) << 10
        budget.resident_bytes = lambda: budget.PROGRAM_BYTES + (1 << 30)
    picture = [f"{folder}/small.png", "--infer-sr-scale", "6", "-o", f"{folder}/{world}.png"]
    settings = ["--seed", "7", "--sampler", "euler", "--num-steps", "2", "--device", "cpu"]
    code = main.main([*picture, *settings, "--network", f"{folder}/1.safetensors"])
    assert world == 1 or not torch.distributed.is_initialized(), "a group that is left open is warned of by NCCL"
    return code


def met(rank: int, world: int) -> None:
    import torch.distributed as dist

    from sat_sr.inference.rendezvous import join

    heard = []
    send, recv = dist.send, dist.recv
    dist.send = lambda tensor, dst: heard.append(f"{rank}->{dst}") or send(tensor, dst)
    dist.recv = lambda tensor, src: heard.append(f"{rank}<-{src}") or recv(tensor, src)
    join({}, "cpu", rank, world)
    timeout = dist.distributed_c10d._get_default_store().timeout
    print(f"rank {rank}: {' '.join(heard)}, then waits {timeout} for what is in the store\n", end="")


def different(rank: int, world: int) -> int:
    from sat_sr.inference.rendezvous import join

    return said_by(lambda: join({"seed": 7 if rank < 2 else 8, "scale": 4.0}, "cpu", rank, world))


def same_gpu(rank: int, world: int) -> int:
    from sat_sr.inference import rendezvous

    rendezvous._gpu = lambda device: ["GPU-a", "GPU-b", "GPU-b"][rank]
    return said_by(lambda: rendezvous.join({"seed": 7}, "cpu", rank, world))


def said_by(join: Callable) -> int:
    from sat_sr.inference.rendezvous import RanksDiffer

    try:
        join()
    except RanksDiffer as error:
        print(f"error: {error}\n", end="")  # in one piece: three write at the same time
        return 2
    return 0


if __name__ == "__main__":
    import torch.distributed  # noqa: F401

    what, *rest = sys.argv[1:]
    three = {"met": met, "different": different, "same_gpu": same_gpu}
    if what in three:
        print(fork(3, rest[0], three[what]))
    else:
        import sat_sr.model.inf_dit  # noqa: F401

        folder, *ports = rest
        codes = [fork(world, ports.pop(), pictures, f"{folder}/{world}") for world in (1, 2, 3)]
        codes += [fork(world, ports.pop(), command_line, folder) for world in (1, 2)]
        print(codes)
        sys.exit(any(map(any, codes)))
