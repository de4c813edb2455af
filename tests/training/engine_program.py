"""One rank of the engine tests: what the trainer computes, saves and tells, for the test to compare, as JSON.

RANK=… WORLD_SIZE=… python engine_program.py FOLDER FLAGS…
"""

from __future__ import annotations

import contextlib
import gc
import io
import itertools
import json
import os
import shutil
import struct
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from rank_tools import FLAGS, FOLDER, RANKS, build, digest, summary, train, weights, write
from tensorboardX.proto.event_pb2 import Event

from sat_sr.checkpoint import run_folder
from sat_sr.checkpoint.run_folder import find_latest
from sat_sr.diffusion.edm import edm_loss
from sat_sr.model.inf_dit import InfDiT
from sat_sr.model.layout import parameter_shapes
from sat_sr.training import state
from sat_sr.training import trainer as trainer_module
from sat_sr.training.memory import held_bytes

# What the plain loop below knows by itself: the flags of its run, and what they mean.
RECIPE = ["--lr=0.001", "--weight-decay=0.1", "--clip-grad=0.1", "--ema-decay=0.5", "--warmup=0.5", "--random-position"]
LEARNING_RATES = [0.001 * share for share in (1 / 3, 2 / 3, 1, 1, 2 / 3, 1 / 3)]  # of the 6 steps


def follow_by_plain_pytorch(report, name, *flags):
    """The same samples and noise through a loop of PyTorch's own parts, one sample at a time, without an engine."""
    seen = []

    def recorded(engine, **inputs):
        seen.append({key: value for key, value in inputs.items() if key != "norm"})
        return edm_loss(engine, **inputs)

    trainer_module.edm_loss = recorded
    try:
        trainer = build(f"plain-{name}", *RECIPE, *flags)
        before = weights(trainer)
        model = InfDiT(trainer.settings.model)
        model.load_state_dict(trainer.engine.module.state_dict())
        trainer.run()
    finally:
        trainer_module.edm_loss = edm_loss
    of_ranks = [None] * RANKS.world_size
    dist.all_gather_object(of_ranks, seen)

    trained = [p for n, p in model.named_parameters() if "position_embeddings." not in n and ".k_layer_norm." not in n]
    matrices, vectors = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        betas=(0.9, 0.999), eps=1e-8, foreach=False,
    )  # fmt: skip
    averages = {n: p.detach().double() for n, p in model.named_parameters()}
    norms, losses = [], []
    for step, rate in enumerate(LEARNING_RATES):
        micro_batches = [batch for batches in of_ranks for batch in batches[2 * step : 2 * step + 2]]
        samples = [(batch, at) for batch in micro_batches for at in range(len(batch["sigma"]))]
        assert len(samples) == 4 * RANKS.world_size
        loss = 0.0
        for batch, at in samples:
            one = {k: v if k == "position_offset" else v[at : at + 1] for k, v in batch.items()}
            share = edm_loss(model, **one).mean() / len(samples)
            share.backward()
            loss += share.item()
        losses.append(loss)
        norms.append(torch.nn.utils.clip_grad_norm_(trained, 0.1).item())
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        decay = min(0.5, (2 + step) / (11 + step))  # of update 1, 2, …
        averages = {n: decay * averages[n] + (1 - decay) * p.detach() for n, p in model.named_parameters()}

    plain, averaged = dict(model.named_parameters()), dict(state.gather_ema(trainer.engine))
    report[f"plain {name}"] = {
        "moved": max((plain[n] - w).abs().max().item() for n, w in before.items()),
        "weights": max((plain[n] - w).abs().max().item() for n, w in weights(trainer).items()),
        "average": max((averages[n] - w).abs().max().item() for n, w in averaged.items()),
        "norms": norms,
        "engine's norms": [step["grad_norm"] for step in trainer.steps],
        "losses": losses,
    }
    if RANKS.rank == 0:
        lines = (FOLDER / f"plain-{name}" / "log.jsonl").read_text().splitlines()
        report[f"plain {name}"]["engine's losses"] = [json.loads(line)["loss"] for line in lines]


class Crash(BaseException):
    """As final as a power cut: nothing in the project catches it."""


