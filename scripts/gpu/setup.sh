# Common to the scripts of this folder. Sourced; `needs` are the modules that a script wants beside sat_sr's.
#
#   OUT      folder for the results (default: gpu_results)
#   LIMIT    seconds after which to come to an end: what is left is stopped or left out (default: none)
#   PYTHON   with a PyTorch that sees the GPU (default: python3)
#   WHEELS   folder of wheels, for a machine without a network: what PYTHON lacks is installed from there, into a folder of
#            its own. Made where there is one, with the same Python: pip wheel -w wheels -c scripts/constraints.txt ".[dev]"
#   DRY_RUN  1: the same steps at tiny sizes on the CPU, to see that they run
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-python3}
out=${OUT:-gpu_results}
dry=${DRY_RUN:-0}
mkdir -p "$out"
export PYTHONUNBUFFERED=1 WANDB_MODE=disabled TOKENIZERS_PARALLELISM=false

stop() {
    echo "$(basename "$0"): $1" >&2
    exit 2
}

if [ "$dry" = 1 ]; then
    device=cpu
    export CUDA_VISIBLE_DEVICES=
else
    device=cuda
    "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
        stop "PyTorch sees no CUDA device here; DRY_RUN=1 runs the same steps on the CPU"
fi

imports() { # sets `said` to what Python says when something is missing
    said=$("$python" -c 'import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]' \
        sat_sr.inference.denoiser sat_sr.cli.worker sat_sr.training.trainer ${needs:-} 2>&1)
}

if [ -n "${WHEELS:-}" ]; then
    packages=${XDG_CACHE_HOME:-${HOME:-$PWD}/.cache}/sat_sr_packages
    export PYTHONPATH=$packages${PYTHONPATH:+:$PYTHONPATH}
    # PyTorch and what belongs to it stay those that see the GPU; sat_sr is this checkout.
    imports || find "$WHEELS" -name '*.whl' ! -name 'torch-*' ! -name 'triton-*' ! -name 'nvidia_*' ! -name 'sat_sr-*' -print0 |
        xargs -0 "$python" -m pip install --quiet --no-index --no-deps --upgrade --target "$packages" ||
        stop "the wheels of $WHEELS cannot be installed, pip's reason is above"
fi
imports || stop "$(tail -n 1 <<<"$said"): install it beside PyTorch, or give WHEELS, a folder of wheels that has it"

began=$SECONDS
left() { # MARGIN: seconds to LIMIT less a margin for what comes after it. For timeout: 0 is for ever
    local rest
    [ -n "${LIMIT:-}" ] || { echo 0 && return; }
    rest=$((LIMIT - SECONDS + began - $1))
    echo $((rest > 1 ? rest : 1))
}
