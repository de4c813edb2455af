#!/usr/bin/env python3
"""Time the degradation: one picture after another on one CPU thread (or on a device), with a table of its steps."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# Functions of sat_sr.data.degradation.
STEPS = {
    "blur": "_blur",
    "resize": "_resize",
    "noise": "_noise",
    "JPEG": "_jpeg",
    "range check": "_check",
    "8-bit rounding": "_to_8_bit",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", nargs="?", help="picture to degrade (default: synthetic texture)")
    parser.add_argument("--degradation", default="strong", help="preset or mixture (default: %(default)s)")
    parser.add_argument("--size", type=int, default=512, help="side of the pictures in pixels (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="pictures per call (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=200, help="timed calls (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    args = parser.parse_args()
    if args.samples < 1 or args.batch < 1:
        parser.error("--samples and --batch must be at least 1")

    import cProfile
    import pstats
    import statistics
    import time

    import torch

    from sat_sr.data.degradation import degrade
    from sat_sr.data.degradation_law import parse_degradation, sample_params

    torch.set_num_threads(args.threads)
    generator = torch.Generator(args.device).manual_seed(args.seed)
    try:
        mixture = parse_degradation(args.degradation)
        batch = load_batch(args.picture, args.size).to(args.device).repeat(args.batch, 1, 1, 1)
        for params in (sample_params(mixture, args.batch, generator) for _ in range(5)):  # fills the caches
            degrade(batch, params, generator)
    except (ValueError, OSError) as error:
        sys.exit(f"bench_degradation: {error}")

    wall, cpu = [], []
    profile = cProfile.Profile()
    for _ in range(args.samples):
        params = sample_params(mixture, args.batch, generator)
        profile.enable()
        start_wall, start_cpu = time.perf_counter(), time.process_time()
        degrade(batch, params, generator)
        if batch.is_cuda:
            torch.cuda.synchronize()
        wall.append(1e3 * (time.perf_counter() - start_wall))
        cpu.append(1e3 * (time.process_time() - start_cpu))
        profile.disable()

    print(
        f"{args.degradation}, {args.batch} × {args.size}×{args.size}, {args.device}, {args.threads} thread(s), "
        f"{args.samples} calls, milliseconds per call"
    )
    for name, times in (("wall clock", wall), ("CPU time", cpu)):
        print(
            f"  {name:<16}mean {statistics.mean(times):6.1f}   median {statistics.median(times):6.1f}   "
            f"max {max(times):6.1f}"
        )
    print_steps(pstats.Stats(profile), args.samples, statistics.mean(wall))


def load_batch(picture: str | None, size: int):
    """(1,3,size,size) in [0, 1]: the centre of a picture, or smooth structure with edges and fine grain."""
    import numpy as np
    import torch
    from PIL import Image, ImageOps

    if picture is None:
        y, x = torch.meshgrid(*(torch.linspace(0, 1, size),) * 2, indexing="ij")
        waves = torch.stack([torch.sin(40 * x * (1 + y)), torch.sign(torch.sin(25 * (x + y))), torch.cos(90 * x * y)])
        grain = torch.rand(3, size, size, generator=torch.Generator().manual_seed(0)) - 0.5
        return (0.5 + 0.3 * waves + 0.1 * grain).clamp(0, 1)[None]
    image = ImageOps.fit(Image.open(picture).convert("RGB"), (size, size))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255


def print_steps(stats, calls: int, total: float) -> None:
    """Cumulative time of each step's function, in milliseconds per call and per cent of the whole."""
    from sat_sr.data import degradation

    spent = {place[:2]: 1e3 * cumulative / calls for place, (_, _, _, cumulative, _) in stats.stats.items()}
    codes = {label: getattr(degradation, function).__code__ for label, function in STEPS.items()}
    rows = [(label, spent.get((code.co_filename, code.co_firstlineno), 0.0)) for label, code in codes.items()]
    rows.append(("other", total - sum(time for _, time in rows)))
    print(f"\n  {'step':<16}{'ms':>8}{'%':>7}")
    for label, time in rows:
        print(f"  {label:<16}{time:8.2f}{100 * time / total:7.1f}")


if __name__ == "__main__":
    main()
