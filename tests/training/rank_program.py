"""One rank of the resume tests: trains the same tiny run in several ways and reports what came out, as JSON.

    RANK=… WORLD_SIZE=… python rank_program.py FOLDER FLAGS…

Every "process" of a run that is cut is a Trainer of its own, which knows nothing but the folder.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from sat_sr.training.arguments import parse_arguments
from sat_sr.training.ranks import find_ranks, start_process_group
from sat_sr.training.recipe import read_deepspeed_config, settle

FOLDER, FLAGS = Path(sys.argv[1]), sys.argv[2:]
RANKS = find_ranks()
start_process_group(RANKS, use_cuda=False, timeout_minutes=2)

from sat_sr.training import state  # noqa: E402  (after the process group, as in launch)
from sat_sr.training.trainer import EXIT_PREEMPTED, Trainer  # noqa: E402


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
            self.steps[-1]["samples"] = digest({**batch, "before": torch.tensor(self.step)})
            if self.step in self.damaged and self.rank == self.world_size - 1:
                batch["target"][0, 0, 0, 0] = math.inf
            return batch, keys

        self.batches.next = next_batch

    def train_step(self):
        self.steps.append({"keys": []})
        super().train_step()
        self.steps[-1] |= {"lr": self.engine.optimizer.param_groups[0]["lr"], "grad_norm": self.grad_norm}
        if self.step == self.stop_at and self.rank == self.world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)


def digest(tensors: dict[str, torch.Tensor]) -> str:
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(name.encode() + tensors[name].detach().contiguous().numpy().tobytes())
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
        assert code == (EXIT_PREEMPTED if stop else 0), code
        steps += trainer.steps
    return trainer, steps


def summary(trainer, steps):
    return {
        "weights": digest(weights(trainer)),
        "ema": digest(dict(state.gather_ema(trainer.engine))),
        "steps": steps,
    }


def compare_resumed(report):
    for name, *flags in (
        ("zero1",),
        ("zero2", "--zero-stage", "2"),
        ("muon", "--zero-stage", "0", "--optimizer", "muon"),
    ):
        if name == "zero1" or RANKS.world_size == 2:
            report[f"{name} whole"] = summary(*train(f"{name}-whole", *flags))
            report[f"{name} 3+3"] = summary(*train(f"{name}-3", *flags, stops=(3, None)))
    report["zero1 2+2+2"] = summary(*train("zero1-2", stops=(2, 4, None)))


def compare_engines(report):
    """What must not depend on the engine: the same samples give the same losses and averages, but for rounding."""
    results = {}
    for name, *flags in (
        ("stage 1",),
        ("stage 0", "--zero-stage", "0"),
        ("checkpointed", "--checkpoint-activations"),
        ("bf16", "--precision", "bf16"),
    ):
        trainer, steps = train(f"engine-{name}".replace(" ", ""), *flags)
        results[name] = trainer, dict(state.gather_ema(trainer.engine))
        report[f"{name} norms"] = [step["grad_norm"] for step in steps]
    for name, (_, averaged) in results.items():
        report[f"{name} distance"] = max((averaged[k] - v).abs().max().item() for k, v in results["stage 1"][1].items())
    report["moved"] = max(
        (weights(results["stage 1"][0])[k] - v).abs().max().item() for k, v in results["stage 1"][1].items()
    )


def follow_average(report):
    """The average that the engine keeps in slices, against the recursion over whole weights."""
    trainer = build("average", "--ema-decay", "0.3")
    averaged = {name: w.double() for name, w in weights(trainer).items()}
    for update in range(1, 5):
        trainer.train_step()
        decay = min(0.3, (1 + update) / (10 + update))
        averaged = {name: decay * averaged[name] + (1 - decay) * w for name, w in weights(trainer).items()}
    gathered = dict(state.gather_ema(trainer.engine))
    report["average error"] = max((gathered[name] - w).abs().max().item() for name, w in averaged.items())
    before = weights(trainer)
    with state.ema_weights(trainer.engine):
        inside = digest(weights(trainer))
    report["ema inside"], report["ema gathered"] = inside, digest(gathered)
    report["restored"] = digest(before) == digest(weights(trainer))


def skip_bad_steps(report):
    trainer = build("bad", damaged=(1,))
    trainer.train_step()
    before, ema = weights(trainer), digest(dict(state.gather_ema(trainer.engine)))
    trainer.train_step()
    report["bad step counted"] = trainer.bad_steps
    report["bad step changed"] = digest(before) != digest(weights(trainer)) or ema != digest(
        dict(state.gather_ema(trainer.engine))
    )
    trainer.train_step()
    report["good step resets"] = trainer.bad_steps
    report["good step changed"] = digest(before) != digest(weights(trainer))
    trainer = build("bad-end", "--max-bad-steps", "2", damaged=(1, 2, 3))
    try:
        trainer.run()
    except FloatingPointError as error:
        report["bad end"] = str(error)
        report["bad end keys"] = trainer.steps[-1]["keys"]


def refuse_other_ranks(report):
    folder = FOLDER / "other-ranks"
    shutil.copytree(FOLDER / "zero1-whole", folder)
    path = folder / "6" / "training.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"world_size": 4}))
    for key, extra in (("other ranks", ()), ("other model", ("--num-layers", "2"))):
        try:
            build("other-ranks", *extra)
        except ValueError as error:
            report[key] = str(error)


def main() -> None:
    report = {}
    compare_resumed(report)
    skip_bad_steps(report)
    follow_average(report)
    if RANKS.world_size == 1:
        compare_engines(report)
        refuse_other_ranks(report)
    (FOLDER / f"report{RANKS.rank}.json").write_text(json.dumps(report))
    dist.barrier()


main()
