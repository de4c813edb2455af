"""One run a folder: two at once would remove each other's checkpoints."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path
from typing import TextIO

from sat_sr.checkpoint.run_folder import LOCK
from sat_sr.training.logs import warn


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
