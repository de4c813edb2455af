"""Which weights a run takes when none are named."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

OFFICIAL_WEIGHTS, SMALL_WEIGHTS = "mp_rank_00_model_states.pt", "mini.safetensors"


class CannotRun(Exception):
    """Nothing can be done; the message is one sentence with the way out."""


def find_network(given: str | None) -> Path:
    """The weights: those that are named, else the official ones in ckpt/ by their name, else the small ones that ship.

    ckpt/ is that of the working directory, or of the repository. An installed package has the small ones beside it.

    Raises CannotRun with both ways out when there are none.
    """
    if given:
        return Path(given)
    repository = Path(__file__).resolve().parents[2] / "ckpt"
    folders = list(dict.fromkeys((Path("ckpt"), repository, *_installed())))
    for folder in folders:
        if (folder / OFFICIAL_WEIGHTS).is_file():
            return folder / OFFICIAL_WEIGHTS
    for folder in folders:
        if (folder / SMALL_WEIGHTS).is_file():
            return folder / SMALL_WEIGHTS
    raise CannotRun(
        f"there are no weights in {' or '.join(map(str, folders))}: put the official ones there as {OFFICIAL_WEIGHTS} "
        f"(ckpt/README.md tells from where), fetch {SMALL_WEIGHTS}, which belongs to this repository, again, or name "
        "others with --network"
    )


def _installed() -> list[Path]:
    """Where pip has put the small weights: wherever the data of packages goes in this environment."""
    try:
        listed = files("sat-sr") or []
    except PackageNotFoundError:
        return []
    return [Path(file.locate()).resolve().parent for file in listed if file.name == SMALL_WEIGHTS]
