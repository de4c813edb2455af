#!/usr/bin/env bash
# Speed and memory of the official size on a GPU, random weights: sizes, modes, kernels, places, compiled or not; a whole
# run by the program; and 16384x16384 within 8 GiB.
#
#   bash scripts/gpu/bench_generate.sh [STEP]…   some of the steps below (default: all, the most telling first)
#                                          OUT=folder for bench_generate.json and .log, complete after every step, the
#                                          .log after every case; LIMIT=seconds; DRY_RUN=1: tiny sizes on the CPU
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

steps=("$@")
[ $# -gt 0 ] || steps=(modes places kernels whole_run within_8_gib compiled blocks)
sizes=(--preset official)
small=1024x1024 middle=2048x2048 large=4096x4096 huge=16384x16384
kernels=cudnn,flex,sdpa compiled=(merge,cudnn,flex --compile) places=none,state,all
picture=512 sampling=()
if [ "$dry" = 1 ]; then
    sizes=(--preset mini --num-layers 2 --hidden-size 32 --num-attention-heads 2)
    small=64x64 middle=64x96 large=96x96 huge=128x128
    kernels=sdpa,merge compiled=(merge) places=none
    picture=24 sampling=(--num-steps 2)
elif "$python" -c 'import flash_attn' 2>/dev/null; then
    kernels=$kernels,flash
fi

parts=$(mktemp -d)
trap 'rm -rf "$parts"' EXIT
rm -f "$out"/bench_generate.{json,log}

step() { # NAME command…: what it prints goes to the log as it comes
    local name=$1 note="" start=$SECONDS
    shift
    if [ -n "${LIMIT:-}" ] && [ "$(left 20)" -lt 20 ]; then
        echo "$name: left out, no time" | tee -a "$out/bench_generate.log"
        return
    fi
    echo "== $name" >>"$out/bench_generate.log"
    timeout --kill-after=5 "$(left 10)" "$@" >>"$out/bench_generate.log" 2>&1 || note=", failed or too slow"
    echo "$name: $((SECONDS - start)) s$note" | tee -a "$out/bench_generate.log"
    "$python" - "$parts" "$out/bench_generate.json" <<'PY'
import json
import sys
from pathlib import Path

paths = sorted(Path(sys.argv[1]).glob("*.json"), key=lambda path: path.stat().st_mtime)
steps = {path.stem: json.loads(text) for path in paths if (text := path.read_text())}
Path(sys.argv[2]).write_text(json.dumps(steps, indent=1) + "\n")
PY
}

bench() { # NAME arguments…
    step "$1" "$python" scripts/bench_generate.py "${sizes[@]}" --device "$device" --repeat 2 \
        --json "$parts/$1.json" "${@:2}"
}

whole_run() { # as a person would: from file to file, with the release's 20 steps of Heun
    step random_weights "$python" scripts/init_checkpoint.py "$parts/random.safetensors" "${sizes[@]}" --vector-dim 0 \
        --dtype bf16
    "$python" scripts/gpu/make_pictures.py "$parts/pictures" 1 "$picture"
    # shellcheck disable=SC2016  # it is the other shell that has these arguments
    step whole_run bash -c '"$@" >"$0"' "$parts/whole_run.json" "$python" generate_sr_big.py "$parts/pictures/0000.png" \
        --network "$parts/random.safetensors" --device "$device" --output "$parts/large.png" --json --seed 0 "${sampling[@]}"
}

for name in "${steps[@]}"; do
    case $name in
    modes) bench modes --canvas "$small" --canvas "$middle" --canvas "$large" --mode auto ;;
    places) bench places --canvas "$large" --mode full --offload "$places" ;;
    kernels) bench kernels --canvas "$middle" --mode auto --kernel "$kernels" ;;
    compiled) bench compiled --canvas "$middle" --mode auto --kernel "${compiled[@]}" ;;
    blocks) bench blocks --canvas "$middle" --mode ar,ar2 --block-batch 4 --offload "${places%,all}" ;;
    within_8_gib) bench within_8_gib --canvas "$huge" --mode auto --memory 8GiB --repeat 0 ;;
    whole_run) whole_run ;;
    *) stop "there is no step $name" ;;
    esac
done

"$python" - "$out" <<'PY'
import json
import sys
from pathlib import Path

steps = Path(sys.argv[1]) / "bench_generate.json"
reports = json.loads(steps.read_text()) if steps.exists() else {}
heads = ("step", "canvas", "mode", "kernel", "on host", "first call, s", "s a call", "39 calls, s", "of peak")
heads += ("GiB predicted", "measured", "reserved")
print("\n| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
notes = []
for name, report in reports.items():
    if "cases" not in report:  # of the program
        keys = ("status", "error", "output_size", "sampler", "num_steps", "kernel", "schedule", "seconds")
        keys += ("predicted_device_bytes", "peak_memory_bytes")
        notes.append(f"{name}: " + ", ".join(f"{key} {report[key]}" for key in keys if key in report))
        continue
    notes += [f"{name} failed: {what}" for what in report["failed"]]
    for case in report["cases"]:
        cells = [name, "x".join(map(str, case["canvas"])), case["mode"]]
        cells += [case["kernel"] + (" compiled" if case["compiled"] else ""), case["offload"]]
        cells += [f"{case['first_seconds']:.3f}", f"{case['seconds']:.3f}", f"{39 * case['seconds']:.1f}"]
        cells += [f"{case['share']:.0%}"]
        cells += [f"{(case[key] + case['weights_mib']) / 1024:.2f}" for key in ("predicted_mib", "measured_mib")]
        print("| " + " | ".join([*cells, f"{case['reserved_mib'] / 1024:.2f}"]) + " |")
    peak = max(max(case["peak_gflops"]) for case in report["cases"]) / 1000 if report["cases"] else 0
    machine = f"{report['date']}, {report['machine']}, {report['dtype']}, torch {report['versions']['torch']}"
    notes.append(f"{name}: {machine}, matrix products at {peak:.3g} TFLOP/s")
print(*notes, sep="\n")
PY
