"""Which weights a run takes when none are named."""

from __future__ import annotations

from pathlib import Path

from sat_sr.cli.errors import CannotRun

OFFICIAL_WEIGHTS, SMALL_WEIGHTS = "mp_rank_00_model_states.pt", "mini.safetensors"


def find_network(given: str | None) -> Path:
    """The weights: those that are named, else the official ones in ckpt/ by their name, else the small ones that ship.

    ckpt/ is that of the working directory, of the repository, or, installed, of the package.

    Raises CannotRun with both ways out when there are none.
    """
    if given:
        return Path(given)
    package = Path(__file__).resolve().parents[1]
    folders = [Path("ckpt"), package.parent / "ckpt", package / "ckpt"]
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
