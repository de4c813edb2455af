"""Command-line arguments -> pictures to do: files, folders, globs, lists, standard input, tar archives.

What is wrong with one argument, or with one line of a list, becomes an entry with an error in its place, so that the
others are still done and the error is told with them. No torch in here.
"""

from __future__ import annotations

import codecs
import glob
import io
import os
import re
import stat
import sys
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, BinaryIO

from sat_sr.inference.picture import DEFAULT_MAX_PIXELS, PICTURE_SUFFIXES, PictureError

if TYPE_CHECKING:
    from sat_sr.inference.picture import Picture

# What "PATH 1", "PATH 2" mean in the release's lists: the halves of a 1030-px pair sheet, (left, top, right, bottom).
PAIR_BOXES = {"1": (2, 2, 514, 514), "2": (516, 2, 1028, 514)}
_PAIR_LINE = re.compile(r"(?P<path>.*\S)\s+(?P<half>[12])")


_HERE = PurePosixPath()


@dataclass(frozen=True)
class Member:
    """A picture inside a tar archive, at a byte range of it."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Entry:
    """One picture to do, or one thing that cannot be done (`error`, a sentence).

    source    the picture file, or the archive that holds `member`
    stem      its name without suffix;   folder  the folder below the output folder that its output goes to
    box       (left, top, right, bottom) in pixels of the part that is meant, or None for all of it
    explicit  named by itself, not found in a folder, an archive or by a pattern
    note      to be said once
    """

    source: Path
    stem: str
    folder: PurePosixPath = _HERE
    member: Member | None = None
    box: tuple[int, int, int, int] | None = None
    explicit: bool = True
    error: str | None = None
    note: str | None = None

    @property
    def name(self) -> str:
        """How messages call it; always printable."""
        name = f"{self.source}:{self.member.name}" if self.member else str(self.source)
        if self.box:
            name += f" {next((half for half, box in PAIR_BOXES.items() if box == self.box), self.box)}"
        return name.encode("utf-8", "backslashreplace").decode()

    def open(self) -> BinaryIO:
        """The bytes of the picture file. OSError if they cannot be had."""
        if self.member is None:
            return open(self.source, "rb")
        with open(self.source, "rb") as archive:
            archive.seek(self.member.offset)
            return io.BytesIO(archive.read(self.member.size))

    def read(self, max_pixels: int = DEFAULT_MAX_PIXELS) -> Picture:
        """The picture, cropped to `box`. PictureError says what is wrong with it."""
        from sat_sr.inference.reading import read_picture  # late, for torch's sake: names are planned without it

        if self.error:
            raise PictureError(self.error)
        picture = read_picture(self.source if self.member is None else self, max_pixels=max_pixels)
        return picture if self.box is None else picture.crop(self.box)

    def size(self) -> tuple[int, int]:
        """(width, height) of the picture or its crop in pixels, from the file's header. PictureError as in `read`."""
        from sat_sr.inference.reading import picture_size  # late, as above

        if self.error:
            raise PictureError(self.error)
        if self.box is not None:
            return self.box[2] - self.box[0], self.box[3] - self.box[1]
        return picture_size(self.source if self.member is None else self)


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
    count from the working directory, else from the list's folder. `PATH 1` and `PATH 2` are the halves of a pair sheet
    (PAIR_BOXES), unless a file bears that whole name.
    """
    excluded = None if exclude is None else os.path.realpath(exclude)
    entries: list[Entry] = []
    for argument in arguments:
        text = os.fspath(argument)
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
        yield _problem(path, f"{text!r} is no path: leave it out")
    elif path.is_dir():
        yield from _from_folder(path, recursive, excluded)
    elif path.exists():
        if path.suffix.lower() == ".tar" and path.is_file():
            yield from _from_tar(path)
        else:
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


def _file(path: Path, *, explicit: bool = True, folder: PurePosixPath = _HERE) -> Entry:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return _problem(path, f"{path} cannot be opened ({error.strerror}): check it or leave it out")
    if not stat.S_ISREG(mode):
        return _problem(path, f"{path} is no regular file but a device, pipe or socket: save the picture to a file")
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
                if path.exists():
                    yield _file(path, explicit=False, folder=place)
                else:
                    yield from _from_path(str(path), False, None)  # a link to nothing
    for problem in problems:
        count += 1
        message = f"folder {problem.filename} cannot be read ({problem.strerror}): check its permissions"
        yield _problem(Path(problem.filename), message)
    if not count:
        hint = "" if recursive else " (its folders are searched with --recursive)"
        yield _problem(folder, f"folder {folder} holds no picture: name another one{hint}")


def _from_tar(archive: Path) -> Iterator[Entry]:
    """Pictures of an uncompressed (WebDataset) tar, in its order. A member's folder is kept in the output."""
    count = 0
    try:
        with tarfile.open(archive, "r:") as tar:
            for info in tar:
                path = PurePosixPath(info.name)
                if not info.isreg() or info.issparse() or not _is_picture(path):
                    continue
                count += 1
                member = Member(info.name, info.offset_data, info.size)
                entry = Entry(archive, path.stem, folder=path.parent, member=member, explicit=False)
                if path.is_absolute() or ".." in path.parts:
                    entry = replace(entry, folder=PurePosixPath(), error=(
                        f"{entry.name} names a place outside the archive: leave it out or pack it anew"
                    ))  # fmt: skip
                yield entry
    except (tarfile.TarError, OSError, ValueError) as error:
        yield _problem(archive, f"{archive} is no whole tar archive ({error}): unpack it and give the folder")
        return
    if not count:
        yield _problem(archive, f"{archive} holds no picture: name another archive")


