"""The command line of training: the release's flags and ours. Imports nothing heavy, so --help answers at once."""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path

from sat_sr.config import InfDiTConfig
from sat_sr.programs.release_flags import NETWORK, Settled, add_settled, flag, take_settled, with_dashes

DEFAULT_DEEPSPEED_CONFIG = str(Path(__file__).with_name("ds_config_zero_clip.json"))

# Accepted, and without effect, beside those of the network.
SETTLED: Settled = {
    **NETWORK,
    "mode": ("pretrain", "generate_sr_big.py does the other one"),
    "split": (None, "--valid-data names the validation set"),
    "iterable_dataset": (True, "the data is always a stream"),
    "no_load_rng": (True, "random numbers are functions of the seed and the step, there is no state to load"),
    "deepspeed": (True, "DeepSpeed always runs the training"),
    "text_dropout": (None, "there is no text"),
    "cross_attn_hidden_size": (None, "there is no attention to text"),
}


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """The settings of a run. Flags may be spelt with dashes or underscores.

    Besides the flags, the result has `model`, the resolved InfDiTConfig (None: --load decides), and `notes`, what the
    user should read once about flags that were accepted but decide nothing. Wrong use ends the program (argparse).
    """
    parser = _parser()
    settings = parser.parse_args([with_dashes(argument) for argument in argv])
    try:
        settings.notes = _settled_flags(settings)
        settings.model = _model_config(settings)
        _check(settings)
    except ValueError as error:
        parser.error(str(error))
    return settings


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Train an Inf-DiT upscaler from shards of photographs. The same command run again resumes.",
        allow_abbrev=False,
    )
    add = parser.add_argument_group("data").add_argument
    add("--train-data", nargs="+", metavar="SHARDS", help="shards: paths, globs, brace lists, URLs, or ';DIR1,DIR2*3'")
    add("--valid-data", nargs="+", metavar="SHARDS", help="shards of the validation set")
    add("--num-workers", type=int, default=2, help="processes that read and degrade, each rank (default %(default)s)")
    add("--degradation", default="strong", help="strong, mild, clean, or a mixture such as strong:0.7,clean:0.3")
    add("--degrade-on-device", action="store_true", help="degrade whole batches on the GPU, not in the workers")
    add(
        "--augment",
        choices=("release", "full", "tone"),
        default="release",
        help="full: all eight flips and rotations; tone: half of the crops in other contrasts, too",
    )
    add("--cache-mb", type=int, default=0, help="decoded pictures that each worker keeps, for small sets")
    add("--lr-dropout", type=float, default=0.07, help="share of samples whose low resolution is noise (%(default)s)")

    add = parser.add_argument_group("model").add_argument
    add("--preset", help="official (default) or mini; the flags below change single sizes")
    for field in dataclasses.fields(InfDiTConfig):
        add("--" + field.name.replace("_", "-"), type=int, metavar="N")
    add("--load", metavar="FILE", help="start from these weights (official .pt, or .safetensors), and their sizes")
    add("--clip-model", metavar="SOURCE", help="CLIP tower if --load has none: file, folder, hub id")

    add = parser.add_argument_group("recipe").add_argument
    add("--train-iters", type=int, default=1_000_000, help="steps of the run (default %(default)s)")
    add("--micro-batch-size", "--batch-size", type=int, help="samples a rank computes at a time (default: the JSON's)")
    add("--gradient-accumulation-steps", type=int, help="micro batches a step (default: the JSON's)")
    add("--train-batch-size", type=int, help="samples of a step over all ranks, instead of the flag above")
    add("--lr", type=float, help="peak learning rate (default: the JSON's)")
    add("--warmup", type=float, default=0.01, help="share of the run that warms up (default %(default)s)")
    add("--lr-decay-style", choices=("linear", "cosine", "constant"), default="linear")
    add("--weight-decay", type=float, help="default: the JSON's; none on biases and norms")
    add("--clip-grad", type=float, help="largest gradient norm (default: the JSON's)")
    add("--optimizer", choices=("adamw", "muon"), default="adamw", help="muon: for small models; needs --zero-stage 0")
    add("--muon-lr", type=float, default=0.02, help="peak rate of Muon's matrices, --lr is the others' (%(default)s)")
    add("--ema-decay", type=float, default=0.9999, help="largest decay of the averaged weights (default %(default)s)")
    add("--p-mean", type=float, default=-1.0, help="mean of ln sigma (default %(default)s)")
    add("--p-std", type=float, default=1.4, help="standard deviation of ln sigma (default %(default)s)")
    add("--sigma-sampling", choices=("iid", "stratified"), default="iid", help="stratified: spread over a micro batch")
    add(
        "--gradient-weight",
        type=float,
        default=0.0,
        metavar="W",
        help="also count W times the squared error of pixel differences; the optimum stays (default 0)",
    )
    add("--seam-weight", type=float, default=0.0, metavar="W", help="likewise of differences across patch borders")
    add("--random-position", action="store_true", help="offset the rotary positions at random")
    add("--seed", type=int, default=1234)

    add = parser.add_argument_group("engine").add_argument
    add("--deepspeed-config", default=DEFAULT_DEEPSPEED_CONFIG, metavar="JSON", help="default %(default)s")
    add("--zero-stage", type=int, choices=(0, 1, 2), help="default: the JSON's")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--precision", choices=("auto", "bf16", "fp32"), default="auto", help="auto: the JSON's; fp32 on the CPU")
    add("--tf32", action="store_true", help="fp32 on a GPU: matrix products by TF32, faster and of 10 bits")
    add("--checkpoint-activations", action="store_true", help="recompute layers in the backward: less memory, slower")
    add("--threads", type=int, help="CPU threads of each rank (default: PyTorch's)")
    add("--timeout", type=float, default=30.0, metavar="MINUTES", help="how long ranks wait for one another")

    add = parser.add_argument_group("saving and looking").add_argument
    add("--save", metavar="DIR", help="folder of the run: checkpoints, logs, pictures")
    add("--experiment-name", metavar="NAME", help="the run's folder is then DIR/NAME")
    add("--save-interval", type=int, default=5000)
    add("--keep-last", type=int, default=3, metavar="K", help="checkpoints kept; 0 keeps all (default %(default)s)")
    add("--log-interval", type=int, default=20)
    add("--eval-interval", type=int, default=1000)
    add("--eval-iters", type=int, default=1, help="validation micro batches of each rank")
    add("--eval-steps", type=int, default=10, help="sampler steps for the validation pictures (default %(default)s)")
    add("--max-bad-steps", type=int, default=10, help="steps in a row without a finite loss that end the run")
    add("--dry-run", action="store_true", help="print the resolved settings and the size of the model, and end")

    add_settled(parser.add_argument_group("accepted for compatibility; decide nothing"), SETTLED)
    return parser


