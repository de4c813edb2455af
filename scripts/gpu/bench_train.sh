#!/usr/bin/env bash
# A training step of the official size on a GPU: 512-px crops, one sample, bf16, AdamW: seconds, share of the peak, GiB; with
# and without recomputed activations. Pictures are made up, the CLIP input is left out (its weights are not needed).
#
#   bash scripts/gpu/bench_train.sh        OUT=folder for bench_train.json, and .log, which has the figures as they come;
#                                          LIMIT=seconds; DRY_RUN=1: tiny sizes on the CPU
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

side=544 steps=40 interval=20
sizes=(--preset official --vector-dim 0)
engine=(--device cuda --precision bf16)
if [ "$dry" = 1 ]; then
    side=136 steps=4 interval=2
    sizes=(--preset mini --num-layers 2 --hidden-size 32 --num-attention-heads 2)
    engine=(--device cpu --threads 1)
fi

work=$(mktemp -d) # data and checkpoints, of gigabytes, that nobody wants afterwards
trap 'rm -rf "$work"' EXIT
data=$work/data
"$python" scripts/gpu/make_pictures.py "$data/pictures" 16 "$side"
"$python" scripts/make_shards.py "$data/pictures" "$data/train" --min-side "$side"

bench() { # NAME flags…
    local name=$1
    shift
    if [ -n "${LIMIT:-}" ] && [ "$(left 25)" -lt 30 ]; then
        echo "$name: left out, no time" | tee -a "$out/bench_train.log"
        return
    fi
    echo "== $name" >>"$out/bench_train.log"
    timeout --kill-after=5 "$(left 25)" "$python" train_text2image_sr.py "${sizes[@]}" "${engine[@]}" \
        --train-data ";$data/train" --save "$work/train_$name" --micro-batch-size 1 --train-iters "$steps" \
        --log-interval "$interval" --save-interval 1000000 --eval-interval 1000000 --num-workers 4 "$@" >>"$out/bench_train.log" 2>&1 || {
        echo "$name: failed or stopped, see $out/bench_train.log"
        tail -n 3 "$out/bench_train.log"
    }
    rm -rf "$work/train_$name"/[0-9]*
}

rm -f "$out"/bench_train.{json,log}
bench plain
bench recomputed --checkpoint-activations
[ "$dry" = 1 ] || bench degraded_on_gpu --degrade-on-device

"$python" - "$work" "$device" "$out/bench_train.json" <<'PY'
import json
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, ".")
from sat_sr.config import InfDiTConfig
from sat_sr.model.counts import flops

work, device = Path(sys.argv[1]), sys.argv[2]
cuda = device == "cuda"


def matrix_peak() -> float:
    side, dtype = (8192, torch.bfloat16) if cuda else (512, torch.float32)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        a @ b
        if cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


peak, steps = matrix_peak(), {}
print(f"\n{torch.cuda.get_device_name() if cuda else 'CPU'}, torch {torch.__version__}, {peak / 1e12:.3g} TFLOP/s")
print("| case | s a step | data | forward | backward | optimizer | of peak | GiB |\n|---|---|---|---|---|---|---|---|")
for folder in sorted(work.glob("train_*/")):
    log = folder / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    lines = [line for line in lines if line["kind"] == "train"]
    if not lines:
        print(f"| {folder.name} | failed |")
        continue
    steps[folder.name] = last = lines[-1]
    config = InfDiTConfig.from_dict(json.loads((folder / "config.json").read_text()))
    blocks = config.image_size // config.image_block_size
    seconds = 1 / last["samples_per_second"]
    share = 3 * flops(config, (blocks, blocks)) / seconds / peak  # backward: twice the forward; recomputing not counted
    cells = [folder.name, f"{seconds:.3f}"]
    cells += [f"{last[f'seconds_{phase}']:.3f}" for phase in ("data", "forward", "backward", "step")]
    print("| " + " | ".join([*cells, f"{share:.0%}", f"{last['memory_gib']:.1f}"]) + " |")
name = torch.cuda.get_device_name() if cuda else "CPU"
report = {"machine": name, "torch": torch.__version__, "matrix_peak_flops": peak, "last_steps": steps}
Path(sys.argv[3]).write_text(json.dumps(report, indent=1) + "\n")
PY