# --- lists ------------------------------------------------------------------------------------------------------------
def _from_standard_input(stream: IO | None, recursive: bool, excluded: str | None) -> Iterator[Entry]:
    if stream is None:  # `<&-`
        yield _problem(Path("-"), "standard input is closed: give the list as a file, or the paths as arguments")
        return
    data = getattr(stream, "buffer", stream).read()
    data = data if isinstance(data, bytes) else data.encode("utf-8", "surrogateescape")
    yield from _from_lines(data, Path("-"), "standard input", recursive, excluded)


def _from_list(path: Path, recursive: bool, excluded: str | None) -> Iterator[Entry]:
    try:
        data = path.read_bytes()
    except OSError as error:
        yield _problem(path, f"list {path} cannot be read ({error.strerror}): check it")
        return
    yield from _from_lines(data, path, f"list {path}", recursive, excluded)


def _from_lines(data: bytes, path: Path, name: str, recursive: bool, excluded: str | None) -> Iterator[Entry]:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        yield _problem(path, f"{name} is in UTF-16: save it as UTF-8")
        return
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        lines = re.split(r"\r\n|\r|\n", data.decode("utf-8"))  # and not at the other separators of str.splitlines
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = data[error.start]
        yield _problem(path, f"{name}, line {line}: byte 0x{byte:02x} is not UTF-8: save the list as UTF-8")
        return
    count = 0
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if text and not text.startswith("#"):
            count += 1
            for entry in _from_line(text, path.parent, recursive, excluded):
                yield replace(entry, error=f"{name}, line {number}: {entry.error}") if entry.error else entry
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
                yield _problem(entry.source, f"{text}: {sheet} is no single pair sheet: name the sheets one by one")
                return
    elif whole is not None and Path(whole).suffix.lower() == ".txt" and os.path.isfile(whole):
        yield _problem(Path(whole), f"{whole} is a list itself: give it as an argument of its own")
    elif whole is None and glob.has_magic(text) and not glob.glob(text, recursive=True):
        yield from _from_path(os.path.join(glob.escape(str(folder)), text), recursive, excluded)
    else:
        yield from _from_path(whole or text, recursive, excluded)


def _found(text: str, folder: Path) -> str | None:
    """`text` as a path from the working directory, else from the list's folder; None if neither is there."""
    if "\0" in text:
        return None
    return next((path for path in (text, str(folder / text)) if os.path.lexists(path)), None)


def _without_repeats(entries: list[Entry]) -> list[Entry]:
    """Each picture once, where it is named first (a name of its own outweighs being found in a folder)."""
    kept: dict[tuple, Entry] = {}
    for number, entry in enumerate(entries):
        key = (number,) if entry.error else (os.path.realpath(entry.source), entry.member, entry.box)
        first = kept.get(key)
        if first is None:
            kept[key] = entry
        else:
            note = f"{entry.name} is named more than once: it is done once"
            kept[key] = replace(first, explicit=first.explicit or entry.explicit, note=note)
    return list(kept.values())