def _settled_flags(settings: argparse.Namespace) -> list[str]:
    given, wrong = take_settled(settings, SETTLED)
    for name, value in wrong.items():  # not ignored: a run of hours would be another than its command says
        only, why = SETTLED[name]
        raise ValueError(f"{flag(name)} {value}: must be {only} ({why})")
    reasons = [f"{flag(name)} ({SETTLED[name][1]})" for name in given]
    return [f"accepted, and changes nothing: {'; '.join(reasons)}"] if given else []


def _model_config(settings: argparse.Namespace) -> InfDiTConfig | None:
    names = [field.name for field in dataclasses.fields(InfDiTConfig)]
    given = {name: vars(settings).pop(name) for name in names}
    changes = {name: value for name, value in given.items() if value is not None}
    if settings.load and not settings.preset and not changes:
        return None
    return dataclasses.replace(InfDiTConfig.preset(settings.preset or "official"), **changes)


def _check(settings: argparse.Namespace) -> None:
    at_least = {
        "train_iters": 1, "save_interval": 1, "log_interval": 1, "eval_interval": 1, "eval_iters": 1, "eval_steps": 1,
        "max_bad_steps": 1, "keep_last": 0, "num_workers": 0, "micro_batch_size": 1, "gradient_accumulation_steps": 1,
        "train_batch_size": 1, "threads": 1, "cache_mb": 0,
    }  # fmt: skip
    for name, least in at_least.items():
        value = getattr(settings, name)
        if value is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')} {value}: must be at least {least}")
    for name in ("lr_dropout", "warmup"):
        if not 0 <= getattr(settings, name) <= 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(settings, name)}: a share, between 0 and 1")
    if not 0 <= settings.ema_decay < 1:
        raise ValueError(f"--ema-decay {settings.ema_decay}: must be at least 0 and below 1")
    for name in ("lr", "muon_lr", "p_std", "timeout"):
        value = getattr(settings, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"--{name.replace('_', '-')} {value}: must be above 0")
    for name, most in (("timeout", 1e6), ("threads", 1024), ("seed", 2**63 - 1)):
        value = getattr(settings, name)
        if value is not None and value > most:
            raise ValueError(f"--{name} {value}: must be at most {int(most)}")
    for name in ("clip_grad", "weight_decay", "gradient_weight", "seam_weight"):
        value = getattr(settings, name)
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"--{name.replace('_', '-')} {value}: must be 0 or a positive number, such as 1")
    if not math.isfinite(settings.p_mean):
        raise ValueError(f"--p-mean {settings.p_mean}: must be a number, such as -1")
    if not settings.dry_run:
        for name, what in (("train_data", "the shards to train on"), ("save", "the folder of the run")):
            if not getattr(settings, name):
                raise ValueError(f"--{name.replace('_', '-')} is missing: name {what}")
