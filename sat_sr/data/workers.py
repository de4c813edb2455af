"""Batches made by worker processes, which mind the trainer: its signals, its last save, its error messages."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

WORKER_DIED = (
    "a data worker was killed, most likely because the memory ran out: give fewer --num-workers or a smaller "
    "--cache-mb, and run the same command again"
)
SHARED_MEMORY = Path("/dev/shm")  # batches come from the workers through files in it


class UnusableData(ValueError):
    """Something about the data that the user can cure. Raised in a worker, it comes out in the trainer as it is."""


def load_batches(
    source: IterableDataset, batch_size: int, num_workers: int, collate: Callable[[list], Any]
) -> Iterator[Any]:
    """What `collate` makes of each `batch_size` items of `source`, which a worker iterates as a copy of its own.

    num_workers  processes, asked in turn; 0: this one does the work

    Raises UnusableData as a worker raised it; any other error of a worker as DataLoader wraps it, with its traceback;
    ChildProcessError for one that was killed, unless PyTorch's handler of SIGCHLD is first, see `is_of_dead_worker`.
    """
    loader = DataLoader(
        _Guarded(source),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=partial(_collate_guarded, collate),
        worker_init_fn=_leave_signals_to_the_trainer,
        # Children of the trainer: from Python 3.14 on they would be those of a server, which a signal may end.
        multiprocessing_context="fork" if num_workers and sys.platform == "linux" else None,
    )
    with _sigterm_blocked():  # threads that libraries start again in a worker inherit what is blocked here
        batches = iter(loader)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except (ConnectionError, EOFError):  # the pipe between us broke
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # else PyTorch's handler interrupts what comes of this
            raise ChildProcessError(WORKER_DIED) from None
        except RuntimeError as error:
            if not is_of_dead_worker(error):
                raise
            raise ChildProcessError(why_worker_died(error)) from None
        if isinstance(batch, UnusableData):
            raise batch
        yield batch


def is_of_dead_worker(error: BaseException) -> bool:
    """Whether this is what PyTorch raises, wherever the trainer happens to be, when a worker has died."""
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")


def why_worker_died(error: BaseException) -> str:
    """One sentence, of an error that `is_of_dead_worker`: what most likely killed it, and the way out."""
    if "Bus error" not in str(error):
        return WORKER_DIED
    size = f" of {shutil.disk_usage(SHARED_MEMORY).total / 2**30:.2f} GiB" if SHARED_MEMORY.is_dir() else ""
    return (
        f"a data worker found no room for a batch in {SHARED_MEMORY}, the shared memory{size}: make it larger (docker "
        f"run --shm-size=8g; mount -o remount,size=8g {SHARED_MEMORY}), or give --num-workers 0 or a smaller "
        "--micro-batch-size; a run may resume with fewer workers, its samples are then dealt anew"
    )


class _Guarded(IterableDataset):
    """Hands an UnusableData on as its last item: raised, DataLoader would hide its sentence in two tracebacks."""

    def __init__(self, source: IterableDataset) -> None:
        self._source = source

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self._source
        except UnusableData as error:
            yield error


def _collate_guarded(collate: Callable[[list], Any], items: list) -> Any:
    return items[-1] if isinstance(items[-1], UnusableData) else collate(items)


@contextlib.contextmanager
def _sigterm_blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave_signals_to_the_trainer(worker: int) -> None:
    """Slurm sends its warning to every process: a worker that died of it would take the trainer's last save with it.

    SIGTERM still ends a worker when the trainer itself sends it, as DataLoader does.
    """
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # Linux: where Slurm is
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_the_trainer_says_so, daemon=True).start()


def _end_when_the_trainer_says_so() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
