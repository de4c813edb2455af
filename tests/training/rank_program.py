"""One rank of the resume tests: trains the same tiny run in several ways and reports what came out, as JSON.

RANK=… WORLD_SIZE=… python rank_program.py FOLDER FLAGS…
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
import time
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.distributed as dist
from PIL import Image
from rank_tools import FLAGS, FOLDER, RANKS, build, digest, summary, train, weights, write

from sat_sr.checkpoint import load, load_model, save_safetensors
from sat_sr.checkpoint.run_folder import find_latest, steps
from sat_sr.diffusion.edm import edm_loss
from sat_sr.training import state
from sat_sr.training import trainer as trainer_module
from sat_sr.training.arguments import parse_arguments
from sat_sr.training.launch import launch
from sat_sr.training.noise import mix_seed
from sat_sr.training.preemption import Preemption
from sat_sr.training.validation import SIGMAS

GOLDEN_CLIP = Path(__file__).parents[1] / "golden" / "clip_image_encoder.safetensors"


def compare_resumed(report):
    report["zero1 2+2+2"] = summary(*train("zero1-2", stops=(2, 4, None)))
    variants = {
        "zero1": [],
        "zero2": ["--zero-stage", "2"],
        "bf16": ["--precision", "bf16"],
        "muon": ["--zero-stage", "0", "--optimizer", "muon"],
    }
    for name, flags in variants.items() if RANKS.world_size == 2 else [("zero1", [])]:
        report[f"{name} whole"] = summary(*train(f"{name}-whole", *flags))
        report[f"{name} 3+3"] = summary(*train(f"{name}-3", *flags, stops=(3, None)))
        records = map(json.loads, (FOLDER / f"{name}-whole" / "log.jsonl").read_text().splitlines())
        report[f"{name} rates"] = [(r["lr"], r.get("lr_adamw")) for r in records if r["kind"] == "train"]


def compare_engines(report):
    """What must not depend on the engine: the same samples give the same gradients and averages, but for rounding."""
    variants = {
        "stage 1": [],
        "stage 0": ["--zero-stage", "0"],
        "checkpointed": ["--checkpoint-activations"],
        "bf16": ["--precision", "bf16"],
    }
    averages = {}
    for name, flags in variants.items():
        trainer, steps = train(f"engine-{name}".replace(" ", ""), *flags)
        averages[name] = dict(state.gather_ema(trainer.engine))
        report[f"{name} norms"] = [step["grad_norm"] for step in steps]
    reference = averages["stage 1"]
    for name, average in averages.items():
        report[f"{name} distance"] = max((average[key] - value).abs().max().item() for key, value in reference.items())
    initial = weights(build("engine-initial"))
    report["moved"] = max((initial[key] - value).abs().max().item() for key, value in reference.items())


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


def skip_bad_steps(report, *flags):
    trainer = build(f"bad{len(flags)}", *flags, damaged=(1,))
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
    trainer = build(f"bad-end{len(flags)}", *flags, "--max-bad-steps", "2", "--save-interval", "1", damaged=(1, 2, 3))
    try:
        trainer.run()
    except FloatingPointError as error:
        report["bad end"] = str(error)
        report["bad end keys"] = trainer.steps[-1]["keys"]
    report["bad end saved"] = steps(trainer.folder)
    lines = (FOLDER / f"bad-end{len(flags)}" / "log.jsonl").read_text().splitlines()
    report["bad end logged"] = [json.loads(line)["step"] for line in lines]


def end_in_bad_steps(report):
    """The last step of a run is bad, and the last two; and a signal comes in the middle of such steps."""
    flags = ["--save-interval", "2", "--keep-last", "1"]
    trainer, _ = train("bad-single", *flags, damaged=(5,))
    report["bad single saved"] = steps(trainer.folder)
    trainer = build("bad-last", *flags, damaged=(4, 5))
    try:
        trainer.run()
    except FloatingPointError as error:
        report["bad last"] = str(error)
    report["bad last saved"] = steps(trainer.folder)
    trainer, _ = train("bad-stopped", *flags, stops=(3,), damaged=(2,))
    report["bad stopped saved"] = steps(trainer.folder)


def refuse_what_does_not_fit(report):
    folder = FOLDER / "other-ranks"
    shutil.copytree(FOLDER / "zero1-whole", folder)
    path = folder / "6" / "training.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"world_size": 4}))  # whose files are not there
    for name, file in (("cut", "mp_rank_00_model_states.pt"), ("emptied", "zero_pp_rank_0_mp_rank_00_optim_states.pt")):
        (damaged,) = (Path(shutil.copytree(FOLDER / "zero1-whole", FOLDER / name)) / "6").glob(f"*{file}")
        os.truncate(damaged, damaged.stat().st_size // 2 if name == "cut" else 0)
    (damaged,) = (Path(shutil.copytree(FOLDER / "zero1-whole", FOLDER / "flipped")) / "6").glob("*_optim_states.pt")
    with open(damaged, "r+b") as file:
        file.seek(damaged.stat().st_size // 2)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    os.truncate(Path(shutil.copytree(FOLDER / "zero1-whole", FOLDER / "averages")) / "6" / "ema.safetensors", 900)
    (Path(shutil.copytree(FOLDER / "zero1-whole", FOLDER / "gone")) / "6" / "mp_rank_00_model_states.pt").unlink()
    empty = FOLDER / "empty.tar"
    tarfile.open(empty, "w").close()
    attempts = {
        "other ranks": ("other-ranks",),
        "other optimizer": ("zero1-whole", "--optimizer", "muon", "--zero-stage", "0"),
        "other precision": ("zero1-whole", "--precision", "bf16"),
        "other partition": ("zero1-whole", "--zero-stage", "0"),
        "other model": ("zero1-whole", "--num-layers", "2"),
        **{f"{name} file": (name,) for name in ("cut", "emptied", "flipped", "gone", "averages")},
        "empty valid": ("valid", "--valid-data", str(empty)),
    }
    logs = {
        path: path.read_text() + '{"kind": "train", "step": 99, "loss": 1.0}\n' for path in FOLDER.glob("*/log.jsonl")
    }
    for path, text in logs.items():
        path.write_text(text)
    build_engine, built = trainer_module.build_engine, []
    trainer_module.build_engine = lambda *arguments: built.append(1) or build_engine(*arguments)
    for name, arguments in attempts.items():
        try:
            build(*arguments)
        except ValueError as error:
            report[name] = str(error)
    trainer_module.build_engine = build_engine
    report["engines built for the refused"] = len(built)
    report["logs left alone"] = all(path.read_text() == text for path, text in logs.items())
    clipping = build("zero1-whole", "--clip-grad", "0.25").engine.optimizer.clip_grad
    report["clipping"] = [clipping, build("zero1-whole").engine.optimizer.clip_grad]


class Ended(Exception):
    """In place of the end of the process."""


def launched(*flags):
    """Exit code and last line of standard error of the program, run inside this process."""

    def end(code):
        raise Ended(code)

    end_process, os._exit = os._exit, end
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            launch(parse_arguments([*FLAGS, *flags]), Preemption())
    except Ended as ended:
        return ended.args[0], errors.getvalue().rstrip().rpartition("\n")[2]
    finally:
        os._exit = end_process


def fill_the_disk(report):
    """A small disk of its own, on which others leave no room, or less than a checkpoint; then they make room."""
    disk = FOLDER / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32M", "tmpfs", str(disk)], check=True)
    save = ["--save", str(disk / "a run"), "--save-interval", "2"]
    assert launched(*save, "--train-iters", "2")[0] == 0
    checkpoint = sum(file.stat().st_size for file in (disk / "a run" / "2").iterdir())
    report["full disk"] = {}
    others = disk / "others"
    for share in (0.0, 0.3, 0.6, 0.9):  # of a checkpoint
        others.touch()
        with open(others, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - int(share * checkpoint) // 4096 * 4096)
        left = [path.name for path in (disk / "a run").iterdir()]
        code, said = launched(*save)
        left = sorted(path.name for path in (disk / "a run").iterdir() if path.name not in left)
        report["full disk"][share] = code, said, find_latest(disk / "a run").name, left
        others.unlink()
    report["room again"] = launched(*save)[0], find_latest(disk / "a run").name


def die(report):
    """The last rank is killed in the middle of a run; what do the others do?"""
    trainer = build("death", "--save-interval", "2")
    train_step = trainer.train_step

    def step():
        if trainer.step == 3 and trainer.rank == trainer.world_size - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        train_step()

    trainer.train_step = step
    start = time.monotonic()
    try:
        trainer.run()
    except RuntimeError as error:
        report["death"] = str(error)
        report["seconds to notice"] = time.monotonic() - start
        report["left by the dead"] = find_latest(FOLDER / "death").name


def said_while_built(*arguments):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        build(*arguments)
    return out.getvalue()


def start_from_weights_with_clip(report):
    """A model with a CLIP input; then one that starts from its averaged weights, without flags about sizes."""
    recorded = safetensors.torch.load_file(GOLDEN_CLIP)
    prefix = "weights.image_encoder.model."
    tower = {name.removeprefix(prefix): tensor for name, tensor in recorded.items() if name.startswith(prefix)}
    folder = FOLDER / "clip-tower"
    folder.mkdir()
    half = {name: tensor.bfloat16() for name, tensor in tower.items()}
    torch.save(half, folder / "open_clip_pytorch_model.bin")
    vision = {"embed_dim": 24, "vision_cfg": {"width": 64, "head_width": 16}}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": vision}))
    clip = ["--vector-dim", "24", "--clip-model", str(folder)]
    trainer, _ = train("clip", *clip)
    report["same tower"] = said_while_built("clip", *clip)
    other = Path(shutil.copytree(folder, FOLDER / "other-tower"))
    torch.save(half | {"visual.proj": half["visual.proj"] + 1}, other / "open_clip_pytorch_model.bin")
    report["other tower"] = said_while_built("clip", *clip, "--clip-model", str(other))
    report["clip precision"] = [sorted({str(p.dtype) for p in trainer.clip.parameters()})]
    report["clip weights"] = digest(dict(state.gather_ema(trainer.engine)))
    report["clip learnt"] = weights(trainer)["cond_embed.map_vector.2.weight"].abs().max().item()
    tuned = build("tuned", *clip, "--load", str(FOLDER / "clip" / "6" / "ema.safetensors"))
    report["tuned step"], report["tuned weights"] = tuned.step, digest(weights(tuned))
    report["tuned ema"] = digest(dict(state.gather_ema(tuned.engine)))
    official = build("tuned-official", *clip, "--load", str(FOLDER / "clip" / "6" / "mp_rank_00_model_states.pt"))
    report["official tuned"] = [official.step, digest(weights(official)) == digest(weights(trainer))]


def resume_with_a_tower_of_its_own(report):
    """The tower goes from --load into each checkpoint, and a checkpoint that was resumed from is not held open."""
    start = load(FOLDER / "clip")
    recorded = safetensors.torch.load_file(GOLDEN_CLIP)
    prefix = "weights.image_encoder.model."
    tower = {name.removeprefix(prefix): tensor for name, tensor in recorded.items() if name.startswith(prefix)}
    with_tower = FOLDER / "with_tower.safetensors"
    half = {name: tensor.bfloat16() for name, tensor in tower.items()}
    save_safetensors(with_tower, start.tensors, start.config, clip=half)
    flags = ["--vector-dim", "24", "--load", str(with_tower), "--train-iters", "1"]
    train("tower", *flags)
    resumed = build("tower", *flags)
    report["clip precision"].append(sorted({str(p.dtype) for p in resumed.clip.parameters()}))
    gc.collect()
    report["tower kept"] = digest(resumed.clip_weights) == digest(load(with_tower).clip_tensors)
    maps = Path("/proc/self/maps").read_text().splitlines()
    report["held open"] = [line for line in maps if str(FOLDER / "tower" / "1") in line]


def validate_again(report):
    """The logged validation loss against one computed from the saved file by a plain network."""
    shards = FLAGS[FLAGS.index("--train-data") + 1]
    trainer, _ = train("validated", "--valid-data", shards, "--eval-interval", "6")
    records = map(json.loads, (FOLDER / "validated" / "log.jsonl").read_text().splitlines())
    (report["logged"],) = [record for record in records if record["kind"] == "valid"]
    model = load_model(FOLDER / "validated")
    (batch,) = trainer.validation
    generator = torch.Generator().manual_seed(mix_seed("validation", trainer.seed, 0))
    noise = torch.randn(batch["target"].shape, generator=generator)
    with torch.no_grad():
        report["recomputed"] = {
            f"loss_sigma_{sigma}": edm_loss(model, noise=noise, sigma=torch.full((2,), sigma), **batch).mean().item()
            for sigma in SIGMAS
        }
    with Image.open(FOLDER / "validated" / "pictures" / "00000006.png") as image:
        picture = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    shown = torch.cat(list(batch["target"]), dim=-2)
    report["picture size"] = list(picture.shape)
    sample, target = picture[..., -64:-32].double(), picture[..., -32:].double()
    errors = (sample - target).square().unflatten(-2, (2, 32)).mean(dim=(0, 2, 3))  # of two rows
    report["psnr in picture"] = (10 * torch.log10(255**2 / errors)).mean().item()
    report["target in picture"] = (picture[..., -32:] / 127.5 - 1 - shown).abs().max().item()


def main() -> None:
    report = {}
    compare_resumed(report)
    report["skips"] = {name: {} for name in ("zero1", "bf16", "muon")}
    skip_bad_steps(report["skips"]["zero1"])
    skip_bad_steps(report["skips"]["bf16"], "--precision=bf16")
    skip_bad_steps(report["skips"]["muon"], "--zero-stage=0", "--optimizer=muon")
    end_in_bad_steps(report)
    follow_average(report)
    if RANKS.world_size == 1:
        compare_engines(report)
        refuse_what_does_not_fit(report)
        if "PRIVATE_MOUNTS" in os.environ:
            fill_the_disk(report)
        start_from_weights_with_clip(report)
        resume_with_a_tower_of_its_own(report)
        validate_again(report)
    write(report)
    dist.barrier()
    if RANKS.world_size == 2:
        die(report)
        write(report)
    os._exit(0)  # as `launch` does: the process group of a dead rank cannot be left in order


main()
