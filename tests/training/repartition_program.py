"""One rank of the tests of other numbers of ranks: trains, or takes up what more or fewer ranks saved; reports as JSON.

RANK=… WORLD_SIZE=… python repartition_program.py FOLDER FLAGS…

The folder says by what is in it what is to be done: nothing of a run, and the run is trained; else it is gone on with.
"""

from __future__ import annotations

import json
import os
import shutil

import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from rank_tools import FOLDER, RANKS, build, summary, train, weights, write

from sat_sr.training import state

ENGINES = {
    "zero1": [],
    "zero2": ["--zero-stage", "2"],
    "bf16": ["--precision", "bf16"],
    "accumulated": ["--precision", "bf16", "--deepspeed-config", str(FOLDER / "accumulated.json")],
    "stage0": ["--zero-stage", "0"],
    "muon": ["--zero-stage", "0", "--optimizer", "muon"],
}
CONVERTED = ("zero1", "zero2", "bf16")  # whose files DeepSpeed's converter reads


def whole_state(engine):
    """{name: {state: tensor}}, whole on every rank: by DeepSpeed's own exchange, or as it is where there is no ZeRO."""
    found = {}
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        if engine.zero_optimization():
            keys = ("exp_avg", "exp_avg_sq", "ema")
            found[name] = {key: safe_get_full_optimizer_state(parameter, key) for key in keys}
            found[name]["weights"] = safe_get_full_fp32_param(parameter)
        else:
            found[name] = {k: v for k, v in engine.optimizer.state[parameter].items() if torch.is_tensor(v)}
            found[name]["weights"] = parameter.detach()
    # A slice that begins with a zero is +0 or -0 by which rank adds it to nothing.
    return {name: {key: tensor + 0.0 for key, tensor in states.items()} for name, states in found.items()}


def updates(engine):
    """How many updates the optimizer has counted."""
    optimizer = engine.optimizer.optimizer if engine.zero_optimization() else engine.optimizer
    return sorted({int(entry["step"]) for entry in optimizer.state.values() if "step" in entry})


def begin(report, name, flags):
    """Six steps in one go; and three, whose state is kept for the test to carry to other ranks."""
    report[f"{name} whole"] = summary(*train(f"{name}-whole", *flags))
    trainer, _ = train(name, *flags, stops=(3,))
    report[f"{name} updates"] = updates(trainer.engine)
    report[f"{name} passes"] = passes(trainer)
    kept = whole_state(trainer.engine)
    if RANKS.rank == 0:
        torch.save(kept, FOLDER / f"{name}.pt")
        folder = FOLDER / name
        if name in CONVERTED:
            torch.save(get_fp32_state_dict_from_zero_checkpoint(str(folder), "3"), FOLDER / f"{name}-converted.pt")


def passes(trainer):
    return [address[0] for address in trainer.batches.position()["stream"]["addresses"]]


def resume(report, name, flags):
    trainer = build(name, *flags)
    there = torch.load(FOLDER / f"{name}.pt")
    here = whole_state(trainer.engine)
    report[f"{name} differs"] = [
        f"{parameter} {key}"
        for parameter, states in there.items()
        for key, tensor in states.items()
        if not torch.equal(here[parameter][key], tensor)
    ]
    report[f"{name} compared"] = len(there), here.keys() == there.keys()
    converted = FOLDER / f"{name}-converted.pt"
    if converted.exists():
        report[f"{name} converted"] = all(
            torch.equal(here[parameter]["weights"].reshape(-1), tensor.reshape(-1) + 0.0)
            for parameter, tensor in torch.load(converted).items()
            if parameter in here
        )
    module = weights(trainer)
    report[f"{name} network"] = all(
        torch.equal(module[parameter], states["weights"].to(module[parameter].dtype))
        for parameter, states in there.items()
    )
    report[f"{name} updates"] = updates(trainer.engine)
    report[f"{name} passes"] = passes(trainer)
    report[f"{name} counts"] = dict(trainer.batches.counts)
    trainer._save()  # the same state as these ranks have it, in place of what the others saved
    dist.barrier()
    if RANKS.rank == 0:
        shutil.copytree(FOLDER / name, FOLDER / f"{name}-back")
    dist.barrier()
    trainer.run()
    report[f"{name} steps"] = trainer.steps
    lines = (FOLDER / name / "log.jsonl").read_text().splitlines()
    report[f"{name} logged"] = [record["step"] for record in map(json.loads, lines) if record["kind"] == "train"]


def come_back(report, name, flags):
    """On as many ranks as at first, with the positions of the data of then."""
    trainer = build(name, *flags)
    trainer.batches.resume(state.data_positions(FOLDER / "positions" / name / "3", 2))
    trainer.run()
    report[f"{name} back"] = summary(trainer, trainer.steps)


def main() -> None:
    report = {}
    for name, flags in ENGINES.items():
        if not (FOLDER / name).exists():
            begin(report, name, flags)
        elif (FOLDER / "positions").exists():
            come_back(report, name, flags)
        else:
            resume(report, name, flags)
    write(report)
    dist.barrier()
    os._exit(0)


main()
