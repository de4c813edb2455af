#!/usr/bin/env bash
# Speed and memory of the official size on a GPU, random weights: sizes, modes, kernels, places, compiled or not; one whole
# run; and the largest canvas that a plan has for 8, 16 and 24 GiB.
#
#   bash scripts/gpu/bench_generate.sh     OUT=folder for bench_generate.json and .log, complete after every step;
#                                          LIMIT=seconds; DRY_RUN=1: tiny sizes on the CPU
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

sizes=(--preset official)
small=1024x1024 middle=2048x2048 large=4096x4096
if [ "$dry" = 1 ]; then
    sizes=(--preset mini --num-layers 2 --hidden-size 32 --num-attention-heads 2)
    small=64x64 middle=64x96 large=96x96
fi

parts=$(mktemp -d)
trap 'rm -rf "$parts"' EXIT
rm -f "$out"/bench_generate.{json,log}

bench() { # NAME arguments…: the most telling come first, should there be a limit
    local name=$1 note="" start=$SECONDS
    shift
    if [ -n "${LIMIT:-}" ] && [ "$(left 40)" -lt 20 ]; then
        echo "$name: left out, no time" | tee -a "$out/bench_generate.log"
        return
    fi
    timeout --kill-after=5 "$(left 30)" "$python" scripts/bench_generate.py "${sizes[@]}" --device "$device" \
        --repeat 2 --json "$parts/$name.json" "$@" >"$parts/log.txt" 2>&1 || note=" (failed or too slow)"
    echo "$name: $((SECONDS - start)) s$note"
    { echo "== $name$note"; cat "$parts/log.txt"; } >>"$out/bench_generate.log"
    "$python" - "$parts" "$out/bench_generate.json" <<'PY'
import json
import sys
from pathlib import Path

paths = sorted(Path(sys.argv[1]).glob("*.json"), key=lambda path: path.stat().st_mtime)
Path(sys.argv[2]).write_text(json.dumps({path.stem: json.loads(path.read_text()) for path in paths}, indent=1) + "\n")
PY
}

bench modes --canvas "$small" --canvas "$middle" --canvas "$large" --mode auto
if [ "$dry" != 1 ]; then
    bench compiled --canvas "$middle" --canvas "$large" --mode auto --compile
    bench compiled_cudnn --canvas "$middle" --mode auto --kernel cudnn --compile
    bench compiled_flex --canvas "$middle" --mode auto --kernel flex --compile
fi
bench blocks --canvas "$middle" --mode ar,ar2 --block-batch 4
if [ "$dry" != 1 ]; then
    bench kernel_cudnn --canvas "$middle" --mode auto --kernel cudnn
    bench state_on_host --canvas "$large" --mode full --offload state
    bench all_on_host --canvas "$large" --mode full --offload all
    bench whole_run --canvas "$middle" --mode auto --repeat 39
    bench kernel_flex --canvas "$middle" --mode auto --kernel flex
    bench kernel_sdpa --canvas "$middle" --mode auto --kernel sdpa
    bench block_state_on_host --canvas "$middle" --mode ar2 --block-batch 4 --offload state
    bench groups --canvas "$middle" --mode ar2 --block-batch 2
    if "$python" -c 'import flash_attn' 2>/dev/null; then
        bench kernel_flash --canvas "$middle" --mode auto --kernel flash
    fi
fi

"$python" - "$out" <<'PY'
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, ".")
from sat_sr.config import InfDiTConfig
from sat_sr.inference.planner import make_plan
from sat_sr.inference.workload import Workload

out = Path(sys.argv[1])
print()
heads = ("case", "canvas", "mode", "kernel", "offload", "s a call", "run of 39, s", "of peak", "predicted", "measured GiB")
print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
machine = set()
reports = out / "bench_generate.json"
for name, report in (json.loads(reports.read_text()) if reports.exists() else {}).items():
    machine.add(f"{report['date']}, {report['machine']}, {report['dtype']}, torch {report['versions']['torch']}")
    for case in report["cases"]:
        weights = case["weights_mib"]
        cells = [name, "x".join(map(str, case["canvas"])), case["mode"], case["kernel"], case["offload"]]
        calls = case["all_seconds"]
        run = sum(calls) if len(calls) == 39 else 39 * case["seconds"]
        cells += [f"{case['seconds']:.3f}", f"{run:.1f}", f"{case['share']:.0%}"]
        cells += [f"{(case[key] + weights) / 1024:.2f}" for key in ("predicted_mib", "measured_mib")]
        print("| " + " | ".join(cells) + " |")
print(*sorted(machine), sep="\n")
for gib in (8, 16, 24):
    sides = {}
    for offload in ("none", "state", "all"):
        for side in range(1024, 65537, 1024):
            try:
                work = Workload(InfDiTConfig(), (side, side), device="cuda", dtype=torch.bfloat16)
                make_plan(work, offload=offload, budget=gib << 30)
            except MemoryError:
                break
            sides[offload] = side
    planned = ", ".join(f"{offload} {side}{' or more' if side == 65536 else ''}" for offload, side in sides.items())
    print(f"largest square planned within {gib} GiB of the GPU, px a side, by what is on the host: {planned}")
PY
grep -h "^== .*failed" "$out/bench_generate.log" || true
