"""Command-line arguments -> pictures to do: files, folders, globs, lists, standard input, tar archives.

What is wrong with one argument, or with one line of a list, becomes an entry with an error in its place, so that the
others are still done and the error is told with them. No torch in here.
"""

from __future__ import annotations

import codecs
import errno
import glob
import os
import re
import stat
import sys
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import unquote_to_bytes

from sat_sr.cli.entry import HERE, PAIR_BOXES, Entry, Member
from sat_sr.image_io.picture import PICTURE_SUFFIXES

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # as Python's surrogateescape marks such bytes
_PAIR_LINE = re.compile(r"(?P<path>.*\S)\s+(?P<half>[12])")
_COMPRESSED_TAR = (".tgz", ".tbz", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")


def expand_inputs(
    arguments: Iterable[str | os.PathLike], *, recursive: bool = False, stdin: IO | None = None,
    exclude: str | os.PathLike | None = None,
) -> list[Entry]:  # fmt: skip
    """Turns arguments into entries, in order; folders and patterns in sorted order; a picture named twice is done once.

    An argument is the first of these that it fits: `-` (a list on `stdin`, default sys.stdin), a folder (its pictures
    by suffix, hidden ones aside; with `recursive` those of its folders too, which keep their place in the output; links
    to folders are not followed), a `.txt` list, a `.tar` archive (its pictures by suffix), any other file, a glob
    pattern (the pictures that match; `**` goes down). `exclude`: a folder, the output's, that is not searched when it
    lies inside a searched one.

    A list has one of the above a line, but no list; blank lines and lines that start with # are skipped; UTF-8. Paths
    count from the working directory, else from the list's folder; ~, quotes around a path and file:// are understood.
    `PATH 1` and `PATH 2` are the halves of a pair sheet (PAIR_BOXES), unless a file bears that whole name. On `stdin`
    paths may also be divided by zero bytes, as `find -print0` does.
    """
    excluded = None if exclude is None else os.path.realpath(exclude)
    entries: list[Entry] = []
    for argument in arguments:
        text = os.fspath(argument)
        text = _found(text, Path()) or _matching(text, Path()) or text
        if text == "-":
            entries += _from_standard_input(sys.stdin if stdin is None else stdin, recursive, excluded)
        elif Path(text).suffix.lower() == ".txt" and os.path.isfile(text):
            entries += _from_list(Path(text), recursive, excluded)
        else:
            entries += _from_path(text, recursive, excluded)
    return _without_repeats(entries)


def _from_path(text: str, recursive: bool, excluded: str | None) -> Iterator[Entry]:
    path = Path(text)
    if not text or "\0" in text:
        yield _problem(path, f"{text!r} is not a path: leave it out")
        return
    try:
        mode = _mode(path)
    except OSError as error:
        yield _problem(path, f"{text} cannot be opened ({error.strerror}): check it or leave it out")
        return
    if mode is not None and stat.S_ISDIR(mode):
        yield from _from_folder(path, recursive, excluded)
    elif mode is not None and stat.S_ISREG(mode) and path.suffix.lower() == ".tar":
        yield from _from_tar(path)
    elif mode is not None and text.lower().endswith(_COMPRESSED_TAR):
        yield _problem(path, f"{text} is a compressed archive: unpack it and give the folder")
    elif mode is not None:
        yield _file(path)
    elif path.is_symlink():
        yield _problem(path, f"{text} is a link to {os.readlink(path)}, which is not there: mend it or leave it out")
    elif glob.has_magic(text):
        matches = [Path(match) for match in sorted(glob.glob(text, recursive=True))]
        pictures = [match for match in matches if _is_picture(match)]
        yield from (_file(match, explicit=False) for match in pictures)
        if not pictures:
            found = f"no picture among the {len(matches)} that match {text}" if matches else f"nothing matches {text}"
            yield _problem(path, f"{found}: check the pattern")
    else:
        yield _problem(path, f"{text} is not there: check the path")


def _mode(path: Path) -> int | None:
    """What kind of file it is (`os.stat`), None if it is not there. OSError if that cannot be known."""
    try:
        return os.stat(path).st_mode
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise


def _file(path: Path, *, explicit: bool = True, folder: PurePosixPath = HERE) -> Entry:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return _problem(path, f"{path} cannot be opened ({error.strerror}): check it or leave it out")
    if not stat.S_ISREG(mode):
        return _problem(path, f"{path} is not a regular file but a device, pipe or socket: save the picture to a file")
    return Entry(path, path.stem, folder=folder, explicit=explicit)


def _problem(path: Path, error: str) -> Entry:
    return Entry(path, path.stem, error=error.encode("utf-8", "backslashreplace").decode())


def _is_picture(path: Path | PurePosixPath) -> bool:
    return path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".")


