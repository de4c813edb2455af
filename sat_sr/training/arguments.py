"""The command line of training: the release's flags and ours. Imports nothing heavy, so --help answers at once."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from sat_sr.config import InfDiTConfig
from sat_sr.programs.flag_values import between, finite, integer, not_negative, positive, seed
from sat_sr.programs.release_flags import (
    NETWORK,
    Settled,
    add_settled,
    flag,
    help_layout,
    spelt,
    take_settled,
    with_dashes,
)

DEFAULT_DEEPSPEED_CONFIG = str(Path(__file__).with_name("ds_config_zero_clip.json"))
MAX_TIMEOUT = 1e6  # minutes

# What --help says of the fields of InfDiTConfig.
SIZES = {
    "num_layers": "transformer layers",
    "hidden_size": "width of a token",
    "num_attention_heads": "attention heads",
    "patch_size": "pixels per side of a token",
    "image_block_size": "pixels per side of a block",
    "image_size": "pixels per side of the training crops",
    "vector_dim": "width of the CLIP embedding; 0: no CLIP input",
}

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
        usage="%(prog)s --train-data SHARDS... --save DIR [flags]",
        description="Train an Inf-DiT upscaler from shards of photographs. The same command run again resumes. Exit "
        "code: 0 done, 1 error, 2 wrong use, 75 stopped by a signal and saved, 130 interrupted.",
        formatter_class=help_layout,
        allow_abbrev=False,
        add_help=False,
    )
    add = parser.add_argument_group("data").add_argument
    add("--train-data", nargs="+", metavar="SHARDS", help="paths, globs, brace lists, URLs, or ';DIR1,DIR2*3'")
    add("--valid-data", nargs="+", metavar="SHARDS", help="shards of the validation set (default: no validation)")
    add("--num-workers", type=integer(0), default=2, metavar="N", help="worker processes per rank (default "
        "%(default)s)")  # fmt: skip
    add("--degradation", default="strong", metavar="NAME", help="strong (default), mild, clean, or a mixture such as "
        "strong:0.7,clean:0.3")  # fmt: skip
    add("--degrade-on-device", action="store_true", help="degrade whole batches on the GPU, not in the workers")
    add("--augment", choices=("release", "full", "tone"), default="release", help="release: random crops, some "
        "mirrored (default); full: all eight flips and rotations; tone: full, and half of the crops in other "
        "contrasts")  # fmt: skip
    add("--cache-mb", type=integer(0), default=0, metavar="MB", help="MB of decoded pictures each worker keeps, for "
        "small data sets (default %(default)s)")  # fmt: skip
    add("--lr-dropout", type=between(0, 1), default=0.07, metavar="P", help="probability of replacing the LR input by "
        "noise (default %(default)s)")  # fmt: skip

    add = parser.add_argument_group("model").add_argument
    add("--preset", metavar="NAME", help="official (default) or mini; the flags below change single sizes")
    for field in dataclasses.fields(InfDiTConfig):
        add(flag(field.name), type=integer(0), metavar="N", help=f"{SIZES[field.name]} (default: the preset's)")
    add("--load", metavar="FILE", help="start from these weights (official .pt, or .safetensors) and their sizes "
        "(default: random weights)")  # fmt: skip
    add("--clip-model", metavar="SOURCE", help="CLIP tower if --load has none: a folder, a file or a Hugging Face id")

    add = parser.add_argument_group("recipe").add_argument
    add("--train-iters", type=integer(1), default=1_000_000, metavar="N", help="steps of the run (default %(default)s)")
    add("--micro-batch-size", "--batch-size", type=integer(1), metavar="N", help="samples per rank and forward pass "
        "(default: from the DeepSpeed JSON)")  # fmt: skip
    add("--gradient-accumulation-steps", type=integer(1), metavar="N", help="micro-batches per step (default: from the "
        "DeepSpeed JSON)")  # fmt: skip
    add("--train-batch-size", type=integer(1), metavar="N", help="samples per step over all ranks, instead of the flag "
        "above")  # fmt: skip
    add("--lr", type=positive, metavar="X", help="peak learning rate (default: from the DeepSpeed JSON)")
    add("--warmup", type=between(0, 1), default=0.01, metavar="0..1", help="share of the run that warms up (default "
        "%(default)s)")  # fmt: skip
    add("--lr-decay-style", choices=("linear", "cosine", "constant"), default="linear", help="after warm-up (default "
        "%(default)s)")  # fmt: skip
    add("--weight-decay", type=not_negative, metavar="X", help="none on biases and norms (default: from the DeepSpeed "
        "JSON)")  # fmt: skip
    add("--clip-grad", type=not_negative, metavar="X", help="largest gradient norm (default: from the DeepSpeed JSON)")
    add("--optimizer", choices=("adamw", "muon"), default="adamw", help="default %(default)s; muon: for small models, "
        "needs --zero-stage 0")  # fmt: skip
    add("--muon-lr", type=positive, default=0.02, metavar="X", help="peak learning rate of Muon's matrices, --lr is "
        "the others' (default %(default)s)")  # fmt: skip
    add("--ema-decay", type=between(0, 1), default=0.9999, metavar="X", help="largest decay of the averaged weights "
        "(default %(default)s)")  # fmt: skip
    add("--p-mean", type=finite, default=-1.0, metavar="X", help="mean of ln sigma (default %(default)s)")
    add("--p-std", type=positive, default=1.4, metavar="X", help="standard deviation of ln sigma (default %(default)s)")
    add("--sigma-sampling", choices=("iid", "stratified"), default="iid", help="default %(default)s; stratified: "
        "spread over a micro-batch")  # fmt: skip
    add("--gradient-weight", type=not_negative, default=0.0, metavar="W", help="weight of the squared error of pixel "
        "differences; leaves the optimal denoiser unchanged (default 0)")  # fmt: skip
    add("--seam-weight", type=not_negative, default=0.0, metavar="W", help="likewise of differences across patch "
        "borders (default 0)")  # fmt: skip
    add("--random-position", action="store_true", help="offset the rotary positions at random")
    add("--seed", type=seed(63), default=1234, metavar="N", help="of everything random; a resumed run keeps its own "
        "(default %(default)s)")  # fmt: skip

    add = parser.add_argument_group("engine").add_argument
    add("--deepspeed-config", default=DEFAULT_DEEPSPEED_CONFIG, metavar="FILE", help="the DeepSpeed JSON (default: the "
        "one that ships)")  # fmt: skip
    add("--zero-stage", type=int, choices=(0, 1, 2), help="default: from the DeepSpeed JSON")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: CUDA if there is a GPU (default)")
    add("--precision", choices=("auto", "bf16", "fp32"), default="auto", help="auto: from the DeepSpeed JSON, fp32 on "
        "the CPU (default)")  # fmt: skip
    add("--tf32", action="store_true", help="fp32 on a GPU: use TF32 (10-bit mantissa) for matrix products, faster")
    add("--checkpoint-activations", action="store_true", help="recompute layers in the backward pass: less memory, "
        "slower")  # fmt: skip
    add("--threads", type=integer(1, 1024), metavar="N", help="CPU threads per rank (default: PyTorch's)")
    add("--timeout", type=positive, default=30.0, metavar="MINUTES", help="how long ranks wait for one another "
        "(default %(default)s)")  # fmt: skip

    add = parser.add_argument_group("output and validation").add_argument
    add("--save", metavar="DIR", help="folder of the run: checkpoints, logs, pictures")
    add("--experiment-name", metavar="NAME", help="the folder is DIR/NAME (default: DIR itself)")
    add("--save-interval", type=integer(1), default=5000, metavar="N", help="steps between checkpoints (default "
        "%(default)s)")  # fmt: skip
    add("--keep-last", type=integer(0), default=3, metavar="K", help="checkpoints to keep; 0 keeps all (default "
        "%(default)s)")  # fmt: skip
    add("--log-interval", type=integer(1), default=20, metavar="N", help="steps between lines of the log (default "
        "%(default)s)")  # fmt: skip
    add("--eval-interval", type=integer(1), default=1000, metavar="N", help="steps between validations (default "
        "%(default)s)")  # fmt: skip
    add("--eval-iters", type=integer(1), default=1, metavar="N", help="validation micro-batches per rank (default "
        "%(default)s)")  # fmt: skip
    add("--eval-steps", type=integer(1), default=10, metavar="N", help="sampler steps of the validation pictures "
        "(default %(default)s)")  # fmt: skip
    add("--max-bad-steps", type=integer(1), default=10, metavar="N", help="consecutive steps without a finite loss "
        "that end the run (default %(default)s)")  # fmt: skip
    add("--dry-run", action="store_true", help="print the resolved settings and the size of the model, then exit")
    add("-h", "--help", action="help", help="print this text")

    group = parser.add_argument_group(
        "obsolete",
        "Flags of the original Inf-DiT, accepted without effect; a value that this network cannot have is refused: "
        f"{spelt(SETTLED)}.",
    )
    add_settled(group, SETTLED)
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
    if settings.ema_decay == 1:
        raise ValueError("--ema-decay 1: must be below 1, or the averaged weights never move")
    if settings.timeout > MAX_TIMEOUT:
        raise ValueError(f"--timeout {settings.timeout:g}: must be at most {MAX_TIMEOUT:g}")
    if not settings.dry_run:
        for name, what in (("train_data", "the shards to train on"), ("save", "the folder of the run")):
            if not getattr(settings, name):
                raise ValueError(f"{flag(name)} is missing: name {what}")
