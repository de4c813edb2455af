# Common to the scripts of this folder. Sourced.
#
#   OUT      where results go (default: gpu_results)
#   DRY_RUN  1: the same steps at tiny sizes on the CPU, to see that they run
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-python3}
out=${OUT:-gpu_results}
dry=${DRY_RUN:-0}
mkdir -p "$out"
export PYTHONUNBUFFERED=1 WANDB_MODE=disabled TOKENIZERS_PARALLELISM=false

if [ "$dry" = 1 ]; then
    device=cpu
    export CUDA_VISIBLE_DEVICES=
else
    device=cuda
    "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || {
        echo "$(basename "$0"): PyTorch sees no CUDA device here; DRY_RUN=1 runs the same steps on the CPU" >&2
        exit 2
    }
fi

began=$SECONDS
left() { # SECONDS of the script's ten minutes that are left, less a margin to print the table
    local rest=$((${1:-570} - SECONDS + began))
    echo $((rest > 1 ? rest : 1)) # to timeout, 0 is for ever
}
