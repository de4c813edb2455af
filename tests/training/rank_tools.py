"""What the programs of the rank tests share: a process group, and trainers that tell what they saw.

    RANK=… WORLD_SIZE=… python PROGRAM FOLDER FLAGS…

Every "process" of a run that is cut is a Trainer of its own, which knows nothing but the folder.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import sys
from pathlib import Path

import torch

from sat_sr.programs import exit_codes
from sat_sr.training.arguments import parse_arguments
from sat_sr.training.deepspeed_config import read_deepspeed_config
from sat_sr.training.ranks import find_ranks, start_process_group
from sat_sr.training.recipe import settle

FOLDER, FLAGS = Path(sys.argv[1]), sys.argv[2:]
RANKS = find_ranks()
start_process_group(RANKS, use_cuda=False, timeout_minutes=2)

from sat_sr.training import state  # noqa: E402  (after the process group, as in launch)
from sat_sr.training.trainer import Trainer  # noqa: E402


class Watched(Trainer):
    """Records what each step saw; gets a signal on the last rank after step `stop_at`; damages given steps' targets."""

    def __init__(self, settings, recipe, stop_at=None, damaged=()):
        super().__init__(settings, recipe, torch.device("cpu"))
        self.stop_at, self.damaged = stop_at, damaged
        self.steps = []
        draw = self.batches.next

        def next_batch():
            batch, keys = draw()
            self.steps[-1]["keys"] += keys
            self.steps[-1]["samples"] += digest(batch)
            if self.step in self.damaged and self.rank == self.world_size - 1:
                batch["target"][0, 0, 0, 0] = math.inf
            return batch, keys

        self.batches.next = next_batch

    def train_step(self):
        self.steps.append({"keys": [], "samples": ""})
        super().train_step()
        self.steps[-1] |= {"lr": self.engine.optimizer.param_groups[0]["lr"], "grad_norm": self.grad_norm}
        if self.step == self.stop_at and self.rank == self.world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)


def digest(tensors: dict[str, torch.Tensor]) -> str:
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(name.encode() + tensors[name].detach().double().numpy().tobytes())  # exact, and NumPy has no bf16
    return total.hexdigest()


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.engine.module.named_parameters()}


def build(name, *extra, **options):
    settings = parse_arguments([*FLAGS, "--save", str(FOLDER / name), *extra])
    recipe = settle(settings, read_deepspeed_config(settings.deepspeed_config), RANKS.world_size, use_cuda=False)
    return Watched(settings, recipe, **options)


def train(name, *extra, stops=(None,), **options):
    """Runs until each of `stops` in turn, by new trainers. Returns the last one and all steps."""
    steps = []
    for stop in stops:
        trainer = build(name, *extra, stop_at=stop, **options)
        code = trainer.run()
        assert code == (exit_codes.SAVED if stop else exit_codes.DONE), code
        steps += trainer.steps
    return trainer, steps


def summary(trainer, steps):
    return {
        "weights": digest(weights(trainer)),
        "ema": digest(dict(state.gather_ema(trainer.engine))),
        "steps": steps,
    }


def write(report: dict) -> None:
    """This rank's report, for the test to read."""
    (FOLDER / f"report{RANKS.rank}.json").write_text(json.dumps(report))
