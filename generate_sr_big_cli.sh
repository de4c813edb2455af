#!/usr/bin/env bash
# Upscale pictures:   bash generate_sr_big_cli.sh [IMAGE | FOLDER | LIST.txt ...] [flags of generate_sr_big.py]
# Without pictures it asks for them, one path after the other. The first run sets everything up.
# Under Slurm (srun bash generate_sr_big_cli.sh list.txt) the pictures are shared among the tasks.
set -euo pipefail
script=$(readlink -f "$0" 2>/dev/null || echo "$0")
root=$(cd "$(dirname "$script")" && pwd)
[ -e "$root/generate_sr_big.py" ] || root=${SLURM_SUBMIT_DIR:-$root} # sbatch runs a copy of this file from elsewhere
if [ ! -e "$root/generate_sr_big.py" ]; then
    echo "error: there is no generate_sr_big.py in $root: call this script in the repository, or sbatch it from there" >&2
    exit 2
fi

# ---- edit here --------------------------------------------------------------------------------------------------------
NETWORK=""               # weights; empty: the official checkpoint if it lies in ckpt/, else the small one that ships there
INFERENCE_TYPE="auto"    # auto: whatever fits the memory, fastest first; or full | ar2 | ar: the same picture
BLOCK_BATCH=4            # ar2 computes BLOCK_BATCH x BLOCK_BATCH blocks at a time
SCALE=4                  # output size / input size
STEPS=""                 # sampling steps; empty: what suits the weights (20 for the official ones)
OUT_DIR="samples"        # where NAME_sr.png goes
# -----------------------------------------------------------------------------------------------------------------------

source "$root/scripts/environment.sh" "" ""  # no extras; without words it would see the pictures

# What is given on the command line overrides the settings above.
type=$INFERENCE_TYPE size="" place="" steps="" before=""
for argument in "$@"; do
    flag=${argument//_/-}
    [ "$before" != --inference-type ] || type=$argument
    case "$flag" in
        --) break ;;
        --inference-type=*) type=${argument#*=} ;;
        --fast | --num-steps*) steps=given ;;
        --from-picture*) size=given steps=given ;;
        --size* | --width* | --height* | --long-side* | --infer-sr-scale*) size=given ;;
        -o* | --output* | --out-dir*) place=given ;;
    esac
    before=$flag
done
arguments=()
[ "$INFERENCE_TYPE" = auto ] || arguments+=(--inference_type "$INFERENCE_TYPE")
[ -z "$NETWORK" ] || arguments+=(--network "$NETWORK")
[ -z "$STEPS" ] || [ -n "$steps" ] || arguments+=(--num-steps "$STEPS")
[ "$type" != ar2 ] || arguments+=(--block_batch "$BLOCK_BATCH")
[ -n "$size" ] || arguments+=(--infer_sr_scale "$SCALE")
[ -n "$place" ] || arguments+=(--out-dir "$OUT_DIR")
exec "$PYTHON" "$root/generate_sr_big.py" ${arguments[@]+"${arguments[@]}"} "$@"
