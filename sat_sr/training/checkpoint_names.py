"""Which checkpoints a run's folder shows: a new one gets its name when it is complete, and old ones go."""

from __future__ import annotations

import os
import shutil
from functools import cache
from pathlib import Path

from sat_sr.atomic_files import leftovers, sync, write_durably
from sat_sr.checkpoint.run_folder import CONFIG, LATEST, find_latest, steps
from sat_sr.training.logs import warn

TEMPORARY = "tmp-"  # begins the name of one that is being written
_REMOVED = f"{TEMPORARY}removed-"


def publish(folder: Path, temporary: Path, step: int) -> None:
    """Gives a complete checkpoint its name, then points `latest` at it."""
    for file in temporary.iterdir():
        sync(file)
    final = folder / str(step)
    if final.exists():  # a crash came between the two steps below; `latest` names an older one
        _remove(final)
    os.rename(temporary, final)
    write_durably(folder / LATEST, str(step))


def remove_old(folder: Path, keep_last: int) -> None:
    """Removes all but the newest `keep_last` checkpoints (0: none is removed) up to the one that `latest` names.

    Later ones are of a run that was taken back by hand: they are not counted, and replaced when this one gets there.
    One that cannot be removed is reported once, and tried again with the next checkpoint.
    """
    latest = find_latest(folder)
    counted = [step for step in steps(folder) if latest and step <= int(latest.name)]
    for step in counted[:-keep_last] if keep_last else []:
        try:
            _remove(folder / str(step))
        except OSError as error:
            _report_left_over(folder / str(step), error.strerror)


def _remove(checkpoint: Path) -> None:
    """Renamed first, so that a removal that is cut short leaves no half checkpoint under a step's name."""
    doomed = checkpoint.with_name(f"{_REMOVED}{checkpoint.name}")
    while doomed.exists():  # what was left of one of the same step
        doomed = doomed.with_name(f"{doomed.name}-again")
    os.rename(checkpoint, doomed)
    _delete(doomed)


def remove_temporary(folder: Path) -> None:
    """Removes what starts that broke off have left."""
    for path in folder.glob(f"{TEMPORARY}*"):
        if path.name.startswith(_REMOVED):
            _delete(path)
        elif path.is_dir():
            shutil.rmtree(path)
    for name in (CONFIG, LATEST):  # not those of others: somebody may export weights into the folder
        for path in folder.glob(leftovers(name)):
            path.unlink(missing_ok=True)


def _delete(doomed: Path) -> None:
    """NFS removes no folder with a file that somebody has open, which should not end a run."""
    try:
        shutil.rmtree(doomed)
    except OSError as error:
        _report_left_over(doomed, error.strerror)


@cache
def _report_left_over(path: Path, reason: str) -> None:
    warn(f"{path}, an old checkpoint, cannot be removed ({reason}): tried again with each checkpoint to come")
