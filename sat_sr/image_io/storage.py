"""The safe way to the disk: writing that leaves a whole file or none.

A finished file appears by a rename, so whatever carries its name is whole. No torch in here.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import secrets
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from sat_sr.image_io.picture import PictureError

try:
    import fcntl
except ImportError:  # Windows: leftovers of a killed run are not swept
    fcntl = None

_TEMPORARY_SUFFIX = ".part"

_REASONS = {
    errno.ENOSPC: "the disk is full: free some space or choose another folder",
    errno.EDQUOT: "the disk quota is used up: free some space or choose another folder",
    errno.EFBIG: "the file is too large for this file system: choose another folder or a format that compresses more",
    errno.EACCES: "no permission to write there: choose another folder",
    errno.EPERM: "no permission to write there: choose another folder",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.ENOTDIR: "a part of the path is a file, not a folder: choose another folder",
    errno.EEXIST: "a part of the path is a file, not a folder: choose another folder",
    errno.EISDIR: "there is a folder of that name: remove it or choose another name",
    errno.ENAMETOOLONG: "the name is too long for this file system: choose a shorter one",
}


class NameTaken(PictureError):
    """A file of that name exists, and may not be replaced."""


def storage_error(path: str | os.PathLike, error: OSError) -> PictureError:
    """The one-sentence form of an OSError on writing `path`."""
    reason = _REASONS.get(error.errno or 0, f"{error.strerror or error}: choose another folder")
    return PictureError(f"cannot write {os.fspath(path)}: {reason}")


def require_writable(folder: str | os.PathLike) -> None:
    """Makes the folder and a file in it, and removes the file: PictureError before hours of work, not after."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        descriptor, temporary = _create_temporary(folder)
        os.close(descriptor)
        temporary.unlink()
    except OSError as error:
        raise storage_error(folder, error) from error


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike, *, replace: bool = True) -> Iterator[BinaryIO]:
    """A seekable binary file that becomes `path` when the block ends well, and vanishes when it does not.

    replace   whether an existing file of that name is replaced; if not, NameTaken is raised at the end when there is
              one, even if another process made it in the meantime
    It lives under a temporary name in the same folder, is flushed to the disk and then renamed. OSError becomes a
    PictureError that says what to do. After a kill -9 the temporary stays; the next write into the folder sweeps it.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        _sweep(path.parent)
        descriptor, temporary = _create_temporary(path.parent)
        with open(descriptor, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _rename(temporary, path, replace)
        temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        raise storage_error(path, error) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()


def _rename(temporary: Path, path: Path, replace: bool) -> None:
    if replace:
        os.replace(temporary, path)
        return
    # Not every file system has links, by which a name is taken at once: an empty file claims it first.
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    except FileExistsError as error:
        raise NameTaken(f"cannot write {path}: it is there already") from error
    try:
        os.replace(temporary, path)
    except BaseException:
        path.unlink()
        raise


def _create_temporary(folder: Path) -> tuple[int, Path]:
    """A new file, locked as long as its writer lives. Not by `tempfile`: its files are private to the user for good."""
    while True:
        temporary = folder / f"{_temporary_prefix()}{secrets.token_hex(8)}{_TEMPORARY_SUFFIX}"
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        if fcntl is not None:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink or fcntl is None:
            return descriptor, temporary
        os.close(descriptor)  # another process swept it before it was locked


def _sweep(folder: Path) -> None:
    """Removes the temporaries of this machine's writers that were killed: those that nobody holds a lock on."""
    if fcntl is None:
        return
    for leftover in folder.glob(f"{_temporary_prefix()}*{_TEMPORARY_SUFFIX}"):
        with contextlib.suppress(OSError):  # somebody else's, in use, or gone already
            with open(leftover, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                leftover.unlink()


def _temporary_prefix() -> str:
    """Names the machine: a lock says nothing about another machine's writers in a shared folder."""
    return f".sat-sr-{zlib.crc32(platform.node().encode()):08x}-"


def _sync_folder(folder: Path) -> None:
    """Makes the rename last through a power cut, where folders can be synced."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
