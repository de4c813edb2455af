"""From parsed flags to a running trainer: device, process group, what to say first, and how to end."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import json
import logging
import math
import os
import signal
import sys
import traceback
import warnings
from pathlib import Path

import torch

from sat_sr.checkpoint import load
from sat_sr.checkpoint.run_folder import find_latest
from sat_sr.data.degradation import SMALLEST_SIDE
from sat_sr.data.degradation_law import parse_degradation
from sat_sr.data.shards import expand_shards
from sat_sr.data.workers import is_of_dead_worker, why_worker_died
from sat_sr.model.layout import mismatch, parameter_shapes
from sat_sr.programs import exit_codes
from sat_sr.programs.start import is_ours, missing
from sat_sr.training.deepspeed_config import read_deepspeed_config
from sat_sr.training.logs import say, warn
from sat_sr.training.memory import held_bytes
from sat_sr.training.preemption import Preemption
from sat_sr.training.ranks import Ranks, find_ranks, start_process_group, wait_for_all
from sat_sr.training.recipe import Recipe, settle

# In the errors of gloo, of the store where ranks meet, and of NCCL.
RANK_HAS_ENDED = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "ncclRemoteError")


def launch(settings: argparse.Namespace, preemption: Preemption) -> int:
    """Runs the training on this rank. Exit codes: 0 done, 1 error, 75 stopped by a signal and saved, 130 interrupted.

    Returns from a dry run only; else it ends the process: leaving NCCL or data workers in order can wait for ranks that
    wait for us, and a rank that lingers after the first has gone is killed by srun.
    """
    code = exit_codes.FAILED
    try:
        ranks = _with_own_gpu(find_ranks())
        use_cuda = _use_cuda(settings.device, ranks)
        values = read_deepspeed_config(settings.deepspeed_config)
        recipe = settle(settings, values, ranks.world_size, use_cuda)
        if "activation_checkpointing" in values:
            section = "activation_checkpointing in the DeepSpeed JSON"
            settings.notes.append(f"{section} decides nothing: --checkpoint-activations does")
        settings.notes += _resolve_model(settings)
        if ranks.rank == 0:  # the others would only say the same
            _check_data(settings)
            _introduce(settings, recipe, ranks, use_cuda)
            if settings.dry_run:
                _print_settings(settings, recipe)
        if settings.dry_run:
            return 0
        code = _train(settings, recipe, ranks, use_cuda, preemption)
    except Exception as error:
        if sentence := _sentence(error, settings):
            warn(f"error: {sentence}")
            if isinstance(error, ModuleNotFoundError):
                code = exit_codes.WRONG_USE
        else:
            warn(traceback.format_exc().rstrip())
    except KeyboardInterrupt:
        warn("interrupted: what came after the last checkpoint is lost (SIGTERM or SIGUSR1 would have saved first)")
        code = exit_codes.of_signal(signal.SIGINT)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


def _train(settings: argparse.Namespace, recipe: Recipe, ranks: Ranks, use_cuda: bool, preemption: Preemption) -> int:
    if settings.threads:
        torch.set_num_threads(settings.threads)
    logging.disable(logging.WARNING)  # what SAT and DeepSpeed say while they start concerns nobody
    warnings.filterwarnings("ignore", ".*torch.distributed.* is deprecated", FutureWarning)  # DeepSpeed's use of it
    start_process_group(ranks, use_cuda, settings.timeout)
    from sat_sr.training.trainer import Trainer

    device = torch.device("cuda", ranks.local_rank) if use_cuda else torch.device("cpu")
    trainer = Trainer(settings, recipe, device, preemption)
    logging.disable(logging.NOTSET)
    code = trainer.run()
    wait_for_all()  # all have saved and logged
    return code


def _sentence(error: Exception, settings: argparse.Namespace) -> str | None:
    """What is enough to know about an error that a user can cause and cure; None for a fault in the code."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):  # from any library; names no file
        return (
            f"{error.strerror}: {error.filename or settings.save}; the last complete checkpoint is intact: make room "
            "and run the same command again"
        )
    if is_of_dead_worker(error):
        return why_worker_died(error)
    if isinstance(error, RuntimeError) and any(sign in str(error) for sign in RANK_HAS_ENDED):
        return "another rank has ended: its message, or the launcher's, says why"
    if isinstance(error, torch.OutOfMemoryError):
        return _out_of_memory()
    if isinstance(error, ModuleNotFoundError) and not is_ours(error):
        return missing(error)
    if not isinstance(error, ValueError | OSError | FloatingPointError):
        return None
    *_, last = traceback.walk_tb(error.__traceback__)
    package = Path(__file__).parents[1]
    return str(error) if package in Path(last[0].f_code.co_filename).parents else None


def _out_of_memory() -> str:
    used = ""
    if torch.cuda.is_available():
        peak, total = torch.cuda.max_memory_allocated() / 2**30, torch.cuda.mem_get_info()[1] / 2**30
        used = f" ({peak:.1f} GiB were in use at the peak, the device has {total:.1f} GiB)"
    return (
        f"the memory of the GPU ran out{used}: --micro-batch-size 1, with --gradient-accumulation-steps for the same "
        "batch; --checkpoint-activations; --zero-stage 2; or more ranks, which share the optimizer's state"
    )


