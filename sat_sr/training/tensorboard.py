"""Scalars and pictures as TensorBoard's event files, written at once: a full disk is an error here and now.

The usual SummaryWriter hands its events to a thread. If that dies of a full disk, the run waits for it for ever as soon
as the queue between them is full.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import image, scalar


class EventFile:
    """A new event file in `folder`. TensorBoard hides what earlier files say of steps from `first_step` on.

    Raises OSError when it cannot be written.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        folder.mkdir(exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"), filename_suffix=f".{first_step}")
        self._write(first_step, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._write(step, summary=scalar(name, value))
        self._writer.flush()

    def picture(self, step: int, name: str, picture: torch.Tensor) -> None:
        """(3, H, W) uint8."""
        self._write(step, summary=image(name, picture))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _write(self, step: int, **content: object) -> None:
        self._writer.write_event(Event(wall_time=time.time(), step=step, **content))
