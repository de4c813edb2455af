"""What a run reports: one line to read, one JSON line to plot, the same for TensorBoard. Rank 0 writes."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch

from sat_sr.atomic_files import atomic_file
from sat_sr.checkpoint.run_folder import LOG, TENSORBOARD
from sat_sr.programs.streams import leave
from sat_sr.training.tensorboard import EventFile


def say(message: str) -> None:
    """One line for the user, with the time of day. For rank 0, or for what concerns one rank."""
    try:
        print(f"{time.strftime('%H:%M:%S')} {message}", flush=True)
    except OSError as error:  # the run goes on when its log cannot
        leave(sys.stdout)
        warn(f"standard output cannot be written ({error.strerror}): the run goes on without it, {LOG} has its numbers")


class RunLog:
    """The log of a run in its folder: log.jsonl, and TensorBoard's events in tensorboard/.

    `enabled` is true on rank 0 only; elsewhere all methods do nothing. Records after step `resume_step` are dropped, a
    resumed run writes them again.
    """

    def __init__(self, folder: Path, resume_step: int, enabled: bool) -> None:
        self._enabled = enabled
        self._board = None
        if not enabled:
            return
        self._path = folder / LOG
        lines = self._lines()
        kept = [line for line in lines if _step_of(line) <= resume_step]
        if dropped := len(lines) - len(kept):
            say(f"{self._path}: {dropped} record(s) after step {resume_step} are dropped: those steps come again")
        with atomic_file(self._path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")
        self._board = EventFile(folder / TENSORBOARD, first_step=resume_step + 1)

    def _lines(self) -> list[str]:
        """The records there are. A killed process may have left half a line, a power cut anything."""
        if not self._path.exists():
            return []
        lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n") and _step_of(line) >= 0]
        if len(whole) < len(lines):
            warn(f"{self._path}: {len(lines) - len(whole)} damaged line(s) left out")
        return whole

    def line(self, message: str) -> None:
        if self._enabled:
            say(message)

    def has(self, kind: str, step: int) -> bool:
        """Whether there is a record of this kind and step; where `enabled` is false there is none."""
        records = map(json.loads, self._lines()) if self._enabled else ()
        return any(record.get("kind") == kind and record["step"] == step for record in records)

    def scalars(self, kind: str, step: int, values: dict[str, float]) -> None:
        """One record: `kind` is "train", "valid" or "data"."""
        if not self._enabled:
            return
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self._board.scalars(step, {f"{kind}/{name}": value for name, value in values.items()})

    def picture(self, step: int, picture: torch.Tensor) -> None:
        """(3, H, W) uint8, shown in TensorBoard."""
        if self._board:
            self._board.picture(step, "valid/samples", picture)

    def close(self) -> None:
        if self._board:
            self._board.close()


def _step_of(line: str) -> int:
    """Of a record; -1 where the line is none."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return -1


def warn(message: str) -> None:
    """To standard error, at once: for what goes wrong on any rank."""
    try:
        print(message, file=sys.stderr, flush=True)
    except OSError:
        leave(sys.stderr)


def duration(seconds: float) -> str:
    """ "42 s", "3 min 20 s", "5 h 07 min", "12 d 3 h"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    if seconds < 86400:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    return f"{seconds // 86400} d {seconds % 86400 // 3600} h"
