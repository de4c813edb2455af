"""The command line of generation: the release's flags and ours. Imports nothing heavy, so --help answers at once."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from sat_sr import __version__
from sat_sr.cli.name_template import DEFAULT_TEMPLATE, check_template
from sat_sr.cli.target import DEFAULT_SCALE, MAX_PASS, Target
from sat_sr.config import InfDiTConfig
from sat_sr.image_io.picture import DEFAULT_MAX_PIXELS, FORMAT_CHOICES, WRITE_FORMATS
from sat_sr.inference.choices import KERNELS, MODES, OFFLOADS
from sat_sr.programs.flag_values import between, integer, memory_size, picture_size, positive, scale_factor, seed
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
from sat_sr.sampling import COLOR_FIXES, MOST_DETAIL, SAMPLER_NAMES, SETTING_NAMES

DTYPES = ("auto", "float32", "bfloat16", "float16")

# Limits that only typos exceed; planning beyond them would exhaust memory.
MAX_SCALE, MAX_STEPS = 1e6, 10_000

NAME_FIELDS = ("stem", "width", "height", "scale", "seed", "sampler", "steps")
ARCHITECTURE = tuple(field.name for field in dataclasses.fields(InfDiTConfig))
SIZE_FLAGS = ("infer_sr_scale", "size", "width", "height", "long_side")

# Accepted, and without effect, beside those of the network.
SETTLED: Settled = {
    **NETWORK,
    "mode": ("inference", "train_text2image_sr.py does the other one"),
    "experiment_name": (None, "--out-dir names the folder of the outputs"),
    "inference_batch_size": (None, "pictures are computed one after the other"),
    "no_concat": (
        False,
        "it drops the neighbours' keys in the release, for debugging; here they always count",
    ),
    "random_position": (True, "it is a matter of training"),
}

# What --from-picture repeats: settings stored in pictures -> flags. Whatever else a file says is not looked at.
REPEATED = (*SETTING_NAMES, "seed", "dtype", "inference_type", "block_batch", "lr_size", "crop_size", "round")


def parse_arguments(argv: list[str], stored: Mapping[str, Any] | None = None) -> argparse.Namespace:
    """The settings of a run. Flags may be spelt with dashes or underscores, pictures may stand between them.

    stored  settings of an earlier run (--from-picture): flags that come before those of argv

    What follows "--" are pictures, whatever they are called. Besides the flags, the result has `target` (a Target),
    `given_architecture` (sizes of the network that flags name) and `notes`, sentences to be said once about flags that
    decide nothing. Wrong use ends the program with a message and exit code 2 (argparse).
    """
    parser = make_parser()
    end = argv.index("--") if "--" in argv else len(argv)  # argparse cannot do both: "--", and pictures between flags
    flags, pictures = [with_dashes(argument) for argument in argv[:end]], argv[end + 1 :]
    args = parser.parse_intermixed_args(flags)
    try:
        if stored is not None:
            repeated = _flags_of(stored, args)
            parser.parsing = f"the settings stored in {args.from_picture}: "
            parser.parse_intermixed_args(repeated)
            parser.parsing = ""
            args = parser.parse_intermixed_args([*repeated, *flags])
        args.inputs += pictures
        args.notes = _settled(args)
        args.given_architecture = {name: value for name in ARCHITECTURE if (value := vars(args).pop(name)) is not None}
        args.target = _target(args)
        _check(args)
    except ValueError as error:
        parser.error(str(error))
    return args


class _Parser(argparse.ArgumentParser):
    """Names what it parses, where that is not the command line."""

    parsing = ""

    def error(self, message: str) -> NoReturn:
        super().error(self.parsing + message)


def make_parser() -> _Parser:
    parser = _Parser(
        usage="%(prog)s [IMAGE|FOLDER|GLOB|LIST.txt|ARCHIVE.tar|-]... [flags]",
        description="Upscale pictures with Inf-DiT. Without pictures it asks for them. Exit code: 0 all done, 1 some "
        "pictures failed, 2 wrong use, 130 interrupted.",
        formatter_class=help_layout,
        allow_abbrev=False,
        add_help=False,
    )
    add = parser.add_argument_group("pictures").add_argument
    add("inputs", nargs="*", metavar="IMAGE", help="files, folders, glob patterns, .txt lists (one path per line) or "
        "tar archives; - reads a list from standard input")  # fmt: skip
    add("--recursive", action="store_true", help="search folders recursively; the output keeps their structure")
    add("--input-type", choices=("cli", "txt", "datapath_dir", "datapath_webdataset"),
        help="cli: ask for paths; txt, ...: what --input-path names")  # fmt: skip
    add("--input-path", metavar="PATH", help="one more input (with --input-type txt by default input.txt)")
    add("--lr-size", type=integer(0), default=0, metavar="N", help="first resize the shorter side to N px")
    add("--crop-size", type=integer(0), default=0, metavar="N", help="then take the top left N x N px")
    add("--round", type=integer(0), default=0, metavar="N", help="then crop centrally to multiples of N px (default: "
        "nothing is cropped)")  # fmt: skip
    add("--max-pixels", type=integer(1), default=DEFAULT_MAX_PIXELS, metavar="N", help="largest input, width x height "
        "(default %(default)s)")  # fmt: skip

    add = parser.add_argument_group("size of the output (one of these)").add_argument
    add("--infer-sr-scale", type=scale_factor(MAX_SCALE), metavar="S", help=f"scale factor, 1 or more (default "
        f"{DEFAULT_SCALE:g}); above {MAX_PASS:g} runs in several passes")  # fmt: skip
    add("--size", type=picture_size, metavar="WxH", help="exactly this; does not keep the aspect ratio")
    add("--width", type=integer(1), metavar="PX", help="the height follows, unless --height is given too")
    add("--height", type=integer(1), metavar="PX", help="the width follows, unless --width is given too")
    add("--long-side", type=integer(1), metavar="PX", help="the longer side; the other one follows")

    add = parser.add_argument_group("network").add_argument
    add("--network", metavar="FILE", help="weights: .pt, .safetensors or a training folder (default: the official "
        "ones if they lie in ckpt/, else ckpt/mini.safetensors)")  # fmt: skip
    add("--clip-model", metavar="PATH|ID", help="CLIP image tower, where the weights carry none: a folder, a file or "
        "a Hugging Face id")  # fmt: skip
    add("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps (default %(default)s)")
    add("--dtype", choices=DTYPES, default="auto", help="of the network (default: bfloat16 on new GPUs, else float32)")
    add("--bf16", action="store_const", const="bfloat16", dest="dtype", help="the same as --dtype bfloat16")
    add("--kernel", choices=("auto", *KERNELS), default="auto", help="attention kernel (default %(default)s)")

    add = parser.add_argument_group("sampling (defaults come from the weights)").add_argument
    add("--fast", action="store_true", help="the quick preset of the weights")
    add("--sampler", choices=SAMPLER_NAMES, help="solver of the diffusion ODE")
    add("--num-steps", type=integer(1, MAX_STEPS), metavar="N", help="steps of the sampler")
    add("--sigma-max", type=positive, metavar="X", help="first noise level")
    add("--sigma-min", type=positive, metavar="X", help="last noise level before 0")
    add("--strength", type=between(0, 1), metavar="0..1", help="lower values stay closer to the input (default 1)")
    add("--init-noise", action=argparse.BooleanOptionalAction, help="start from the upsampled input plus noise (the "
        "default), or from noise alone")  # fmt: skip
    add("--color-fix", choices=COLOR_FIXES, help="what to take over from the input: colours, afterwards (mean, "
        "wavelet), or all it resolves, in every network call (backprojection)")  # fmt: skip
    add("--detail", type=between(0, MOST_DETAIL), metavar="X", help="amount of detail: 1 is the network's own, above 1 "
        "more, below 1 less")  # fmt: skip
    add("--grid-shift", type=integer(0), metavar="PX", help="pixels by which the block grid moves between network "
        "calls, which hides block borders (0: fixed)")  # fmt: skip
    add("--seed", type=seed(64), metavar="N", help="same seed, same picture (default: random and reported; 0 with "
        "several ranks)")  # fmt: skip
    add("--from-picture", metavar="FILE", help="reuse the settings stored in an earlier output; explicit flags "
        "override them")  # fmt: skip

    add = parser.add_argument_group("memory").add_argument
    add("--inference-type", choices=MODES, default="auto", help="order of computation; the picture is the same, memory "
        "and speed differ: full (layer by layer), ar2, ar (block by block; small blocks by 4096 tokens), auto "
        "(fastest that fits; default)")  # fmt: skip
    add("--block-batch", type=integer(1), metavar="N", help="ar2: blocks per group, at most N x N (default 4)")
    add("--offload", choices=("auto", *OFFLOADS), default="auto", help="what to keep on the host instead of the GPU: "
        "state (what grows with the picture), all (the weights too), auto (as little as possible; "
        "default)")  # fmt: skip
    add("--split-picture", action=argparse.BooleanOptionalAction, help="several ranks (torchrun) compute each picture "
        "together (the default for one picture), or share the list (the default for several)")  # fmt: skip
    add("--compile", action="store_true", help="fuse the layers' small operations (torch.compile): slower to start, "
        "meant for GPUs")  # fmt: skip
    add("--memory", type=memory_size, metavar="SIZE", help="memory to use, like 8GiB: the GPU's or, without one, the "
        "host's, for the program too (default: most of what is free)")  # fmt: skip
    add("--estimate", action="store_true", help="print sizes, plan, memory and TFLOP, then exit")

    add = parser.add_argument_group("output").add_argument
    add("-o", "--output", metavar="FILE", help="the one output file; its suffix gives the format")
    add("--out-dir", metavar="DIR", help="folder of the outputs (default: samples)")
    add("--format", choices=[*FORMAT_CHOICES, "keep"], help="default png; keep: that of the input")
    add("--quality", type=integer(1, 100), metavar="1..100", help="of JPEG and WebP (default 95)")
    add("--name", default=DEFAULT_TEMPLATE, metavar="TEMPLATE",
        help=f"default %(default)s; fields: {', '.join(NAME_FIELDS)}")  # fmt: skip
    add("--skip-existing", action="store_true", help="skip pictures already done: resumes an interrupted run")
    add("--overwrite", action="store_true", help="replace files that are there (default: a numbered name)")
    add("--no-metadata", action="store_true", help="store no settings in the outputs")

    add = parser.add_argument_group("messages").add_argument
    add("--quiet", action="store_true", help="errors only")
    add("--json", action="store_true", help="one JSON object per picture on standard output, nothing else")
    add("--version", action="version", version=f"sat-sr {__version__}", help="print the version")
    add("-h", "--help", action="help", help="print this text")

    group = parser.add_argument_group(
        "obsolete",
        "Flags of the original Inf-DiT. The architecture comes from the weights; a flag that disagrees is reported: "
        f"{spelt(ARCHITECTURE)}. Accepted without effect: {spelt(SETTLED)}.",
    )
    for name in ARCHITECTURE:
        group.add_argument(flag(name), type=int, help=argparse.SUPPRESS)
    add_settled(group, SETTLED)
    return parser


def _flags_of(stored: Mapping[str, Any], given: argparse.Namespace) -> list[str]:
    """Stored settings as flags, so that they are checked like flags. A size, or the preset, that is given overrides
    the stored one."""
    names = [name for name in REPEATED if not (given.fast and name in SETTING_NAMES)]
    if stored.get("inference_type") != "ar2":
        names.remove("block_batch")  # it is stored with every picture, but acts there only
    values = {name: stored.get(name) for name in names}
    if not any(getattr(given, name) for name in SIZE_FLAGS):
        values |= {name: stored.get(name) for name in SIZE_FLAGS}
        values["infer_sr_scale"] = stored.get("scale")
        if isinstance(size := values["size"], list):
            values["size"] = "x".join(map(str, size))
    flags = []
    for name, value in values.items():
        if isinstance(value, bool):
            flags.append(flag(name if value else f"no_{name}"))
        elif isinstance(value, int | float | str):
            flags.append(f"{flag(name)}={value if str(value).isprintable() else ascii(value)}")
    return flags


def _settled(args: argparse.Namespace) -> list[str]:
    """What to say about the flags that decide nothing. They are taken out of args."""
    given, wrong = take_settled(args, SETTLED)
    idle = [flag(name) for name in given if name not in wrong]
    ignored = [
        f"{flag(name)} is ignored: {SETTLED[name][1]}"
        if value is True
        else f"{flag(name)} {value} is ignored: for this network it is always {SETTLED[name][0]}"
        for name, value in wrong.items()
    ]
    return [f"accepted for compatibility, without effect: {', '.join(idle)}"] * bool(idle) + ignored


def _target(args: argparse.Namespace) -> Target:
    given = [name for name in SIZE_FLAGS if getattr(args, name)]
    if len(given) > 1 and given != ["width", "height"]:
        raise ValueError(f"{flag(given[0])} and {flag(given[1])} both set the size of the output: give one of them")
    width, height = args.size or (args.width, args.height)
    return Target(args.infer_sr_scale, width, height, args.long_side)


def _check(args: argparse.Namespace) -> None:
    def conflict(first: str, second: str, way_out: str) -> None:
        if getattr(args, first) and getattr(args, second):
            raise ValueError(f"{flag(first)} and {flag(second)} exclude one another: {way_out}")

    conflict("output", "out_dir", "-o names the file, --out-dir only the folder")
    conflict("output", "format", "the suffix of -o gives the format")
    if args.output and args.name != DEFAULT_TEMPLATE:
        raise ValueError("-o and --name exclude one another: -o is the whole name")
    conflict("skip_existing", "overwrite", "give one of them")
    conflict("quiet", "json", "--json alone prints nothing else either")
    for name in ("output", "out_dir", "network", "clip_model", "from_picture", "input_path"):
        if getattr(args, name) == "":  # "$VARIABLE" of a shell, not set
            raise ValueError(f"{flag(name)}: the name is empty: give one, or leave the flag out")
    if args.output and os.path.isdir(args.output):
        raise ValueError(f"-o {args.output}: is a folder, and -o names the one output file: use --out-dir for a folder")
    if args.output and Path(args.output).suffix.lower() not in WRITE_FORMATS:
        raise ValueError(f"-o {args.output}: must be a name that ends in one of {', '.join(WRITE_FORMATS)}")
    check_template(args.name, NAME_FIELDS)
    if args.sigma_min and args.sigma_max and args.sigma_min >= args.sigma_max:
        raise ValueError(f"--sigma-min {args.sigma_min:g}: must be below --sigma-max {args.sigma_max:g}")
    if args.block_batch and args.inference_type != "ar2":
        args.notes.append(f"--block-batch acts with --inference-type ar2 only, not with {args.inference_type}")
    if args.input_type == "cli" and (args.inputs or args.input_path):
        raise ValueError("--input-type cli asks for the pictures: leave the paths out, or --input-type")
    if args.input_type == "txt":
        args.input_path = args.input_path or "input.txt"
        if not args.input_path.lower().endswith(".txt"):
            raise ValueError(f"--input-type txt --input-path {args.input_path}: the name of a list ends in .txt")
    elif args.input_type not in (None, "cli") and not args.input_path:
        raise ValueError(f"--input-type {args.input_type}: name the data with --input-path")
    if args.input_path:
        args.inputs.append(args.input_path)
    if args.estimate and not args.inputs:
        raise ValueError("--estimate: name the pictures")