class Crashes:
    """After `arm`, that many changes to a folder's files still happen; the next, and all after it, do not."""

    CHANGES = ("open", "torch.save", "os.rename", "os.remove", "os.rmdir", "os.mkdir")

    def __init__(self):
        self.left = None
        self.folder = ""
        sys.addaudithook(self._hear)
        save = torch.save  # writes from C++, of which Python hears nothing

        def audited(content, path, *arguments, **options):
            sys.audit("torch.save", str(path))
            return save(content, path, *arguments, **options)

        torch.save = audited

    def arm(self, folder, operations):
        self.folder, self.left = str(folder), operations

    def disarm(self):
        self.left = None

    def _hear(self, event, arguments):
        if self.left is None or event not in self.CHANGES:
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        # rmtree names what it removes by its name inside the folder that it has open.
        if not str(arguments[0]).startswith(self.folder) and event not in ("os.remove", "os.rmdir"):
            return
        if self.left <= 0:
            raise Crash
        self.left -= 1


def names(folder):
    """Of all but logs and the tools that DeepSpeed leaves there."""
    return sorted(path.name for path in folder.iterdir() if path.suffix not in (".jsonl", ".py"))


def crash_between_any_two_steps(report):
    flags = ["--save-interval", "2", "--keep-last", "1"]
    trainer = build("crash", *flags)
    known = {}
    for step in (2, 4):
        trainer.train_step()
        trainer.train_step()
        known[step] = [digest(weights(trainer)), digest(dict(state.gather_ema(trainer.engine)))]
        if step == 2:
            trainer._save()
    template = trainer.folder
    crashes = Crashes()
    report["crashes"] = []
    for operations in itertools.count():
        name = f"crash-{operations}"
        trainer.folder = Path(shutil.copytree(template, FOLDER / name))
        crashes.arm(trainer.folder, operations)
        try:
            trainer._save()
            crashed = False
        except Crash:
            crashed = True
        finally:
            crashes.disarm()
        left = names(trainer.folder)
        latest = find_latest(trainer.folder).name
        resumed = build(name, *flags)
        found = [digest(weights(resumed)), digest(dict(state.gather_ema(resumed.engine)))]
        resumed.step = 6
        resumed._save()
        report["crashes"].append(
            {
                "crashed": crashed,
                "left": left,
                "latest": latest,
                "resumed": next((step for step, digests in known.items() if digests == found), None),
                "position": resumed.batches.position() == trainer.batches.position(),
                "cleaned": names(resumed.folder),
            }
        )
        shutil.rmtree(trainer.folder)
        if not crashed:
            return


def resume_with(report, name, *flags):
    """As the uninterrupted run, with other ways to make the batches."""
    report[f"{name} whole"] = summary(*train(f"{name}-whole", *flags))
    report[f"{name} 3+3"] = summary(*train(f"{name}-3", *flags, stops=(3, None)))


def tell(report):
    """Everything that a run says, stopped and resumed, on a shard with two pictures to remark on."""
    shard = FOLDER / "mixed.tar"
    rng = np.random.default_rng(0)
    with tarfile.open(shard, "w") as tar:
        for name, shape in (("a", (40, 48, 3)), ("b", (48, 40, 3)), ("grey", (40, 40)), ("small", (31, 40, 3))):
            data = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(data, format="PNG")
            member = tarfile.TarInfo(f"{name}.png")
            member.size = data.tell()
            data.seek(0)
            tar.addfile(member, data)
    flags = ["--train-data", str(shard), "--valid-data", str(shard), "--log-interval", "2", "--eval-interval", "3"]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        train("told", *flags, stops=(4, None))
    folder = FOLDER / "told"
    report["said"] = said.getvalue().splitlines()
    report["records"] = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    report["events"] = [read_events(path) for path in sorted((folder / "tensorboard").iterdir())]
    report["pictures"] = sorted(path.name for path in (folder / "pictures").iterdir())
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        build("told", *flags, "--p-mean=0.5", "--micro-batch-size=1")
    report["changed"] = said.getvalue()
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        build("told", *flags, "--eval-iters=2")
    report["more validation"] = said.getvalue()
    with contextlib.redirect_stdout(said):
        build("told", *flags, "--num-workers=2")
    report["few shards"] = said.getvalue()


def tell_of_other_shards(report):
    """The flags are the same: a folder, to which a shard is added between two starts."""
    folder = FOLDER / "growing"
    folder.mkdir()
    shutil.copy(FOLDER / "mixed.tar", folder / "0.tar")
    train("grown", "--train-data", f";{folder}", stops=(2,))
    said = []
    for shard in ("0.tar", "1.tar"):
        shutil.copy(FOLDER / "mixed.tar", folder / shard)
        with contextlib.redirect_stdout(io.StringIO()) as out:
            build("grown", "--train-data", f";{folder}")
        said.append(out.getvalue())
    report["other shards"] = said


