#!/usr/bin/env bash
# Train the official size, conditioned by CLIP, with the official hyperparameters. Edit below, or append flags: of a
# flag that comes twice the last one counts.
#
#   bash train_text2image_sr_big_clip.sh [FLAGS]                 this machine: one rank per GPU by torchrun, or one on the CPU
#   srun --kill-on-bad-exit=1 --cpus-per-task=8 bash train_text2image_sr_big_clip.sh [FLAGS]
#                                                                one rank per Slurm task; all end with one. srun does not
#                                                                take --cpus-per-task over from salloc or sbatch
#   sbatch scripts/train.sbatch [FLAGS]                          several nodes, requeued until done
#
# The same command again continues where the last checkpoint was saved.
# PYTHON: the interpreter (python3). NPROC: ranks on this machine (one a GPU).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

train_data=";data/train"   # ';DIR1,DIR2*3': folders of shards, DIR2 three times as often; or globs, brace lists, URLs
valid_data=";data/valid"
name=inf-dit-big-clip

model=(
    --num-layers 28 --hidden-size 1280 --num-attention-heads 16 --vector-dim 768
    --patch-size 4 --image-block-size 128 --image-size 512 --random-position
)
# The CLIP tower: from the checkpoint that --load names, else --clip-model FILE_OR_FOLDER (default: the hub's cache).
start=(
    # --load ckpt/mp_rank_00_model_states.pt
)
recipe=(
    --train-iters 1000000 --deepspeed_config sat_sr/training/ds_config_zero_clip.json
    --warmup 0.01 --lr-decay-style linear --ema-decay 0.9999
    --lr-dropout 0.07 --degradation strong --seed 1234
    # --checkpoint-activations   # where memory is short: the same gradients, a third more computing
    # --degrade-on-device        # where the CPUs are slow: the degradation on the GPU
)
run=(
    --experiment-name "$name" --save ./ckpt --save-interval 5000 --keep-last 3
    --eval-interval 1000 --eval-iters 1 --log-interval 20
    --train-data "$train_data" --valid-data "$valid_data" --num-workers 6
)

python=${PYTHON:-python3}
command=(train_text2image_sr.py "${model[@]}" ${start[@]+"${start[@]}"} "${recipe[@]}" "${run[@]}" "$@")

# A launcher has numbered this process already: it is one rank. The shell of an interactive allocation is a step, too, of
# a number beyond 4 billion.
if [[ ${SLURM_STEP_ID:-} =~ ^[0-9]{1,9}$ && -n ${SLURM_PROCID:-} ]] || [[ -n ${RANK:-} ]]; then
    exec "$python" -u "${command[@]}"
fi

visible_gpus() { # as many as CUDA would show
    local listed shown=0 gpu
    listed=$(nvidia-smi --list-gpus 2> /dev/null) || listed=""
    if [ -z "$listed" ]; then
        echo 0
    elif [[ $listed == *MIG* || ${CUDA_VISIBLE_DEVICES-} == *MIG* ]]; then
        echo 1 # of slices CUDA shows a process one only
    elif [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
        for gpu in ${CUDA_VISIBLE_DEVICES//,/ }; do
            # CUDA stops at the first that is none: -1, or Slurm's NoDevFiles.
            [[ $gpu =~ ^([0-9]+|GPU-.*)$ ]] || break
            shown=$((shown + 1))
        done
        echo "$shown"
    else
        grep -c '^GPU ' <<< "$listed" || true
    fi
}

ranks=${NPROC:-$(visible_gpus)}
if [ "$ranks" -gt 1 ]; then
    exec "$python" -m torch.distributed.run --standalone --nproc-per-node "$ranks" "${command[@]}"
fi
exec "$python" -u "${command[@]}"
