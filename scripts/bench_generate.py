#!/usr/bin/env python3
"""Time network calls and take their memory: one line of a table for every canvas and mode.

    python scripts/bench_generate.py --num-layers 6 --hidden-size 320 --num-attention-heads 4 --canvas 1024x1024
    python scripts/bench_generate.py --preset mini --canvas 512x512 --mode full,auto --json mini.json
    python scripts/bench_generate.py --preset mini --canvas 512x512 --mode full,auto --against mini.json

Weights are random. "of peak" is the share of the matrix products that the same machine does in the same minute (large
ones, measured before and after each case). "of stock" sets against the call what PyTorch's own kernels need for its
matrix products and attentions alone, on the shapes of the plan's groups and with nothing around them. Memory is what a
call takes beside the weights and the canvas: predicted, and measured: on CUDA what PyTorch allocated, elsewhere how
much the process grew in the first call.

--mode, --kernel and --offload take several names: "merge,cudnn". A case that fails is told on standard error and in the
file of --json; the others are measured, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import gc
import itertools
import json
import math
import os
import platform
import shlex
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sat_sr.atomic_files import atomic_file
from sat_sr.config import PRESETS, InfDiTConfig
from sat_sr.inference.choices import MODES
from sat_sr.programs.allocator import keep_freed_memory

SIZES = [field.name for field in dataclasses.fields(InfDiTConfig)]
DTYPES = ("float32", "bfloat16", "float16")
MIB = 1 << 20


def main() -> int:
    args = parse_args()
    keep_freed_memory()  # as generate_sr_big.py does
    try:
        earlier = json.loads(args.against.read_text()) if args.against else None
        for report in measure(args):
            if args.json:  # after each case: what comes next may fail, or be stopped
                with atomic_file(args.json) as partial:
                    partial.write_text(json.dumps(report, indent=1) + "\n")
    except (ValueError, OSError, MemoryError) as error:
        print(f"bench_generate.py: {error}", file=sys.stderr)
        return 1
    print("\n".join(table(report, earlier)))
    return int(bool(report["failed"]))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--preset", choices=PRESETS, default="official", help="sizes of the network (default: %(default)s)")
    for name in SIZES:
        add(f"--{name.replace('_', '-')}", type=int, help="replaces that of the preset")
    add("--canvas", type=canvas, action="append", metavar="HxW", help="pixels, may be repeated (default: 1024x1024)")
    add("--mode", default="full,ar,ar2,auto", help="one or several of them (default: %(default)s)")
    add("--block-batch", type=int, default=4, help="of ar2 (default: %(default)s, as in generate_sr_big.py)")
    add("--kernel", default="auto", help="attention kernels (default: %(default)s)")
    add("--offload", default="auto", help="what lives on the host: auto, none, state, all (default: %(default)s)")
    add("--memory", help="device memory that may be used, weights included, like 8GiB (default: no limit)")
    add("--compile", action="store_true", help="compile what lies between the matrix products")
    add("--dtype", choices=DTYPES, help="of the network (default: bfloat16 on CUDA, float32 elsewhere)")
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps (default: %(default)s)")
    add("--threads", type=int, help="CPU threads (default: PyTorch's)")
    add("--repeat", type=int, default=3, metavar="N", help="timed calls, the median counts (default: %(default)s); "
        "0: the call before them counts, which has to warm up")  # fmt: skip
    add("--cpu-time", action="store_true", help="seconds of process CPU time, for a busy machine (with --threads 1)")
    add("--json", type=Path, metavar="OUT", help="write the figures there")
    add("--against", type=Path, metavar="FILE", help="print ratios to the figures of an earlier --json")
    args = parser.parse_args()
    args.modes = args.mode.split(",")
    if unknown := [mode for mode in args.modes if mode not in MODES]:
        parser.error(f"--mode {','.join(unknown)}: choose from {', '.join(MODES)}")
    if args.block_batch < 1 or (args.threads or 1) < 1:
        parser.error("--block-batch and --threads must be at least 1")
    if args.repeat < 0:
        parser.error("--repeat must be at least 0")
    changes = {name: value for name in SIZES if (value := getattr(args, name)) is not None}
    try:
        args.config = dataclasses.replace(PRESETS[args.preset], **changes)
        for height, width in (canvases := args.canvas or [(1024, 1024)]):
            if height % args.config.image_block_size or width % args.config.image_block_size:
                raise ValueError(f"canvas {height}x{width}: must be whole blocks of {args.config.image_block_size}")
    except ValueError as error:
        parser.error(str(error))
    args.canvases = canvases
    return args


def canvas(text: str) -> tuple[int, int]:
    """'512x4096' -> (height, width)."""
    try:
        height, width = (int(side) for side in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: write height x width, like 512x4096") from None
    if min(height, width) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: both sides must be at least 1")
    return height, width


def measure(args: argparse.Namespace) -> Iterator[dict]:
    """What --json writes, after each case."""
    import torch

    from sat_sr.byte_sizes import parse_bytes
    from sat_sr.inference.devices import default_dtype, resolve_device
    from sat_sr.model.counts import parameter_count

    if args.threads:
        torch.set_num_threads(args.threads)
    device = resolve_device(args.device)
    dtype = getattr(torch, args.dtype) if args.dtype else default_dtype(device)
    budget = parse_bytes(args.memory) if args.memory else None

    from sat_sr.model.inf_dit import InfDiT  # SAT takes seconds: not before what is asked for is known to be possible

    torch.manual_seed(0)
    # Made on the device, which is faster.
    model = InfDiT(args.config, device=device, dtype=dtype).eval().requires_grad_(False)
    block = args.config.image_block_size
    uncompiled = argparse.Namespace(**{**vars(args), "compile": False})  # the first case shows what that takes
    run_case(uncompiled, model, device, (block, block), "full", "auto", "auto", None)  # loads libraries
    report = {
        "date": date.today().isoformat(),
        "command": shlex.join(["python", "scripts/bench_generate.py", *sys.argv[1:]]),
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "clock": "process CPU time" if args.cpu_time else "wall clock",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "config": args.config.to_dict(),
        "parameters": parameter_count(args.config),
        "cases": [],
        "failed": [],
    }
    kernels, offloads = args.kernel.split(","), args.offload.split(",")
    for size, *choices in itertools.product(args.canvases, args.modes, kernels, offloads):
        try:
            report["cases"].append(run_case(args, model, device, size, *choices, budget))
        except Exception as error:  # whatever a kernel or a compiler raises: the other cases are wanted all the same
            if not isinstance(error, (ValueError, MemoryError)):
                traceback.print_exc()
            what = "{}x{}, mode {}, kernel {}, offload {}".format(*size, *choices)
            report["failed"].append(f"{what}: {error}")
            print(f"bench_generate.py: {what}: {error}", file=sys.stderr)
        yield report


def run_case(
    args, model, device, size: tuple[int, int], mode: str, kernel: str, offload: str, budget: int | None
) -> dict:
    """Plan a canvas, call the network once for its memory and --repeat times for its time."""
    import torch

    from sat_sr.inference.denoiser import Denoiser
    from sat_sr.inference.memory import weight_bytes
    from sat_sr.inference.planner import make_plan
    from sat_sr.inference.workload import Workload
    from sat_sr.model.attention_kernels import choose_kernel
    from sat_sr.model.counts import flops

    config = model.config
    kernel, _ = choose_kernel(kernel, device, model.dtype, config.head_dim, config.tokens_per_block)
    work = Workload(config, size, device=str(device), dtype=model.dtype, kernel=kernel)
    plan = make_plan(work, mode=mode, block_batch=args.block_batch, offload=offload, budget=budget)
    operations = flops(config, work.grid)
    # A plan that streams the weights must find them on the host: else what they took on the device would count.
    model.to("cpu")
    x, lr_upsampled = (torch.randn(1, 3, *size, device=device).clamp_(-1, 1).cpu() for _ in range(2))
    lr = lr_upsampled[..., ::4, ::4].contiguous()
    clip = torch.randn(1, config.vector_dim) if config.vector_dim else None
    denoiser = Denoiser(model, plan, lr, lr_upsampled, clip, compiled=args.compile)

    clock = time.process_time if args.cpu_time else time.perf_counter
    synchronize = functools.partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None

    def call() -> float:
        """Seconds of a network call."""
        start = clock()
        denoiser(x, 1.0)
        synchronize()
        return clock() - start

    peaks = [matrix_peak(device, model.dtype, clock, synchronize)]
    weights, _ = weight_bytes(work, plan.offload)
    with growth(device) as memory:
        first = call()
    measured = memory() - (weights if device.type == "cuda" else x.nbytes)
    reserved = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else 0
    seconds, stock = [], []
    for _ in range(args.repeat or 1):
        seconds.append(call() if args.repeat else first)
        # In turn with the calls: a machine's speed wanders.
        stock.append(stock_seconds(config, plan, device, model.dtype, clock, synchronize))
    peaks.append(matrix_peak(device, model.dtype, clock, synchronize))
    return {
        "canvas": list(size),
        "mode": mode,
        "plan": str(denoiser.plan.schedule),
        "offload": plan.offload,
        "kernel": kernel,
        "compiled": args.compile,
        "first_seconds": first,
        "seconds": statistics.median(seconds),
        "all_seconds": seconds,
        "tflop": operations / 1e12,
        "gflops": operations / statistics.median(seconds) / 1e9,
        "peak_gflops": peaks,
        "share": operations / statistics.median(seconds) / 1e9 / statistics.mean(peaks),
        "stock_seconds": stock,
        "of_stock": statistics.median(stock) / statistics.median(seconds),
        "weights_mib": weights / MIB,
        "predicted_mib": (plan.device_bytes - weights) / MIB,
        "measured_mib": measured / MIB,
        "reserved_mib": reserved / MIB,  # by PyTorch's allocator on a GPU, weights included
    }


def matrix_peak(device, dtype, clock: Callable[[], float], synchronize: Callable[[], None]) -> float:
    """GFLOP/s of a large matrix product: the best of a few."""
    import torch

    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best = math.inf
    for _ in range(10):
        start = clock()
        a @ b
        synchronize()
        best = min(best, clock() - start)
    return 2 * side**3 / best / 1e9


def stock_seconds(config: InfDiTConfig, plan, device, dtype, clock, synchronize) -> float:
    """Seconds of a call's matrix products and attentions by stock kernels, group by group, with nothing around them."""
    import torch
    import torch.nn.functional as F

    c, heads, dim, p = config.hidden_size, config.num_attention_heads, config.head_dim, config.patch_size
    blocks, tokens, lr_tokens = math.prod(plan.schedule.group), config.tokens_per_block, config.lr_features_per_side**2

    def linear(n_in: int, n_out: int, rows: int = blocks * tokens) -> Callable[[], object]:
        sizes = (rows, n_in), (n_out, n_in), n_out
        x, weight, bias = (torch.randn(size, device=device, dtype=dtype) for size in sizes)
        return lambda: F.linear(x, weight, bias)

    def attention(keys: int) -> Callable[[], object]:
        q, k, v = (torch.randn(blocks, heads, n, dim, device=device, dtype=dtype) for n in (tokens, keys, keys))
        return lambda: F.scaled_dot_product_attention(q, k, v)

    layer = [linear(c, 3 * c), attention(4 * tokens), linear(c, c), linear(c, 4 * c), linear(4 * c, c)]
    features = blocks * lr_tokens
    cross = [linear(12, c, features), linear(c, 2 * c, features), linear(c, c), attention(9 * lr_tokens), linear(c, c)]
    ends = [linear(6 * p * p, c), linear(c, 3 * p * p)]

    def seconds(kernels: list[Callable[[], object]]) -> float:
        runs = []
        for _ in range(3):
            start = clock()
            for kernel in kernels:
                kernel()
            synchronize()
            runs.append(clock() - start)
        return statistics.median(runs)

    with torch.no_grad():
        a_group = config.num_layers * seconds(layer) + seconds(cross) + seconds(ends)
    return a_group * plan.schedule.blocks / blocks