def _resolve_model(settings: argparse.Namespace) -> list[str]:
    """Sets `settings.model` from --load where no flag says anything about sizes; else checks that both agree.

    A run that resumes needs no --load: it is set to None, and the file may be gone.
    Returns what the user should know. Raises ValueError when the weights do not fit the flags.
    """
    if not settings.load:
        return []
    folder = Path(settings.save or "", settings.experiment_name or "")
    if settings.save and (checkpoint := find_latest(folder)):
        note = f"--load {settings.load} is not read: {folder} resumes from its last checkpoint"
        settings.load = None
        if settings.model is None:
            settings.model = load(checkpoint).config
        return [note]
    checkpoint = load(settings.load)
    notes = checkpoint.report()
    if settings.model is None:
        settings.model = checkpoint.config
        return notes
    shapes = {name: tuple(tensor.shape) for name, tensor in checkpoint.tensors.items()}
    if problem := mismatch(shapes, parameter_shapes(settings.model)):
        raise ValueError(
            f"--load {settings.load} does not fit the model of the flags ({problem}): omit --preset and the size "
            "flags; the file then decides"
        )
    if checkpoint.config.image_size != settings.model.image_size:
        notes.append(
            f"--image-size {settings.model.image_size}, the weights are of {checkpoint.config.image_size}: positions "
            f"will repeat after {8 * settings.model.image_size} pixels instead"
        )
    return notes


def _with_own_gpu(ranks: Ranks) -> Ranks:
    """Where Slurm shows each task one GPU only, that is number 0 to every task."""
    if ranks.source == "Slurm" and torch.cuda.device_count() == 1:
        return dataclasses.replace(ranks, local_rank=0)
    return ranks


def _use_cuda(device: str, ranks: Ranks) -> bool:
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return False
    if not torch.cuda.is_available():
        raise ValueError("--device cuda: PyTorch sees no CUDA device here; use --device cpu")
    if ranks.local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"local rank {ranks.local_rank} has no GPU of its own, this host has {torch.cuda.device_count()}: start as "
            "many ranks per host as it has GPUs"
        )
    return True


def _check_data(settings: argparse.Namespace) -> None:
    """Before anything slow happens. Raises ValueError for shards that are not there and crops that cannot be."""
    for spec in (settings.train_data, settings.valid_data):
        if spec:
            expand_shards(spec)
    mixture, side = parse_degradation(settings.degradation), settings.model.image_size
    if side < SMALLEST_SIDE and any(config.stages for _, config in mixture):
        raise ValueError(
            f"--image-size {side} with --degradation {settings.degradation}: crops of at least {SMALLEST_SIDE} pixels "
            "are wanted; smaller ones can only be degraded clean"
        )
    if side % settings.model.image_block_size:
        raise ValueError(
            f"--image-size {side}: crops must be whole blocks, a multiple of --image-block-size "
            f"{settings.model.image_block_size}"
        )


def _introduce(settings: argparse.Namespace, recipe: Recipe, ranks: Ranks, use_cuda: bool) -> None:
    """What will run, in a few lines."""
    for note in settings.notes:
        say(note)
    if recipe.precision == "fp32" and recipe.asked_bf16:
        say("the DeepSpeed JSON enables bf16, the CPU is faster in fp32: fp32 is used; --precision bf16 insists")
    say(
        f"{ranks.world_size} rank(s) from {ranks.source}, {'CUDA' if use_cuda else 'CPU'}, {recipe.precision}, ZeRO "
        f"stage {recipe.zero_stage} | model of {_count_parameters(settings):,} parameters"
    )
    rates = f"{settings.optimizer} lr {recipe.lr:g}"
    if settings.optimizer == "muon":
        rates = f"muon lr {settings.muon_lr:g} for matrices, adamw lr {recipe.lr:g} for the rest"
    say(
        f"batch {recipe.batch} = {recipe.micro_batch} x {recipe.accumulation} accumulation x {ranks.world_size} rank(s)"
        f" | {rates}, weight decay {recipe.weight_decay:g}, clipping {recipe.clip_grad:g}"
        f" | {settings.train_iters} steps"
    )


def _print_settings(settings: argparse.Namespace, recipe: Recipe) -> None:
    """For --dry-run: how much memory is needed at least, and all that was settled, as JSON."""
    gib = held_bytes(parameter_shapes(settings.model), recipe, settings.optimizer) / 2**30
    say(f"weights, gradients and optimizer state take {gib:.2f} GiB per rank; activations come on top")
    shown = {name: value for name, value in vars(settings).items() if name not in ("notes", "model")}
    print(json.dumps({"model": settings.model.to_dict(), **shown, "deepspeed": recipe.engine}, indent=2))


def _count_parameters(settings: argparse.Namespace) -> int:
    return sum(math.prod(shape) for shape in parameter_shapes(settings.model).values())
