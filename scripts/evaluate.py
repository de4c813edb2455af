#!/usr/bin/env python
"""How good is a network? Sharp pictures are made small, enlarged by it, and compared with what they were.

    python scripts/evaluate.py --network ckpt/mini.safetensors --images photos/
    python scripts/evaluate.py --network ckpt/mini.safetensors --images photos/ \\
        --setting "sampler=dpmpp_2m,num_steps=4" --setting "sampler=heun,num_steps=10"

Bicubic and Lanczos interpolation stand beside it. Written to --out: report.md, report.json, sheet.png, worst/ (the
three worst pictures by several figures, enlarged), pictures/ (all outputs), records.jsonl (results as they come: the
same command continues where it was interrupted).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# Neither imports PyTorch.
from sat_sr.evaluation.settings import KEYS
from sat_sr.sampling import COLOR_FIXES, SAMPLER_NAMES

WORST_BY = ("stlpips", "patch_grid", "block_grid", "block_lines", "flat_energy")
MANY_COLUMNS = 8  # from here on the cells of the sheet are smaller


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    data = parser.add_argument_group("data")
    data.add_argument("--images", required=True, metavar="DIR", help="folder of sharp pictures, searched through")
    data.add_argument("--scale", type=float, default=4.0, help="of the upsampling (default 4)")
    data.add_argument(
        "--degradation",
        default="none",
        metavar="none|mild|strong|clean",
        help="what makes the inputs: antialiased bicubic alone (default), or a Real-ESRGAN preset or mixture",
    )
    data.add_argument("--limit", type=int, metavar="N", help="use N pictures, spread over the folder")
    data.add_argument("--seed", type=int, default=0, help="of the degradation and of the sampling (default 0)")

    compared = parser.add_argument_group("what is compared (not given: the checkpoint's own default)")
    compared.add_argument(
        "--network", action="append", default=[], metavar="CKPT", help="a checkpoint; repeat to compare several"
    )
    compared.add_argument("--fast", action="store_true", help="the checkpoint's quick preset instead of its default")
    compared.add_argument("--sampler", choices=SAMPLER_NAMES)
    compared.add_argument("--num-steps", type=int)
    compared.add_argument("--sigma-max", type=float)
    compared.add_argument("--sigma-min", type=float)
    compared.add_argument("--color-fix", choices=COLOR_FIXES)
    compared.add_argument("--grid-shift", type=int, metavar="PX", help="of the grid of blocks from call to call")
    compared.add_argument(
        "--setting",
        action="append",
        default=[],
        metavar="KEY=VALUE,…",
        help='repeat to compare several: "sampler=dpmpp_2m,num_steps=10,sigma_max=5" or "preset=fast"; over the '
        f"options above; the keys are {', '.join(KEYS)}",
    )
    compared.add_argument(
        "--converged",
        metavar="KEY=VALUE,…",
        help="a setting of very many steps: how far the others are from its outputs (PSNR) is a column of its own",
    )
    compared.add_argument(
        "--grid",
        metavar="FILE.json",
        help='the same from a file: {"sampler": ["heun", "dpmpp_2m"], "num_steps": [4, 10]} is four settings',
    )

    parser.add_argument("--metrics", metavar="NAME,…", help="figures to compute (default: all that are installed)")
    parser.add_argument(
        "--bar",
        action="append",
        default=[],
        metavar="NAME=MOST",
        help='repeat for several: "patch_grid=1.15" counts the pictures whose figure is at most that',
    )
    parser.add_argument("--out", default="runs/evaluation", metavar="DIR", help="results (default: runs/evaluation)")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, mps")
    parser.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="of the network (default: by device)"
    )
    parser.add_argument("--sheet-pictures", type=int, default=8, metavar="N", help="rows of sheet.png (default 8)")
    parser.add_argument(
        "--brief", action="store_true", help="the table of means without settings, seconds and memory: to be quoted"
    )
    parser.add_argument("--no-sheets", action="store_true", help="write tables only: for long lists of settings")
    return parser


def settings_of(args: argparse.Namespace) -> list[dict]:
    """The options as a base, --setting and --grid over it; that of --converged comes first."""
    from sat_sr.evaluation.settings import combine, parse_setting, read_grid

    options = ("sampler", "num_steps", "sigma_max", "sigma_min", "color_fix", "grid_shift")
    base = {key: value for key in options if (value := getattr(args, key)) is not None}
    if args.seed:
        base["seed"] = args.seed
    if args.fast:
        base["preset"] = "fast"
    settings = [parse_setting(text) for text in args.setting]
    settings += read_grid(args.grid) if args.grid else []
    if args.converged is not None:
        settings = [parse_setting(args.converged), *(settings or [{}])]
    return combine(base, settings)


def main(arguments: list[str] | None = None) -> int:
    args = build_parser().parse_args(arguments)
    sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
    try:
        return evaluate(args, settings_of(args))
    except (ValueError, OSError, ModuleNotFoundError, MemoryError, FloatingPointError) as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nInterrupted. What is done is in {args.out}; the same command continues from there.", file=sys.stderr)
        return 130


def evaluate(args: argparse.Namespace, settings: list[dict]) -> int:
    """Imports come here: they take seconds, which --help and a mistyped option need not wait for."""
    import torch
    from tqdm import tqdm

    try:
        from sat_sr.evaluation.columns import parse_bars
        from sat_sr.evaluation.metrics import Metrics, choose_metrics
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}: pip install scikit-image scipy stlpips_pytorch") from error
    from sat_sr.evaluation.pairs import Pairs
    from sat_sr.evaluation.report import LEGEND, bar_table, mean_table, picture_table, write_report
    from sat_sr.evaluation.runner import Evaluation, Network, name_networks
    from sat_sr.image_io.storage import require_writable
    from sat_sr.inference.devices import resolve_device

    names, left_out = choose_metrics(args.metrics.replace(",", " ").split() if args.metrics else None)
    bars = parse_bars(args.bar, names)
    if args.sheet_pictures < 1:
        raise ValueError(f"--sheet-pictures {args.sheet_pictures}: at least 1, or --no-sheets")
    device, dtype = str(resolve_device(args.device)), args.dtype
    folder = Path(args.out)
    require_writable(folder)

    def load(path: str):
        from sat_sr.inference.upscaler import Upscaler

        return Upscaler.from_checkpoint(path, device=device, dtype=None if dtype == "auto" else getattr(torch, dtype))

    named = zip(args.network, name_networks(args.network), strict=True)
    networks = [Network(path, load, name) for path, name in named]
    pairs = Pairs(args.images, args.scale, args.degradation, args.seed, args.limit)
    for line in remarks(pairs, left_out):
        print(line)

    bar = tqdm(total=len(pairs) * len(settings) * len(networks), unit="picture", disable=None if networks else True)
    evaluation = Evaluation(pairs, Metrics(names, device=device), folder, device=device, say=bar.write)
    with bar:
        runs = evaluation.evaluate(
            [(n, n.runs(settings, {"device": device, "dtype": dtype})) for n in networks],
            tick=bar.update,
            converged=settings[0] if args.converged is not None else None,
        )

    if broken := evaluation.records.broken:
        where = f"{evaluation.records.path}: line {', '.join(map(str, broken))}"
        print(f"{where}: not a record, as an interruption leaves one; what it lost was computed again")
    if evaluation.resumed:
        print(f"{evaluation.resumed} of {bar.total} results were in {evaluation.records.path} already")
    paths = write_report(evaluation, runs, facts_of(args, device, networks), folder, bars)
    paths += [] if args.no_sheets else write_sheets(evaluation, runs, folder, args.sheet_pictures)
    if len(settings) * len(networks) <= 1:  # several would hide the means here: they are in report.md
        print(f"\n{runs[-1].title}\n{picture_table(evaluation, runs[-1])}")
    print(f"\n{mean_table(evaluation, runs, brief=args.brief)}\n\n{LEGEND}\n")
    if bars:
        print(f"Pictures that keep the bars:\n\n{bar_table(evaluation, runs, bars)}\n")
    print(f"Written: {', '.join(map(str, paths))}")
    return 0


def remarks(pairs, left_out: str):
    """What was not used, or not used whole: said once."""
    for name, reason in pairs.skipped.items():
        yield f"skipped {name}: {reason}"
    if pairs.ignored:
        some = [path.name for path in pairs.ignored[:3]] + ["…"] * (len(pairs.ignored) > 3)
        yield f"ignored {len(pairs.ignored)} files that are not pictures by their names: {', '.join(some)}"
    if pairs.cropped:
        yield f"cut {len(pairs.cropped)} pictures, right and below, to {pairs.scale:g} times a whole number of pixels"
    if left_out:
        yield left_out


def write_sheets(evaluation, runs, folder: Path, count: int) -> list[Path]:
    from sat_sr.evaluation.pairs import spread
    from sat_sr.evaluation.runner import write_png
    from sat_sr.evaluation.sheet import picture_sheet, worst_sheet

    own = [run for run in runs if run.network]
    shown = sorted(spread(evaluation.pairs.names, count))
    paths = [folder / "sheet.png"]
    write_png(paths[0], picture_sheet(evaluation, own, shown, side=512 if len(own) + 3 < MANY_COLUMNS else 256))
    for run in own:
        for column in evaluation.columns(run):
            sheet = worst_sheet(evaluation, run, column) if column.startswith(WORST_BY) else None
            if sheet is not None:
                write_png(folder / "worst" / f"{run.folder}-{column}.png", sheet)
    return [*paths, folder / "worst"] if own else paths


def facts_of(args: argparse.Namespace, device: str, networks) -> dict:
    """What a reader needs to run it again."""
    import datetime
    import platform
    import shlex

    import skimage
    import torch

    import sat_sr

    return {
        "command": shlex.join(["python", "scripts/evaluate.py", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "networks": {network.name: f"{network.path} (sha256 {network.digest}…)" for network in networks},
        "images": args.images,
        "scale": args.scale,
        "degradation": args.degradation,
        "seed": args.seed,
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else f"{device} {platform.machine()}",
        "dtype": args.dtype,
        "threads": torch.get_num_threads(),
        "versions": {"sat_sr": sat_sr.__version__, "torch": torch.__version__, "scikit-image": skimage.__version__},
    }


if __name__ == "__main__":
    sys.exit(main())
