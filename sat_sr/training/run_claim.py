"""A run claims its folder: one run at a time, or two would remove each other's checkpoints, and one architecture."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import TextIO

from sat_sr.atomic_files import write_durably
from sat_sr.checkpoint.run_folder import CONFIG, LOCK, find_latest
from sat_sr.config import InfDiTConfig
from sat_sr.training.logs import warn

NFS_SECONDS = 60  # a node may remember for so long that a folder is not there, if it was asked for it before


def claim_folder(folder: Path, config: InfDiTConfig) -> TextIO:
    """Makes the run's folder and writes config.json, or checks the one that is there if there is a checkpoint as well.

    returns  the folder's lock, see `lock_folder`

    Raises ValueError when the checkpoints are of a model of another architecture, another process trains there, the
    folder cannot be made, or config.json is damaged.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ValueError(
            f"--save {folder}: no folder can be made there ({error.strerror}): choose another place"
        ) from None
    lock = lock_folder(folder)
    path = folder / CONFIG
    if not (path.exists() and find_latest(folder)):  # a start that failed before it saved has claimed nothing
        write_durably(path, json.dumps(config.to_dict(), indent=2) + "\n")
        return lock
    try:
        there = InfDiTConfig.from_json(path.read_text(encoding="utf-8")).to_dict()
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): remove it, and start with the model that the run had; it is written anew"
        ) from error
    here = config.to_dict()
    differing = [f"{name} {there[name]} (here {here[name]})" for name in here if here[name] != there[name]]
    if differing:
        raise ValueError(
            f"{folder} holds a run of another architecture: {', '.join(differing)}; choose another --save, or that "
            "model"
        )
    return lock


def require_shared(folder: Path) -> None:
    """On every rank, when the folder is claimed. Raises ValueError where it is not the folder that rank 0 claimed."""
    deadline = time.monotonic() + NFS_SECONDS
    while not (folder / CONFIG).exists():
        if time.monotonic() > deadline:
            raise ValueError(
                f"{folder.absolute()} on {socket.gethostname()} is not the folder of rank 0, there is no {CONFIG} in "
                "it: put --save on a file system that all nodes share"
            )
        with contextlib.suppress(OSError):  # NFS asks the server again when a folder is opened
            os.listdir(folder.parent)
        time.sleep(0.1)


def lock_folder(folder: Path) -> TextIO:
    """Take the folder for this process, until the file that is returned is closed or the process ends, however it ends.

    A POSIX record lock: data workers that outlive a killed trainer for a moment do not hold it, and NFS knows it.

    Raises ValueError, naming the owner, when another process has it. File systems without locks are reported once.
    """
    file = open(folder / LOCK, "a+", encoding="utf-8")  # noqa: SIM115  # stays open
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        owner = file.read().strip() or "another process"
        file.close()
        raise ValueError(
            f"{folder} is in use by {owner}: wait for it, end it, or choose another --save; if that host is down for "
            f"good, delete {folder / LOCK}"
        ) from None
    except OSError as error:
        warn(f"{folder} cannot be locked ({error.strerror}): see to it that no other run writes there")
        return file
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file
