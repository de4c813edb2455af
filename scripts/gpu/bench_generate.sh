#!/usr/bin/env bash
# Speed and memory of the official size on a GPU, random weights: sizes, modes, kernels, places, compiled or not; one whole
# run; and the largest canvas that a plan has for 8, 16 and 24 GiB.
#
#   bash scripts/gpu/bench_generate.sh     OUT=folder for the JSON; DRY_RUN=1: tiny sizes on the CPU
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

sizes=(--preset official)
small=1024x1024 middle=2048x2048 large=4096x4096
if [ "$dry" = 1 ]; then
    sizes=(--preset mini --num-layers 2 --hidden-size 32 --num-attention-heads 2)
    small=64x64 middle=64x96 large=96x96
fi

bench() { # NAME arguments…: the most telling come first, as time may run out
    local name=$1
    shift
    if [ "$(left 520)" -lt 20 ]; then
        echo "$name: left out, no time" >>"$out/left_out.txt"
        return
    fi
    timeout "$(left 550)" "$python" scripts/bench_generate.py "${sizes[@]}" --device "$device" --repeat 2 \
        --json "$out/$name.json" "$@" >"$out/$name.txt" 2>&1 || {
        echo "$name: failed or too slow, see $out/$name.txt" >>"$out/left_out.txt"
    }
}

rm -f "$out"/*.json "$out/left_out.txt"
bench modes --canvas "$small" --canvas "$middle" --canvas "$large" --mode auto,full
bench blocks --canvas "$middle" --mode ar,ar2 --block-batch 4
bench groups --canvas "$middle" --mode ar2 --block-batch 2
if [ "$dry" != 1 ]; then
    bench state_on_host --canvas "$large" --mode full --offload state
    bench all_on_host --canvas "$large" --mode full --offload all
    bench whole_run --canvas "$middle" --mode auto --repeat 39
    for kernel in sdpa merge flash flex; do
        bench "kernel_$kernel" --canvas "$middle" --mode auto --kernel "$kernel"
    done
    bench compiled --canvas "$middle" --canvas "$large" --mode auto --compile
    bench block_state_on_host --canvas "$middle" --mode ar2 --block-batch 4 --offload state
fi

"$python" - "$out" "$device" <<'PY'
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, ".")
from sat_sr.config import InfDiTConfig
from sat_sr.inference.memory import make_plan

out, device = Path(sys.argv[1]), sys.argv[2]
print()
heads = ("case", "canvas", "mode", "kernel", "offload", "s a call", "run of 39, s", "of peak", "predicted", "measured GiB")
print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
machine = set()
for path in sorted(out.glob("*.json"), key=lambda path: path.stat().st_mtime):
    report = json.loads(path.read_text())
    machine.add(f"{report['date']}, {report['machine']}, {report['dtype']}, torch {report['versions']['torch']}")
    for case in report["cases"]:
        weights = case["weights_mib"]
        cells = [path.stem, "x".join(map(str, case["canvas"])), case["mode"], case["kernel"], case["offload"]]
        calls = case["all_seconds"]
        run = sum(calls) if len(calls) == 39 else 39 * case["seconds"]
        cells += [f"{case['seconds']:.3f}", f"{run:.1f}", f"{case['share']:.0%}"]
        cells += [f"{(case[name] + weights) / 1024:.2f}" for name in ("predicted_mib", "measured_mib")]
        print("| " + " | ".join(cells) + " |")
print(*sorted(machine), sep="\n")
for gib in (8, 16, 24):
    sides = {}
    for offload in ("none", "state", "all"):
        for side in range(1024, 65537, 1024):
            try:
                make_plan(
                    InfDiTConfig(), (side, side), offload=offload, budget=gib << 30, device="cuda", dtype=torch.bfloat16
                )
            except MemoryError:
                break
            sides[offload] = side
    planned = ", ".join(f"{offload} {side}{' or more' if side == 65536 else ''}" for offload, side in sides.items())
    print(f"largest square planned within {gib} GiB of the GPU, px a side, by what is on the host: {planned}")
PY
[ ! -e "$out/left_out.txt" ] || cat "$out/left_out.txt"