def differ_between_ranks(report):
    """As with `srun … --seed $RANDOM`, which each rank draws; and with data that not all nodes have."""
    trainer, said = None, io.StringIO()
    with contextlib.redirect_stdout(said):
        trainer = build("seeds", f"--seed={17 + RANKS.rank}", "--train-iters=5")
        trainer.run()
        build("seeds", f"--seed={19 + RANKS.rank}")
    report["seed"], report["keys"] = trainer.seed, [key for step in trainer.steps for key in step["keys"]]
    report["seeds told"] = [line.partition(" ")[2] for line in said.getvalue().splitlines() if "seed " in line]
    shards = FLAGS[FLAGS.index("--train-data") + 1]
    own = shards.replace("{0000..0001}", f"000{RANKS.rank}")
    for name in ("--train-data", "--valid-data"):
        try:
            build("shards", name, own)
        except ValueError as error:
            report[f"other {name}"] = str(error)
    # Copies on disks of the nodes' own.
    disk = FOLDER / f"disk of node {RANKS.rank}"
    disk.mkdir()
    copies = [shutil.copy(path, disk) for path in sorted(Path(shards).parent.glob("*.tar"))]
    disks = ["--train-data", f";{disk}", "--valid-data", f";{disk}", "--seed=17", "--train-iters=5"]
    trainer, _ = train("own disks", *disks)
    report["keys of own disks"] = [key for step in trainer.steps for key in step["keys"]]
    if RANKS.rank:
        os.truncate(copies[1], 5000)
    try:
        build("own disks", *disks)
    except ValueError as error:
        report["cut copy"] = str(error)


def see_an_older_checkpoint(report):
    """The last rank does, as NFS may show it."""
    train("seen", "--train-iters=2", "--save-interval=1")
    read_latest = run_folder.read_latest
    if RANKS.rank == RANKS.world_size - 1:
        run_folder.read_latest = lambda folder: "1"
    try:
        report["resumed at"] = build("seen", "--train-iters=2").step
    finally:
        run_folder.read_latest = read_latest


def log_means(report):
    """Losses of six steps logged one by one, and at the end of all, through checkpoints and slow validations."""
    shards = FLAGS[FLAGS.index("--train-data") + 1]
    validate = trainer_module.validate

    def slow(*arguments, **options):
        time.sleep(1)
        return validate(*arguments, **options)

    trainer_module.validate = slow
    try:
        train("each")
        start = time.perf_counter()
        train("mean", "--log-interval=6", "--save-interval=2", "--eval-interval=2", "--valid-data", shards)
    finally:
        trainer_module.validate = validate
    report["seconds with two validations"] = time.perf_counter() - start
    for name in ("each", "mean"):
        records = map(json.loads, (FOLDER / name / "log.jsonl").read_text().splitlines())
        report[f"logged {name}"] = [record for record in records if record["kind"] == "train"]


def stop_around_validation(report):
    """Every second step validates: what is left where that fails, where a signal comes before it, and while it runs."""
    shards = FLAGS[FLAGS.index("--train-data") + 1]
    flags = ["--valid-data", shards, "--eval-interval=2"]
    validate = trainer_module.validate
    calls = []

    def failing(*arguments, **options):
        raise ZeroDivisionError

    def counted(*arguments, **options):
        calls.append(1)
        return validate(*arguments, **options)

    def hit_by_a_signal(*arguments, **options):
        if RANKS.rank == RANKS.world_size - 1:
            interrupted.preemption.asked = True
        return validate(*arguments, **options)

    try:
        trainer_module.validate = failing
        try:
            build("fails", *flags, "--save-interval=2").run()
        except ZeroDivisionError:
            report["validation failed"] = find_latest(FOLDER / "fails").name
        trainer_module.validate = counted
        train("before", *flags, stops=(2,))
        report["signal before"] = [find_latest(FOLDER / "before").name, len(calls)]
        trainer_module.validate = hit_by_a_signal
        report["signal during"] = []
        for name, extra in (("during", []), ("during-saved", ["--save-interval=2"])):
            interrupted = build(name, *flags, *extra)
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                code = interrupted.run()
            lines = said.getvalue().splitlines() if RANKS.rank == 0 else []
            told = [line.partition(" ")[2].partition(" in ")[0] for line in lines if "samples/s" not in line]
            report["signal during"].append([code, find_latest(FOLDER / name).name, told])
        interrupted = build("last", "--valid-data", shards)  # --eval-interval is far beyond it
        report["signal at the end"] = [interrupted.run(), find_latest(FOLDER / "last").name]
    finally:
        trainer_module.validate = validate
    uncut, _ = train("uncut", *flags)
    report["uncut"] = digest(weights(uncut))
    report["made up for"] = {}
    for name, options in (("fails", flags), ("before", flags), ("during", flags), ("last", ["--valid-data", shards])):
        again, _ = train(name, *options)
        report["made up for"][name] = [validated(name), digest(weights(again))]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        train("last", "--valid-data", shards)
    report["once more"] = [validated("last"), said.getvalue()]


