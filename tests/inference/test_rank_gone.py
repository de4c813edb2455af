"""Ranks that share a picture, one of which leaves in the middle: the others say so in a sentence and do not hang.

As a program (PORT): three such ranks.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_others_say_who_has_left():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    result = subprocess.run(
        [sys.executable, __file__, str(port)], env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    said = [line for line in result.stdout.splitlines() if "error:" in line]
    left = "error: rank 1 has left in the middle of the picture: what it said is the reason"
    assert said == [left, left], result.stdout + result.stderr
    assert "[1, 3, 1]" in result.stdout and "Traceback" not in result.stderr


def leave_or_wait(rank: int, world: int) -> int:
    """The first waits for the parts of the others, the last for keys and values."""
    import torch
    import torch.distributed as dist

    from sat_sr.inference.rendezvous import join
    from sat_sr.inference.schedule import Schedule

    ranks = join({}, "cpu", rank, world)
    if rank == 1:  # not before the others have met, too
        for other in (0, 2):
            dist.recv(torch.zeros(1), src=other)
        return 3
    dist.send(torch.zeros(1), dst=1)
    try:
        if rank == 0:
            ranks.gather(torch.zeros(1, 3, 8, 16), Schedule((3, 2), (1, 1), "layer", ranks.part((3, 2))), 8)
        else:
            ranks.neighbours().receive(0, 3, [torch.zeros(4), torch.zeros(4)])
    except ConnectionError as error:
        print(f"error: {error}\n", end="")  # in one piece: two write at the same time
        return 1
    return 0


if __name__ == "__main__":
    import torch.distributed  # noqa: F401
    from rank_program import fork

    print(fork(3, sys.argv[1], leave_or_wait))
