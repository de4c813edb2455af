"""Files and folders that appear under their names when they are complete, or not at all.

Outputs of generation are written by `image_io.storage`, which also locks names and sweeps what a killed process left.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


def leftovers(name: str) -> str:
    """Pattern of the temporary names that killed processes have left of a file called so."""
    return f".{name}.*.tmp"


@contextlib.contextmanager
def atomic_file(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A temporary name beside `path`, to be written: renamed to `path` when the block ends well, else removed.

    durable  whether its content is on the disk before the name is: a power cut leaves the old file or the new one

    Raises FileNotFoundError when there is no folder for it.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}; make it first")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if durable:
            sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_durably(path: Path, text: str) -> None:
    """A text file, UTF-8, that is whole, or as it was before, even after a power cut."""
    with atomic_file(path, durable=True) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A hidden folder, to be filled: it becomes `path`, which may be an empty folder, when the block ends well, else it
    is removed.

    It lies beside `path` and is renamed. A folder that no other can be put in the place of (a mount point, one whose
    parent is not ours) or should (the working directory, where a shell would be left in the one that is gone) has it
    inside; what it holds then moves up, one entry after the other.

    Raises FileExistsError where something has been put into `path` meanwhile.
    """
    path = path.resolve()  # a link stays, and what it points to is written
    path.parent.mkdir(parents=True, exist_ok=True)
    inside = path.is_dir() and not _can_be_replaced(path)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.unfinished-", dir=path if inside else path.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        if inside:
            _move_up(temporary, path)
            return
        try:
            temporary.replace(path)
        except OSError:  # a mount that does not look like one, of a folder of the same file system; or not empty
            if not path.is_dir():
                raise
            _move_up(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _can_be_replaced(folder: Path) -> bool:
    return not (os.path.ismount(folder) or folder.samefile(os.curdir)) and os.access(folder.parent, os.W_OK)


def _move_up(temporary: Path, folder: Path) -> None:
    if others := [path for path in folder.iterdir() if path != temporary]:
        raise FileExistsError(f"{folder} is no longer empty, {others[0].name} is in it: nothing is overwritten")
    for path in temporary.iterdir():
        shutil.move(path, folder / path.name)  # a rename, if it is not another file system


def sync(path: Path) -> None:
    """Wait until a file's content is on the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
