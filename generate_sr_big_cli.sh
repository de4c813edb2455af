#!/usr/bin/env bash
# Upscale pictures:   bash generate_sr_big_cli.sh [IMAGE | FOLDER | LIST.txt …] [flags of generate_sr_big.py]
# Without pictures it asks for them, one path after the other. The first run sets everything up.
# Under Slurm (srun bash generate_sr_big_cli.sh list.txt) the pictures are shared among the tasks.
set -euo pipefail
root=$(cd "$(dirname "$0")" && pwd)

# ---- edit here --------------------------------------------------------------------------------------------------------
NETWORK=""               # weights; empty: the official checkpoint if it lies in ckpt/, else the small one that ships there
INFERENCE_TYPE="auto"    # auto: whatever fits the memory, fastest first; or full | ar2 | ar: the same picture
BLOCK_BATCH=4            # ar2 computes BLOCK_BATCH x BLOCK_BATCH blocks at a time
SCALE=4                  # output size / input size
STEPS=""                 # sampling steps; empty: what suits the weights (20 for the official ones)
OUT_DIR="samples"        # where NAME_sr.png goes
# -----------------------------------------------------------------------------------------------------------------------

source "$root/scripts/environment.sh"

arguments=(--inference_type "$INFERENCE_TYPE" --block_batch "$BLOCK_BATCH" --out-dir "$OUT_DIR")
[ -z "$NETWORK" ] || arguments+=(--network "$NETWORK")
[ -z "$STEPS" ] || arguments+=(--num-steps "$STEPS")
# A size given on the command line replaces the scale above.
case " $* " in
    *" --size"* | *" --width"* | *" --height"* | *" --long-side"* | *" --long_side"* | *" --from-picture"* | *" --from_picture"*) ;;
    *) arguments+=(--infer_sr_scale "$SCALE") ;;
esac
exec "$PYTHON" "$root/generate_sr_big.py" "${arguments[@]}" "$@"
