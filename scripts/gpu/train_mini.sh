#!/usr/bin/env bash
# Trains the small model on a GPU, degradation there as well. The run is in OUT/run, its averaged weights in bfloat16 in
# OUT/mini.safetensors, and pictures made with them in OUT/samples. The same command again goes on with the run.
#
#   bash scripts/gpu/train_mini.sh         DATA=folder with train/ and valid/ shards (default: data/mini, as
#                                          scripts/make_mini_data.sh makes them); OUT=folder; ITERS=steps of the whole
#                                          schedule; LIMIT=seconds, after which the run saves itself and stops;
#                                          DRY_RUN=1: half a minute on the CPU
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

data=${DATA:-data/mini}
iterations=${ITERS:-8000}
settings=(--device cuda --micro-batch-size 64 --degrade-on-device --num-workers 8 --cache-mb 500)
intervals=(--log-interval 50 --eval-interval 1000 --save-interval 2000)
steps=10
pictures=examples
if [ "$dry" = 1 ]; then
    data=$out/train_mini_data iterations=6 steps=2 pictures=examples/bridge.png
    settings=(--device cpu --micro-batch-size 2 --num-workers 1 --threads 1 --hidden-size 48 --num-layers 2)
    intervals=(--log-interval 2 --eval-interval 6 --save-interval 3)
    if [ ! -d "$data" ]; then
        "$python" scripts/make_shards.py examples/flower_original.png "$data/train" --tile 160 --min-side 160
        "$python" scripts/make_shards.py examples/flower_original.png "$data/valid" --tile 160 --min-side 160
    fi
fi
[ -d "$data/train" ] || stop "no shards in $data/train: make them with scripts/make_mini_data.sh, or set DATA"

# Asked to stop, the run saves itself and ends with 75; timeout itself answers 124 when it had to ask.
run=$out/run code=0
timeout --signal=USR1 --kill-after=60 "$(left 90)" "$python" train_text2image_sr.py --preset mini \
    --train-data ";$data/train" --valid-data ";$data/valid" --save "$run" --keep-last 1 \
    --degradation clean:0.9,mild:0.1 --augment full --random-position --sigma-sampling stratified \
    --p-mean -0.3 --p-std 1.2 --gradient-weight 1 --seam-weight 8 --precision fp32 --tf32 \
    --optimizer muon --zero-stage 0 --lr 3e-3 --clip-grad 1 --lr-decay-style cosine --warmup 0.02 --ema-decay 0.999 \
    --train-iters "$iterations" --eval-iters 2 "${intervals[@]}" "${settings[@]}" 2>&1 | tee "$out/train.log" | tail -n 5 ||
    code=${PIPESTATUS[0]}
case $code in 0 | 75 | 124) ;; *)
    echo "train_mini.sh: the training ended with $code, see $out/train.log" >&2
    exit "$code"
    ;;
esac

"$python" scripts/convert_checkpoint.py "$run" "$out/mini.safetensors" --dtype bf16 \
    --sampler-defaults '{"name": "dpmpp_2m", "num_steps": 10, "sigma_max": 5.0}'
"$python" generate_sr_big.py --network "$out/mini.safetensors" --out-dir "$out/samples" --overwrite --num-steps "$steps" \
    --device "$device" --quiet "$pictures" ||
    echo "train_mini.sh: some sample pictures are missing" >&2 # the weights are what counts

"$python" - "$out" "$run" <<'PY'
import json
import sys
from pathlib import Path

out, run = map(Path, sys.argv[1:])
lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
train = [line for line in lines if line["kind"] == "train"]
print(f"\n{'step':>7} {'loss':>8} {'samples/s':>10} {'GiB':>6}")
for line in train[-1 :: -max(1, len(train) // 8)][::-1]:
    print(f"{line['step']:7} {line['loss']:8.4f} {line['samples_per_second']:10.1f} {line['memory_gib']:6.2f}")
for line in [line for line in lines if line["kind"] == "valid"][-1:]:
    print({key: round(value, 4) if isinstance(value, float) else value for key, value in line.items()})
size = (out / "mini.safetensors").stat().st_size
print(f"weights {size / 2**20:.1f} MiB in {out}/mini.safetensors, pictures in {out}/samples")
PY
