"""Which name an output gets: the wanted one, or the first numbered one that can be had. No torch in here."""

from __future__ import annotations

import functools
import itertools
import json
import os
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from sat_sr.cli.entry import Entry
from sat_sr.image_io.picture import PictureError


class Name(NamedTuple):
    """A path that an output may get, and what has been found there.

    key      equal for paths that name one file
    blocked  why no output may have it, whichever picture it is of
    stored   the settings in a finished output, if it is to be kept and carries any
    made_of  what those say that it was made of: of that picture it is the output, of no other
    """

    path: Path
    key: str
    blocked: str | None = None
    stored: Mapping[str, object] | None = None
    made_of: str | None = None


class FreeNames:
    """Gives names out, each once.

    inputs               keys of files that no output may replace
    existing, stored_in  as of plan_outputs
    taken                outputs that this run has made already

    However many entries want one name, each place on the disk is looked at once.
    """

    def __init__(
        self, inputs: Collection[str], existing: str, stored_in: Callable[[Path], Mapping[str, object] | None],
        taken: Iterable[Path] = (),
    ) -> None:  # fmt: skip
        self._inputs, self._existing, self._stored_in = inputs, existing, stored_in
        self._used = set(map(key_of, taken))
        self._series: dict[Path, _Series] = {}

    def take(self, entry: Entry, own: str, wanted: Path) -> tuple[Name, str | None]:
        """The name of an entry's output; why it is not the wanted one. OSError if the disk cannot be asked.

        own  key of the entry's file, which the output may not replace either
        """
        origin = functools.cache(lambda: _comparable(entry.origin()))
        if wanted not in self._series:
            self._series[wanted] = _Series(wanted, self._look_at)
        series = self._series[wanted]
        name = next(name for name in series.names_for(origin, self._used) if name.key != own)
        self._used.add(name.key)
        return name, None if name is series.first else _why_not(series.first, own, origin)

    def _look_at(self, path: Path) -> Name:
        name = Name(path, key_of(path))
        if name.key in self._inputs:
            return name._replace(blocked=f"{path} is itself an input")
        if self._existing == "number" and os.path.lexists(path):
            return name._replace(blocked=f"{path} is there already")
        if self._existing == "skip" and os.path.isfile(path):
            stored = self._stored_in(path)
            origin = source_in(stored)
            return name._replace(stored=stored, made_of=None if origin is None else _comparable(origin))
        return name


class _Series:
    """What one wanted name may become, in order: itself, then numbered.

    first  the wanted name
    """

    def __init__(self, wanted: Path, look_at: Callable[[Path], Name]) -> None:
        self.first = look_at(wanted)
        further = (numbered(wanted, number) for number in itertools.count(2))
        self._ahead = itertools.chain([self.first], map(look_at, further))
        # Seen, and perhaps still to be had: by whom, as it was made of that; or by anybody.
        self._of: defaultdict[str, deque[Name]] = defaultdict(deque)
        self._free: deque[Name] = deque()

    def names_for(self, origin: Callable[[], str], used: Collection[str]) -> Iterator[Name]:
        """Those that are not used, and not the output of a picture other than the one of that origin, in order."""
        for seen in (self._of.get(origin(), deque()) if self._of else deque(), self._free):
            while seen and seen[0].key in used:  # for good
                seen.popleft()
            yield from (name for name in seen if name.key not in used)
        for name in self._ahead:
            if name.blocked or name.key in used:
                continue
            (self._free if name.made_of is None else self._of[name.made_of]).append(name)
            if name.made_of is None or name.made_of == origin():
                yield name


def _why_not(name: Name, own: str, origin: Callable[[], str]) -> str:
    """Why an entry's output cannot have the name that it wants."""
    if name.blocked:
        return name.blocked
    if name.key == own:
        return f"{name.path} is itself an input"
    if name.made_of is not None and name.made_of != origin():
        return f"{name.path} is of another picture"
    return f"{name.path} is the output of another input"


def numbered(path: Path, number: int) -> Path:
    """a_sr.png, 2 -> a_sr_2.png"""
    return path.with_name(f"{path.stem}_{number}{path.suffix}")


def next_free(path: Path) -> Path:
    """The first numbered name that no file has now."""
    return next(name for number in itertools.count(2) if not os.path.lexists(name := numbered(path, number)))


def key_of(path: str | os.PathLike) -> str:
    """Equal for paths that name one file; also for those that would on a file system that ignores case."""
    return os.path.realpath(path).casefold()


def stored_in(path: Path) -> Mapping[str, object] | None:
    """The settings in a finished output; None for a file of another kind."""
    from sat_sr.image_io import read_settings  # late, for torch's sake

    try:
        return read_settings(path)
    except PictureError:
        return None


def source_in(stored: Mapping[str, object] | None) -> object:
    """What a finished output was made of, as `Entry.origin` tells it; None when that is not known."""
    return None if stored is None else stored.get("source")


def _comparable(origin: object) -> str:
    return json.dumps(origin, sort_keys=True)
