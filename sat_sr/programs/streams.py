"""Standard output and standard error that end before the program does."""

from __future__ import annotations

import os
from typing import TextIO


def leave(stream: TextIO) -> None:
    """What is printed to a stream that has ended, by `| head` or a full disk, goes nowhere from here on.

    That includes what it holds already, which Python would try to write again at its exit.
    """
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())
