"""The file with the weights behind a name: of a file, a training run's folder, or one of the checkpoints in it."""

from __future__ import annotations

from pathlib import Path

from sat_sr.checkpoint.run_folder import EMA_WEIGHTS, LATEST, MODEL_STATES, read_latest

WHERE_FROM = "ckpt/README.md tells where weights come from"


def find_weights(path: Path) -> tuple[Path, Path | None, list[str]]:
    """The file with the weights, the training run's folder if it is of one, and what to say about the choice.

    Raises FileNotFoundError or ValueError where there is none, or it is incomplete.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such checkpoint ({WHERE_FROM})")
    if path.is_file():
        grandparent = path.absolute().parent.parent
        in_run = path.name == MODEL_STATES and (grandparent / LATEST).is_file()
        return path, grandparent if in_run else None, []
    run, folder = path.parent, path
    if not (folder / MODEL_STATES).exists() and not (folder / EMA_WEIGHTS).exists():
        tag = read_latest(path)
        if tag is None:
            raise FileNotFoundError(
                f"{path} is a folder without the file {LATEST!r} and without {MODEL_STATES}: name a checkpoint file, a "
                "training folder (--save) or one of its tags"
            )
        if not tag or Path(tag).name != tag:
            raise ValueError(f"{path / LATEST} holds {tag[:40]!r}: it must hold the name of a folder beside it")
        run, folder = path, path / tag
        if not folder.is_dir():
            tags = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
            raise FileNotFoundError(
                f"{path / LATEST} names {tag!r}, which is not there: name one of {', '.join(tags) or '(none)'} itself"
            )
    if (folder / EMA_WEIGHTS).is_file():
        return folder / EMA_WEIGHTS, run, [f"of the folder {folder}, the averaged weights (EMA) were taken"]
    if (folder / MODEL_STATES.replace("00", "01", 1)).exists():
        raise ValueError(f"{folder} is split over model-parallel ranks: merge them with SAT first")
    if not (folder / MODEL_STATES).is_file():
        inside = ", ".join(sorted(entry.name for entry in folder.iterdir())[:3]) or "nothing"
        raise FileNotFoundError(f"{folder} has no {MODEL_STATES} (inside: {inside}): is the checkpoint complete?")
    return folder / MODEL_STATES, run, [f"of the folder {folder}, {MODEL_STATES} was taken: it has no {EMA_WEIGHTS}"]
