"""How the processes that compute a picture together meet, and agree that all do the same."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from sat_sr.inference.ranks import Ranks

RENDEZVOUS_TIMEOUT = timedelta(minutes=5)  # ranks start together; model files may come from a slow disk
EXCHANGE_TIMEOUT = timedelta(hours=2)  # the last rank waits for the first line while all others compute theirs
NCCL_BLOCKS = 4  # thread blocks of an exchange between GPUs, where NCCL_MAX_CTAS does not say
_PATIENCE = 10.0  # seconds without a word
_meetings = itertools.count()  # of this process, as of the others
_TURN = 0.1  # seconds after which Python looks whether a signal has come

Gathered = list[tuple[str, str | None]]  # of each rank: its settings as JSON, its GPU


class RanksDiffer(ValueError):
    """The ranks cannot compute a picture together; all of them raise it, with the same sentence."""


def join(
    settings: Mapping[str, object],
    device: torch.device | str,
    rank: int,
    world: int,
    *,
    on_wait: Callable[[str], None] = lambda text: None,
) -> Ranks:
    """Meet the other processes, at MASTER_ADDR and MASTER_PORT of the environment, and agree that all do the same.

    settings  everything that the picture depends on, and the place and order of what is computed: plain values
    device    this rank's; on CUDA, keys and values go from device to device (NCCL), everything else by gloo
    on_wait   called with a sentence when the others are long in coming

    Must come before a network is built: SAT opens a process group of its own when there is none. Signals are handled
    while it waits.

    Raises RanksDiffer, on all ranks, when their settings differ or two of them have the same GPU. ValueError without a
    place to meet, ConnectionError when a rank does not come within RENDEZVOUS_TIMEOUT.
    """
    if world == 1:
        return Ranks(0, 1)
    place = _place()
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        # A line is asked for a layer ahead: until it comes, NCCL keeps as many multiprocessors busy, with waiting.
        os.environ.setdefault("NCCL_MAX_CTAS", str(NCCL_BLOCKS))
    meeting = next(_meetings)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    mine = json.dumps(settings, sort_keys=True, default=str), _gpu(device)

    def meet() -> str | None:
        """Why these ranks cannot compute a picture together; None when they can."""
        if device.type == "cuda":
            torch.cuda.set_device(device)  # of this thread
        store = _store(rank, world, meeting)
        if (absent := _first_that_declines(store, rank, world, comes=True)) is not None:
            return f"rank {absent} cannot start: its message says why"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=EXCHANGE_TIMEOUT)
        everyone: Gathered = [mine] * world
        dist.all_gather_object(everyone, mine, group=dist.new_group(backend="gloo", timeout=RENDEZVOUS_TIMEOUT))
        settings_of, gpus = zip(*everyone, strict=True)
        if wrong := _difference(settings_of) or _shared_gpu(gpus):
            dist.destroy_process_group()
            return wrong
        _shake_hands(rank, world, device)
        store.set_timeout(EXCHANGE_TIMEOUT)  # a group given a store leaves its timeout as it was
        return None

    def waiting() -> None:
        on_wait(f"rank {rank} of {world} waits for the others at {place}, for {RENDEZVOUS_TIMEOUT} at most")

    try:
        wrong = _in_background(meet, waiting)
    except (RuntimeError, ValueError, TimeoutError) as error:  # torch.distributed's own are RuntimeErrors, too
        reason = str(error).partition("\n")[0].partition("Exception raised from")[0].strip(" .")
        raise ConnectionError(
            f"rank {rank} of {world} has not met the others at {place} ({reason}): start {world} processes with the "
            "same MASTER_ADDR and a free MASTER_PORT, or see what the others say"
        ) from error
    if wrong:
        raise RanksDiffer(wrong)
    return Ranks(rank, world)


def decline(rank: int, world: int) -> None:
    """In place of `join`, for a rank that cannot start: the others, which wait for it there, raise RanksDiffer.

    Returns when all know, or after RENDEZVOUS_TIMEOUT.
    """
    meeting = next(_meetings)

    def tell() -> None:
        _first_that_declines(_store(rank, world, meeting), rank, world, comes=False)

    with contextlib.suppress(RuntimeError, ValueError, TimeoutError):  # nobody waits
        _place()
        _in_background(tell, lambda: None)
        time.sleep(10 * _TURN)  # all know, and are on their way out: torchrun need not end them


def _place() -> str:
    """HOST:PORT. Raises ValueError without."""
    place = ":".join(filter(None, (os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT"))))
    if ":" not in place:
        raise ValueError("ranks that share a picture meet at MASTER_ADDR and MASTER_PORT: set both, or use torchrun")
    return place


def _store(rank: int, world: int, meeting: int) -> dist.Store:
    """What all ranks of a meeting can write to and read."""
    store, _, _ = next(iter(rendezvous("env://", rank, world, timeout=RENDEZVOUS_TIMEOUT)))
    # torchrun keeps its store when it restarts the ranks: what they wrote before is no longer true.
    return dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}, meeting {meeting}", store)


def _first_that_declines(store: dist.Store, rank: int, world: int, *, comes: bool) -> int | None:
    """The first rank that cannot start, in all of them; None when all come, which each says of itself.

    Where one does not, all leave together: the store may go with rank 0, and torchrun ends all with the first.
    """
    yes = b"yes"
    store.set(f"rank {rank} comes", yes if comes else b"no")
    absent = [other for other in range(world) if store.get(f"rank {other} comes") != yes]
    if not absent:
        return None
    with contextlib.suppress(RuntimeError):  # it has gone: so all know
        store.add("know", 1)
        while store.add("know", 0) < world:
            time.sleep(_TURN)
    return absent[0]


def _shake_hands(rank: int, world: int, device: torch.device) -> None:
    """Send a number to the next rank.

    NCCL connects two ranks at their first message, and each waits for the other no longer than the store's timeout. A
    line comes after most of a network call: that would be too long, and too late to notice that they cannot connect.
    """
    number = torch.zeros(1, device=device)
    if rank:
        dist.recv(number, src=rank - 1)
    if rank + 1 < world:
        dist.send(number, dst=rank + 1)
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _in_background(meet: Callable[[], str | None], waiting: Callable[[], None]) -> str | None:
    """What `meet` returns or raises. It waits in C++, where no signal is seen: so another thread does.

    Raises TimeoutError after RENDEZVOUS_TIMEOUT; `waiting` is called once when it takes long.
    """
    result: list[str | None] = []
    errors: list[Exception] = []

    def target() -> None:
        try:
            result.append(meet())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=target, daemon=True)
    start, reported = time.monotonic(), False
    thread.start()
    while thread.is_alive():
        thread.join(_TURN)
        passed = time.monotonic() - start
        if passed > _PATIENCE and not reported:
            reported = True
            waiting()
        # A little later than torch.distributed, which says more when it gives up by itself.
        if passed > RENDEZVOUS_TIMEOUT.total_seconds() + _PATIENCE:
            raise TimeoutError(f"nobody came within {RENDEZVOUS_TIMEOUT}")
    if errors:
        raise errors[0]
    return result[0]


def _difference(everyone: Sequence[str]) -> str | None:
    """Which setting of which rank differs from rank 0's: the first that does, in a sentence."""
    first, *others = map(json.loads, everyone)
    for rank, other in enumerate(others, 1):
        for name in sorted(first.keys() | other.keys()):
            of_first, of_other = first.get(name), other.get(name)
            if isinstance(of_first, list) and isinstance(of_other, list):  # of pictures: not all of them
                pairs = itertools.zip_longest(of_first, of_other)
                of_first, of_other = next((pair for pair in pairs if pair[0] != pair[1]), (None, None))
            if of_first != of_other:
                return (
                    f"rank 0 has {name}={of_first!r}, rank {rank} has {of_other!r}: start all ranks with the same "
                    "arguments"
                )
    return None


def _gpu(device: torch.device) -> str | None:
    """What identifies a GPU. Its number does not: a launcher may show each process its own as number 0."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else None


def _shared_gpu(gpus: Sequence[str | None]) -> str | None:
    """Which ranks have the same GPU: NCCL refuses that, and each would plan with all of its memory."""
    for rank, gpu in enumerate(gpus):
        if gpu and (first := gpus.index(gpu)) < rank:
            return f"rank {first} and rank {rank} have the same GPU: start one rank for each, or use --device cpu"
    return None
