"""What the run says: lines, bars with the time left, or JSON for scripts. Light: no torch in here.

Lines about pictures go to standard output, errors, notes and bars to standard error; with `json` standard output has
the objects and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO

from tqdm import tqdm

from sat_sr.cli.bars import PICTURE_FORMAT, Bar, ListBar, interval
from sat_sr.cli.time_left import TimeLeft
from sat_sr.programs.streams import leave

_BAR_COLUMNS = 40  # of a picture's bar, without the name
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}
_NAMES = 20  # of pictures that a note is about, beside the first
_LOG_SECONDS = 60  # between two lines about progress where no terminal shows a bar


class Console:
    """Says things in the way that was asked for.

    quiet   errors only
    json    objects on standard output
    prefix  before every line, to tell ranks apart
    bars    whether this process may draw bars
    Attribute lost: something could not be printed, for a reason other than that nobody reads on (`| head`).
    """

    def __init__(self, *, quiet: bool = False, json: bool = False, prefix: str = "", bars: bool = True) -> None:
        self.quiet, self.json, self.prefix = quiet, json, prefix
        self.bars = bars and not (quiet or json)
        self.lost = False
        self._said: dict[str, dict[str, None]] = {}  # note -> the pictures that it is about, in order
        self._list: ListBar | None = None

    def line(self, text: str) -> None:
        """For the user to read while it runs."""
        if not (self.quiet or self.json):
            self._print(text, sys.stdout)

    def note(self, text: str, about: str = "") -> None:
        """What was substituted, skipped or ignored: said once in a run, with the first picture it is about; the others
        are named at the end, see `notes_gathered`."""
        if self.quiet or self.json:
            return
        if text not in self._said:
            self._said[text] = {about: None}
            self._print(f"note: {f'{about}: ' if about else ''}{text}", sys.stderr)
        self._said[text][about] = None

    def notes(self, texts: Iterable[str], about: str = "") -> None:
        for text in texts:
            self.note(text, about)

    @contextlib.contextmanager
    def notes_gathered(self) -> Iterator[None]:
        """Names at the end, however it ends, the pictures that a note of the body is about besides the one it named."""
        try:
            yield
        finally:
            for text, (first, *others) in self._said.items():
                if others:
                    more = len(others) - _NAMES
                    left = f" and {more} more (--json has the notes of each)" if more > 0 else ""
                    self._print(f"note: also {', '.join(others[:_NAMES])}{left}: {text}", sys.stderr)
                    self._said[text] = {first: None}

    def error(self, text: str) -> None:
        self._print(f"error: {text}", sys.stderr)

    def error_about(self, name: str, reason: str) -> None:
        """With the picture's name, unless the reason has it."""
        self.error(reason if name in reason else f"{name}: {reason}")

    def record(self, values: dict[str, Any]) -> None:
        """One object a picture, with --json."""
        if self.json:
            with self._may_be_lost(sys.stdout):
                print(json.dumps(values), flush=True)

    def ask(self, prompt: str) -> str:
        """A line from standard input. EOFError at its end."""
        if sys.stdin is None:  # `<&-`
            raise EOFError
        if not self.json:
            return input(prompt)
        print(prompt, end="", file=sys.stderr, flush=True)
        return input()

    def ask_paths(self, prompt: str) -> list[str]:
        """Paths that are typed, or dropped on the terminal, which quotes as for a shell. EOFError as above."""
        text = self.ask(prompt).strip()
        try:
            words = [os.path.expanduser(word) for word in shlex.split(text)]
        except ValueError:  # a lone quote
            words = [text]
        if os.path.exists(text) or not all(os.path.exists(word) for word in words):
            return [text]
        return words

    def _print(self, text: str, stream: TextIO) -> None:
        with self._may_be_lost(stream):
            tqdm.write(_printable(self.prefix + text, stream), file=stream)
            stream.flush()

    @contextlib.contextmanager
    def _may_be_lost(self, stream: TextIO) -> Iterator[None]:
        """A stream that ends, by `| head` or a full disk, ends the reporting and not the work."""
        try:
            yield
        except OSError as error:
            leave(stream)
            if isinstance(error, BrokenPipeError):
                return
            self.lost = True
            if stream is sys.stdout:
                self.error(f"standard output cannot be written ({error.strerror}): the work goes on without it")

    @contextlib.contextmanager
    def list_progress(self, pictures: int, costs: Iterable[float]) -> Iterator[Callable[[], None]]:
        """A bar for the list; yields what to call after each picture.

        costs   of each picture, in any unit: 0 for what is not computed. Looked at only if there is a bar
        """
        if not (self.bars and pictures > 1 and sys.stderr.isatty()):
            yield lambda: None
            return
        with ListBar(list(costs)) as self._list:
            try:
                yield self._list.next
            finally:
                self._list = None

    @contextlib.contextmanager
    def picture_progress(self, name: str) -> Iterator[Callable[[float], None]]:
        """A bar for one picture; yields what to call with the finished share, 0..1."""
        if not self.bars:
            yield lambda share: None
        elif sys.stderr.isatty():
            if self._list:
                self._list.start()
            desc = _printable(_short(name), sys.stderr)
            with Bar(total=1.0, desc=desc, bar_format=PICTURE_FORMAT, position=0, leave=False) as bar:
                bar.start()
                yield lambda share: self._show(bar, share)
        else:
            yield self._log_progress(name)

    def _show(self, bar: Bar, share: float) -> None:
        bar.show(share)
        if self._list:
            self._list.show(share)

    def _log_progress(self, name: str) -> Callable[[float], None]:
        """Signs of life in log files."""
        time_left, last = TimeLeft(), time.monotonic()

        def report(share: float) -> None:
            nonlocal last
            left = time_left.at(share)
            if time.monotonic() - last >= _LOG_SECONDS:
                last = time.monotonic()
                self.line(f"{name}: {share:.0%}, {interval(left)} left")

        return report


def _short(name: str) -> str:
    """The end of a name, where all of it would leave the terminal no room for the bar."""
    room = max(10, shutil.get_terminal_size().columns - _BAR_COLUMNS)
    return name if len(name) <= room else f"…{name[1 - room :]}"


def _printable(text: str, stream: TextIO) -> str:
    """Names of files may hold what the stream's encoding has not, and what a terminal would obey."""
    encoding = stream.encoding or "utf-8"
    return text.translate(_CONTROLS).encode(encoding, "backslashreplace").decode(encoding)
