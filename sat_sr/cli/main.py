"""The program of generation: flags, signals, a run, and the exit code. Light until there is something to compute."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sat_sr.cli.arguments import parse_arguments
from sat_sr.cli.console import Console
from sat_sr.cli.errors import CannotRun
from sat_sr.cli.run import Run
from sat_sr.cli.sharing import Sharing
from sat_sr.image_io.picture import PictureError
from sat_sr.programs import exit_codes
from sat_sr.programs.allocator import keep_freed_memory
from sat_sr.programs.launcher import Process


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code of a run: 0 all done, 1 some pictures failed, 2 wrong use, 128 + signal when interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    _open_streams()
    args = parse_arguments(argv)
    keep_freed_memory()
    try:
        process = Process.of(os.environ)
    except ValueError as error:
        Console().error(str(error))
        return exit_codes.WRONG_USE
    console = Console(
        quiet=args.quiet,
        json=args.json,
        prefix=f"[{process.rank}] " if process.world_size > 1 else "",
        bars=process.rank == 0,
    )
    with _signals() as caught:
        try:
            stored = _stored_settings(args.from_picture) if args.from_picture else None
            if stored is not None:
                args = parse_arguments(argv, stored)
            return Run(args, console, Sharing(process), stored).run()
        except CannotRun as error:
            console.error(str(error))
            return exit_codes.WRONG_USE
        except KeyboardInterrupt:
            again = "; the same command with --skip-existing continues" if args.inputs else ""
            console.error(f"interrupted: finished pictures are kept{again}")
            return exit_codes.of_signal(caught[0] if caught else signal.SIGINT)


def _open_streams() -> None:
    """Standard streams that can be used: `>&-` closes what is printed to, and the next file that is opened, a picture,
    would take its place; names that are typed need not be in the terminal's encoding."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (as long as the program)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")


def _stored_settings(name: str) -> Mapping[str, Any]:
    from sat_sr.image_io import read_settings  # late, for torch's sake

    try:
        stored = read_settings(name)
    except PictureError as error:
        raise CannotRun(f"--from-picture: {error}") from error
    if stored is None:
        raise CannotRun(f"--from-picture: {name} carries no settings of this program: give them as flags")
    return stored


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Ctrl-C, and Slurm's SIGTERM, end the run after cleaning up; a second one ends it at once.

    Yields a list that gets the signal's number.
    """
    caught: list[int] = []

    def handle(number: int, frame: object) -> None:
        if caught:
            os._exit(exit_codes.of_signal(number))
        caught.append(number)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
