"""What ends a run of the command line. The numbers that it ends with: exit_codes.py."""

from __future__ import annotations


class CannotRun(Exception):
    """Nothing can be done; the message is one sentence with the way out."""