def _from_folder(folder: Path, recursive: bool, excluded: str | None) -> Iterator[Entry]:
    problems: list[OSError] = []
    count = 0
    for current, folders, files in os.walk(folder, onerror=problems.append):
        folders[:] = sorted(
            name for name in folders
            if recursive and not name.startswith(".") and os.path.realpath(os.path.join(current, name)) != excluded
        )  # fmt: skip
        place = PurePosixPath(*Path(current).relative_to(folder).parts)
        for path in sorted(Path(current, name) for name in files):
            if _is_picture(path):
                count += 1
                if os.path.exists(path):
                    yield _file(path, explicit=False, folder=place)
                else:
                    yield from _from_path(str(path), False, None)  # a link to nothing, or to what may not be seen
    for problem in problems:
        count += 1
        message = f"folder {problem.filename} cannot be read ({problem.strerror}): check its permissions"
        yield _problem(Path(problem.filename), message)
    if not count:
        hint = "" if recursive else " (its folders are searched with --recursive)"
        yield _problem(folder, f"folder {folder} holds no picture: name another one{hint}")


def _from_tar(archive: Path) -> Iterator[Entry]:
    """Pictures of an uncompressed (WebDataset) tar, in its order. A member's folder is kept in the output."""
    count, files = 0, {}
    try:
        with tarfile.open(archive, "r:") as tar:
            for info in tar:
                data = info if info.isreg() and not info.issparse() else None
                if info.issym() or info.islnk():
                    data = files.get(_target(info))
                if data:
                    files[os.path.normpath(info.name)] = data
                if not _is_picture(PurePosixPath(info.name)):
                    continue
                if data:
                    count += 1
                    yield _member(archive, info.name, data)
                elif info.issym() or info.islnk():
                    count += 1
                    link = f"{archive}:{info.name} is a link to {info.linkname}"
                    yield _problem(archive, f"{link}, of which there is no file before it: pack the files themselves")
    except (tarfile.TarError, OSError, ValueError) as error:
        yield _problem(archive, f"{archive} is not a complete tar archive ({error}): unpack it and give the folder")
        return
    if not count:
        yield _problem(archive, f"{archive} holds no picture: name another archive")


def _member(archive: Path, name: str, data: tarfile.TarInfo) -> Entry:
    """The picture `name`, whose bytes are those of `data`."""
    path = PurePosixPath(name)
    member = Member(name, data.offset_data, data.size)
    entry = Entry(archive, path.stem, folder=path.parent, member=member, explicit=False)
    if path.is_absolute() or ".." in path.parts:
        error = f"{entry.name} names a place outside the archive: leave it out or pack it anew"
        return replace(entry, folder=HERE, error=error)
    return entry


def _target(link: tarfile.TarInfo) -> str:
    """The member that a link means: hard links name it from the top of the archive."""
    return os.path.normpath(os.path.join(os.path.dirname(link.name) if link.issym() else "", link.linkname))


# --- lists ------------------------------------------------------------------------------------------------------------
def _from_standard_input(stream: IO | None, recursive: bool, excluded: str | None) -> Iterator[Entry]:
    if stream is None:  # `<&-`
        yield _problem(Path("-"), "standard input is closed: give the list as a file, or the paths as arguments")
        return
    data = getattr(stream, "buffer", stream).read()
    data = data if isinstance(data, bytes) else data.encode("utf-8", "surrogateescape")
    if b"\0" in data and not data.startswith(_UTF16):  # `find -print0`: the whole names, whatever they hold
        for path in data.rstrip(b"\0").split(b"\0"):
            yield from _from_path(path.decode("utf-8", "surrogateescape"), recursive, excluded)
    else:
        yield from _from_lines(data, Path("-"), "standard input", recursive, excluded)