def validated(name):
    """The steps of the validations in the log."""
    dist.barrier()  # rank 0 writes it
    records = map(json.loads, (FOLDER / name / "log.jsonl").read_text().splitlines())
    return [record["step"] for record in records if record["kind"] == "valid"]


def read_events(path):
    """TensorBoard's file as [kind or tag, step, value]; a record is its length, a checksum, itself, a checksum."""
    data, at, events = path.read_bytes(), 0, []
    while at < len(data):
        (length,) = struct.unpack("<Q", data[at : at + 8])
        event = Event.FromString(data[at + 12 : at + 12 + length])
        at += 16 + length
        if event.HasField("session_log"):
            events.append(["start", event.step, None])
        for value in event.summary.value:
            size = [value.image.height, value.image.width]
            events.append([value.tag, event.step, size if value.HasField("image") else value.simple_value])
    return events


def measure_memory(report):
    """What all tensors of a trainer take at each step of the engine, against what a dry run says."""
    sizes = ["--num-layers=2", "--hidden-size=192", "--num-attention-heads=6"]
    sums = FOLDER / "float32_sums.json"
    sums.write_text('{"data_types": {"grad_accum_dtype": "fp32"}}')
    variants = {
        "stage 0": ["--zero-stage=0"],
        "muon": ["--zero-stage=0", "--optimizer=muon"],
        "stage 1": ["--zero-stage=1"],
        "stage 1, once": ["--zero-stage=1", "--gradient-accumulation-steps=1"],
        "stage 2": ["--zero-stage=2"],
        "bf16": ["--zero-stage=1", "--precision=bf16"],
        "bf16, float32 sums, stage 2": ["--zero-stage=2", "--precision=bf16", f"--deepspeed-config={sums}"],
        # Last, as its memory is not given back at once.
        "bf16, float32 sums": ["--zero-stage=1", "--precision=bf16", f"--deepspeed-config={sums}"],
    }
    update, report["memory"] = trainer_module.update, {}
    for name, flags in variants.items():
        before, found = bytes_of_tensors(), []

        def measured(engine, recipe, before=before, found=found):
            found.append(bytes_of_tensors() - before)
            return update(engine, recipe)

        trainer_module.update = measured
        trainer = build(f"memory {name}", *sizes, *flags)
        trainer.train_step()
        trainer.train_step()  # some engines make their states in the first
        trainer_module.update = update
        told = held_bytes(parameter_shapes(trainer.settings.model), trainer.recipe, trainer.settings.optimizer)
        report["memory"][name] = [max(found), told]
        del trainer


def bytes_of_tensors():
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter)]
    tensors += [
        tensor.grad for tensor in tensors if tensor.is_leaf and tensor.grad is not None
    ]  # C++ may hold it alone
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def main() -> None:
    report = {}
    follow_by_plain_pytorch(report, "zero1")
    follow_by_plain_pytorch(report, "stage0", "--zero-stage=0")
    stop_around_validation(report)
    measure_memory(report)
    if RANKS.world_size == 2:
        differ_between_ranks(report)
        see_an_older_checkpoint(report)
    if RANKS.world_size == 1:
        resume_with(report, "workers", "--num-workers=2", "--augment=full", "--lr-dropout=0.5", "--cache-mb=1")
        resume_with(report, "device", "--degrade-on-device", "--lr-dropout=0.5")
        tell(report)
        tell_of_other_shards(report)
        log_means(report)
        crash_between_any_two_steps(report)
    write(report)
    dist.barrier()
    os._exit(0)


main()