@contextlib.contextmanager
def growth(device) -> Iterator[Callable[[], int]]:
    """Gives what tells afterwards how many bytes the body took: of the device, or by how much the process grew."""
    import torch

    from sat_sr.measure import MIB, measured

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    before = 0 if device.type == "cuda" else resident_bytes()
    with measured(device) as cost:
        yield lambda: int(cost.peak_mib * MIB) - before


def resident_bytes() -> int:
    """Of this process now, after what is free has been given back."""
    import ctypes

    if sys.platform != "linux":
        return 0
    getattr(ctypes.CDLL(None), "malloc_trim", lambda keep: None)(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def processor() -> str:
    """Name of the CPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def table(report: dict, earlier: dict | None) -> Iterator[str]:
    """The figures as Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    config = report["config"]
    yield (
        f"{report['date']}, {report['machine']}, {report['device']}, {report['threads']} thread(s), {report['dtype']}, "
        f"{report['clock']}; {versions}  "
    )
    yield (
        f"{config['num_layers']} layers, width {config['hidden_size']}, {config['num_attention_heads']} heads, "
        f"blocks of {config['image_block_size']} pixels, {report['parameters']:,} parameters  "
    )
    yield f"`{report['command']}`"
    yield ""
    heads = ["canvas", "mode", "plan", "kernel", "s a call", "GFLOP/s", "of peak", "of stock"]
    heads += ["MiB predicted", "MiB measured"]
    heads += ["speed", "memory"] if earlier else []
    yield "| " + " | ".join(heads) + " |"
    yield "|" + "|".join("---" if i < 4 else "---:" for i in range(len(heads))) + "|"
    before = {key(case): case for case in earlier["cases"]} if earlier else {}
    for case in report["cases"]:
        height, width = case["canvas"]
        plan = case["plan"] + ("" if case["offload"] == "none" else f", {case['offload']} on the host")
        cells = [f"{height}×{width}", case["mode"], plan, case["kernel"] + (" compiled" if case["compiled"] else "")]
        cells += [f"{case['seconds']:.3g}", f"{case['gflops']:.0f}", f"{case['share']:.0%}", f"{case['of_stock']:.0%}"]
        cells += [f"{case['predicted_mib']:.0f}", f"{case['measured_mib']:.0f}"]
        if earlier:
            then = before.get(key(case))
            cells += ratios(case, then) if then else ["new", "new"]
        yield "| " + " | ".join(cells) + " |"


def key(case: dict) -> tuple:
    return (*case["canvas"], case["mode"])


def ratios(case: dict, then: dict) -> list[str]:
    """Faster and smaller than then: above and below 1."""
    speed, memory = then["seconds"] / case["seconds"], case["measured_mib"] / then["measured_mib"]
    return [f"×{speed:.2f}", f"×{memory:.2f}"]


if __name__ == "__main__":
    sys.exit(main())