def _from_list(path: Path, recursive: bool, excluded: str | None) -> Iterator[Entry]:
    try:
        data = path.read_bytes()
    except OSError as error:
        yield _problem(path, f"list {path} cannot be read ({error.strerror}): check it")
        return
    yield from _from_lines(data, path, f"list {path}", recursive, excluded)


def _from_lines(data: bytes, path: Path, name: str, recursive: bool, excluded: str | None) -> Iterator[Entry]:
    if data.startswith(_UTF16):
        yield _problem(path, f"{name} is in UTF-16: save it as UTF-8")
        return
    count = 0
    lines = re.split(rb"\r\n|\r|\n", data.removeprefix(codecs.BOM_UTF8))  # and not at those of str.splitlines
    for number, line in enumerate(lines, start=1):
        whole = line.decode("utf-8", "surrogateescape")  # names of files need not be UTF-8
        text = whole if _found(whole, path.parent) else whole.strip()
        if text and not text.startswith("#"):
            count += 1
            foreign = _NOT_UTF8.search(text)
            for entry in _from_line(text, path.parent, recursive, excluded):
                error = entry.error
                if error and foreign and _found(text, path.parent) is None:
                    error = f"byte 0x{ord(foreign[0]) - 0xDC00:02x} is not UTF-8: save the list as UTF-8"
                yield replace(entry, error=f"{name}, line {number}: {error}") if error else entry
    if not count:
        yield _problem(path, f"{name} names no picture: write one path a line")


def _from_line(text: str, folder: Path, recursive: bool, excluded: str | None) -> Iterator[Entry]:
    pair = _PAIR_LINE.fullmatch(text)
    whole, sheet = _found(text, folder), _found(pair["path"], folder) if pair else None
    if whole is None and pair and sheet is not None:
        for entry in _from_path(sheet, recursive, excluded):
            if entry.error or (entry.explicit and not entry.member):
                yield replace(entry, box=PAIR_BOXES[pair["half"]])
            else:
                yield _problem(entry.source, f"{text}: {sheet} is not a single pair sheet: name the sheets one by one")
                return
    elif whole is not None and Path(whole).suffix.lower() == ".txt" and os.path.isfile(whole):
        yield _problem(Path(whole), f"{whole} is a list itself: give it as an argument of its own")
    else:
        yield from _from_path(whole or _matching(text, folder) or text, recursive, excluded)


def _found(text: str, folder: Path) -> str | None:
    """`text` as a path from the working directory, else from the list's folder; None if neither is there."""
    if not text or "\0" in text:
        return None
    paths = (path for spelt in _spellings(text) for path in (spelt, str(folder / spelt)))
    return next((path for path in paths if os.path.lexists(path)), None)


def _spellings(text: str) -> Iterator[str]:
    """What a path may mean that a program or a person has written down."""
    yield text
    if text.startswith("~"):
        yield os.path.expanduser(text)
    if len(text) > 2 and text[0] == text[-1] and text[0] in "'\"":
        yield text[1:-1]
    if text.lower().startswith("file://"):  # the name of the host ends at the first slash
        yield "/" + os.fsdecode(unquote_to_bytes(os.fsencode(text[len("file://") :].partition("/")[2])))


def _matching(text: str, folder: Path) -> str | None:
    """`text` as a pattern from the working directory, else from the list's folder; None if nothing matches either."""
    if "\0" in text or not glob.has_magic(text):
        return None
    patterns = (
        pattern for spelt in _spellings(text) for pattern in (spelt, os.path.join(glob.escape(str(folder)), spelt))
    )
    return next((pattern for pattern in patterns if glob.glob(pattern, recursive=True)), None)


def _without_repeats(entries: list[Entry]) -> list[Entry]:
    """Each picture once, where it is named first; one that is named is so for good, wherever else it is found. Links of
    different names are pictures of their own: their outputs are."""
    kept: dict[tuple, Entry] = {}
    for number, entry in enumerate(entries):
        key = (number,) if entry.error else (os.path.realpath(entry.source), entry.stem, entry.member, entry.box)
        first = kept.get(key)
        if first is None:
            kept[key] = entry
        else:
            note = f"{entry.name} is named more than once: it is done once"
            kept[key] = replace(first, explicit=first.explicit or entry.explicit, note=note)
    return list(kept.values())
