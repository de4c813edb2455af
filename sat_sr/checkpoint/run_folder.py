"""The folder of a training run: the names in it, and which checkpoint is the newest. Training writes it, generation
reads it.

    config.json                         the architecture
    lock                                which process trains here
    latest                              name of the newest complete checkpoint
    log.jsonl  tensorboard/  pictures/  what the run told
    1000/                               one checkpoint, named by its step
        mp_rank_00_model_states.pt          weights, key "module", names of the official checkpoint (DeepSpeed)
        *zero_pp_rank_R_*optim_states.pt    float32 weights, moments and EMA of rank R (DeepSpeed; with ZeRO)
        ema.safetensors                     the averaged weights, for generation
        training.json                       step, seed, batch, ranks, settings
        data_rank_R.json                    where rank R stands in its stream of samples
"""

from __future__ import annotations

from pathlib import Path

CONFIG = "config.json"
LOCK = "lock"
LATEST = "latest"
LOG, TENSORBOARD, PICTURES = "log.jsonl", "tensorboard", "pictures"
MODEL_STATES = "mp_rank_00_model_states.pt"
EMA_WEIGHTS = "ema.safetensors"
TRAINING = "training.json"


def data_position(rank: int) -> str:
    """Name of the file of a rank's data position."""
    return f"data_rank_{rank}.json"


def optimizer_states(checkpoint: Path, ranks: int) -> list[Path]:
    """DeepSpeed's files of the ranks' slices, in the order of the ranks. Raises ValueError where one is missing."""
    found = [sorted(checkpoint.glob(f"*zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")) for rank in range(ranks)]
    if missing := [rank for rank, paths in enumerate(found) if len(paths) != 1]:
        raise ValueError(
            f"{checkpoint}: of the {ranks} ranks that saved it the files of {', '.join(map(str, missing))} are not "
            "there: write the name of another checkpoint into `latest`"
        )
    return [path for (path,) in found]


def read_latest(folder: Path) -> str | None:
    """The name that `latest` holds, whatever it is; None where there is no such file."""
    pointer = folder / LATEST
    return pointer.read_text(encoding="utf-8", errors="replace").strip() if pointer.is_file() else None


def steps(folder: Path) -> list[int]:
    """Of the checkpoints in it, rising. A step's name is given to complete ones only."""
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal() and path.is_dir())


def find_latest(folder: Path) -> Path | None:
    """The checkpoint that `latest` names; without that file the newest there is.

    None where there is none. Raises ValueError if `latest` is broken.
    """
    tag = read_latest(folder)
    if tag is None:
        found = steps(folder) if folder.is_dir() else []
        return folder / str(found[-1]) if found else None
    if not tag.isdecimal() or not (folder / tag / TRAINING).is_file():
        raise ValueError(
            f"{folder / LATEST} names {tag!r}, which is not a checkpoint in {folder}: write the name of a complete one "
            f"into it (there are: {', '.join(map(str, steps(folder))) or 'none'}), or choose another --save to start "
            "anew"
        )
    return folder / tag
