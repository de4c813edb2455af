"""Checkpoints of a run: saved whole or not at all, and resumed exactly. What lies where: `checkpoint.run_folder`.

A checkpoint is written under a temporary name, renamed when all ranks are done, and only then named in `latest`; so
whatever step a crash comes between, `latest` names a complete one. Learning rate and random numbers need no saving:
both are functions of the seed, the rank and the step.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from deepspeed.utils import safe_get_full_optimizer_state

from sat_sr.atomic_files import write_durably
from sat_sr.checkpoint import FORMAT
from sat_sr.checkpoint.run_folder import (
    EMA_WEIGHTS,
    MODEL_STATES,
    TRAINING,
    data_position,
    find_latest,
    optimizer_states,
)
from sat_sr.checkpoint.tensor_files import check_values
from sat_sr.data.pipeline import STREAM_STATE
from sat_sr.training.checkpoint_names import TEMPORARY, publish, remove_old, remove_temporary
from sat_sr.training.engine import link_optimizer_state
from sat_sr.training.ranks import wait_for_all
from sat_sr.training.repartition import load_repartitioned

WriteEMA = Callable[[Path, dict[str, torch.Tensor]], None]


def save(
    engine: DeepSpeedEngine,
    folder: Path,
    step: int,
    training: dict,
    position: dict,
    write_ema: WriteEMA,
    keep_last: int,
) -> None:
    """Writes checkpoint `step`; called by all ranks together.

    training   what training.json holds, JSON values
    position   of this rank in its data, JSON values
    write_ema  called with (path, named tensors) to write the averaged weights; by rank 0 only
    keep_last  how many checkpoints stay, 0: all
    Raises OSError when it cannot be written. Whatever fails, the one before is untouched and named by `latest`.
    """
    try:
        _save(engine, folder, step, training, position, write_ema)
    except (OSError, RuntimeError) as error:
        if not _could_not_write(error):
            raise
        if dist.get_rank() == 0:
            shutil.rmtree(folder / f"{TEMPORARY}{step}", ignore_errors=True)  # half a checkpoint only takes up room
        previous = find_latest(folder)
        raise OSError(
            f"checkpoint {step} could not be written to {folder} ({str(error).splitlines()[0]}; "
            f"{shutil.disk_usage(folder).free / 2**30:.1f} GiB are free there): "
            + (f"{previous.name}, the one before, is intact" if previous else "there is none before")
        ) from error
    if dist.get_rank() == 0:
        remove_old(folder, keep_last)
    wait_for_all()


def _save(
    engine: DeepSpeedEngine, folder: Path, step: int, training: dict, position: dict, write_ema: WriteEMA
) -> None:
    config = engine.module.config
    rank = dist.get_rank()
    temporary = folder / f"{TEMPORARY}{step}"
    if rank == 0:
        remove_temporary(folder)
    wait_for_all()
    about = {FORMAT: {"config": config.to_dict()}}  # beside the weights, as in every .pt of this project
    engine.save_checkpoint(str(folder), tag=temporary.name, client_state=about, save_latest=False)
    write_durably(temporary / data_position(rank), json.dumps(position))
    averaged = gather_ema(engine)
    if rank == 0:
        write_ema(temporary / EMA_WEIGHTS, {name: tensor.cpu() for name, tensor in averaged})
        write_durably(temporary / TRAINING, json.dumps(training, indent=2) + "\n")
    else:
        for _ in averaged:  # takes part in the exchange
            pass
    wait_for_all()
    if rank == 0:
        publish(folder, temporary, step)


def load(engine: DeepSpeedEngine, checkpoint: Path, ranks: int) -> None:
    """Restores the engine (weights, moments, EMA) from what `ranks` ranks saved. Called by all ranks together."""
    # The hyperparameters stay those of this command line, not those saved with the optimizer.
    hyperparameters = [{k: v for k, v in group.items() if k != "params"} for group in engine.optimizer.param_groups]
    if engine.zero_optimization() and ranks != dist.get_world_size():
        load_repartitioned(engine, checkpoint, ranks)
    else:
        engine.load_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
    for group, values in zip(engine.optimizer.param_groups, hyperparameters, strict=True):
        group.update(values)
    if engine.zero_optimization():
        engine.optimizer.clip_grad = engine.gradient_clipping()


def require_whole(checkpoint: Path, ranks: int, partitioned: bool) -> None:
    """Before anything slow: the files that `load` will read are there, and what their checksums say.

    Each rank looks at its share of them. Raises ValueError, on that rank, which names the one that is not.
    """
    paths = [checkpoint / MODEL_STATES, *(optimizer_states(checkpoint, ranks) if partitioned else ())]
    for path in paths[dist.get_rank() :: dist.get_world_size()]:
        if not zipfile.is_zipfile(path):  # what PyTorch writes is one, with its table of contents at the end
            raise _damaged(path, "cut short" if path.exists() else "not there")
        try:
            check_values(path)
        except ValueError as error:
            raise ValueError(f"{error}; or write the name of an earlier checkpoint into `latest`") from error


def data_positions(checkpoint: Path, ranks: int) -> list[dict]:
    """Where each of the `ranks` ranks that saved it stood in its data. Raises ValueError as `read_training`."""
    paths = [checkpoint / data_position(rank) for rank in range(ranks)]
    positions = [_read_json(path, "batches", "stream") for path in paths]
    for path, position in zip(paths, positions, strict=True):
        if not isinstance(position["stream"], dict) or not position["stream"].keys() >= STREAM_STATE:
            raise _damaged(path, f"its stream must have {', '.join(sorted(STREAM_STATE))}")
    return positions


def read_training(checkpoint: Path) -> dict:
    """training.json of a checkpoint. Raises ValueError where it is damaged or missing, with what to do."""
    return _read_json(checkpoint / TRAINING, "step", "seed", "world_size")


def _read_json(path: Path, *keys: str) -> dict:
    """An object that has these keys."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _damaged(path, error.strerror) from error
    except ValueError as error:  # no JSON, or no UTF-8
        raise _damaged(path, str(error)) from error
    if not isinstance(values, dict) or not values.keys() >= set(keys):
        raise _damaged(path, f"it must hold an object with {', '.join(keys)}")
    return values


