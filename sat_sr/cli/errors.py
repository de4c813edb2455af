"""What ends a run of the command line, or one picture of it. The numbers that it ends with: exit_codes.py."""

from __future__ import annotations


class CannotRun(Exception):
    """Nothing can be done; the message is one sentence with the way out."""


def reason_of(error: Exception) -> str:
    """Why a picture has failed, in one sentence. A RuntimeError not about memory is our mistake, and raised again."""
    from sat_sr.inference.out_of_memory import is_out_of_memory  # late, for torch's sake

    if isinstance(error, RuntimeError):
        if not is_out_of_memory(error):
            raise error
        said = str(error).partition("\n")[0]
        return f"there is not enough memory ({said}): give --memory, or ask for a smaller size"
    return str(error) or "there is not enough memory: ask for a smaller size"
