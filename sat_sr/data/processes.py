"""A map over several processes that keeps the order, ends with its parent, and does not hang when a child dies."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial

AHEAD = 4  # tasks for each process that are handed out before the first result is taken


@contextmanager
def map_over(jobs: int) -> Iterator[Callable]:
    """Gives `map(function, items)`: the built-in one for one job, else that of a pool of fresh processes.

    Results that nobody has taken yet stay few: a picture's may be large, and the disk slower than the processes.
    Ctrl-C is left to this process, which ends the others. Raises BrokenProcessPool (a RuntimeError) while iterating
    when a process dies, for want of memory say.
    """
    if jobs == 1:
        yield map
        return
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may lock up
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_start)
    try:
        yield partial(_map_ahead, pool, AHEAD * jobs)
    finally:
        pool.shutdown(cancel_futures=True)


def _map_ahead(pool: ProcessPoolExecutor, ahead: int, function: Callable, *items: Iterable) -> Iterator:
    """`pool.map` that hands out a task when a result is taken, not all at once; `ahead` of them are under way."""
    results: deque[Future] = deque()
    for arguments in zip(*items, strict=False):
        results.append(pool.submit(function, *arguments))
        if len(results) >= ahead:
            yield results.popleft().result()
    while results:
        yield results.popleft().result()


def _start() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent cannot tell its children to stop, and they would wait for work for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)