def _damaged(path: Path, what: str) -> ValueError:
    return ValueError(
        f"{path} is damaged or missing ({what}): write the name of an earlier checkpoint into `latest` of "
        f"{path.parents[1]}"
    )


@torch.no_grad()
def gather_ema(engine: DeepSpeedEngine) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, averaged weights) of every parameter, whole, float32; what is not trained is given as it is.

    All ranks iterate together: with ZeRO each holds a slice of every average.
    """
    partitioned = engine.zero_optimization()
    if partitioned:
        link_optimizer_state(engine)
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            yield name, parameter.detach().float()
        elif partitioned:
            yield name, safe_get_full_optimizer_state(parameter, "ema")
        else:
            yield name, engine.optimizer.state[parameter]["ema"]


@contextlib.contextmanager
def ema_weights(engine: DeepSpeedEngine) -> Iterator[None]:
    """Inside, the network has the averaged weights; afterwards exactly those that it had."""
    trained = [parameter.detach().clone() for parameter in engine.module.parameters()]
    try:
        with torch.no_grad():
            for (_, averaged), parameter in zip(gather_ema(engine), engine.module.parameters(), strict=True):
                parameter.copy_(averaged)
        yield
    finally:
        with torch.no_grad():
            for before, parameter in zip(trained, engine.module.parameters(), strict=True):
                parameter.copy_(before)


def _could_not_write(error: Exception) -> bool:
    """PyTorch's writer, in C++, has a RuntimeError for a full disk; others have nothing to do with the disk."""
    return isinstance(error, OSError) or any(sign in str(error) for sign in ("PytorchStreamWriter", "inline_container"))
