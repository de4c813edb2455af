"""How the programs start, as scripts and installed: a missing package, or Ctrl-C while Python still imports, is no
traceback. Imports nothing that has to be installed."""

from __future__ import annotations

import importlib
import signal
import sys
from typing import NoReturn

from sat_sr.programs import exit_codes


def upscale() -> NoReturn:
    """generate_sr_big.py, sat-sr."""
    _run("sat_sr.cli.main")


def train() -> NoReturn:
    """train_text2image_sr.py, sat-sr-train."""
    _run("sat_sr.training.main")


def _run(program: str) -> NoReturn:
    """Ends the process with the code that `main` of the module `program` returns."""
    try:
        code = importlib.import_module(program).main()
    except ModuleNotFoundError as error:
        if is_ours(error):
            raise
        print(f"error: {missing(error)}", file=sys.stderr)
        code = exit_codes.WRONG_USE
    except KeyboardInterrupt:
        code = exit_codes.of_signal(signal.SIGINT)
    sys.exit(code)


def is_ours(error: ModuleNotFoundError) -> bool:
    """Whether it is a module of sat_sr that is missing: a fault that no installation mends."""
    return (error.name or "sat_sr").partition(".")[0] == "sat_sr"


def missing(error: ModuleNotFoundError) -> str:
    """What to do about a package that is not installed, in a sentence."""
    return (
        f"{sys.executable} has no module {error.name}: run `bash generate_sr_big_cli.sh`, which sets everything up in "
        ".venv, or install with `pip install .`"
    )
