"""train_text2image_sr_big_clip.sh: the official hyperparameters, and how many processes it starts where."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from sat_sr.config import InfDiTConfig
from sat_sr.training.arguments import parse_arguments
from sat_sr.training.deepspeed_config import read_deepspeed_config
from sat_sr.training.recipe import settle

ROOT = Path(__file__).parents[2]
LAUNCHER = "train_text2image_sr_big_clip.sh"
DOCUMENTED = re.findall(rf"^bash {LAUNCHER}(.*?)(?: +#.*)?$", (ROOT / "docs/training.md").read_text(), re.MULTILINE)


@pytest.fixture
def launch(tmp_path):
    """launch(arguments, variables, gpus, slices) -> what Python is called with, on a host with so many GPUs, each of
    them in so many slices."""
    shows = '#!/bin/sh\nprintf "%s\\n" "$@"\n'
    lists = """#!/bin/sh
for i in $GPUS; do
    echo "GPU $i: NVIDIA A100-SXM4-40GB (UUID: GPU-00$i)"
    for j in $SLICES; do echo "  MIG 1g.5gb     Device  $j: (UUID: MIG-00$i-$j)"; done
done
"""
    for name, text in (("python3", shows), ("nvidia-smi", lists)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    ours = ("SLURM", "PYTHON", "NPROC", "RANK", "WORLD", "CUDA")
    outside = {name: value for name, value in os.environ.items() if not name.startswith(ours)}

    def launch(arguments=(), variables=None, gpus=0, slices=0):
        environment = outside | (variables or {})
        environment |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "GPUS": " ".join(map(str, range(gpus)))}
        environment["SLICES"] = " ".join(map(str, range(slices)))
        command = ["bash", str(ROOT / LAUNCHER), *arguments]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        return result.stdout.splitlines()

    return launch


ALONE = ["-u", "train_text2image_sr.py"]
STEP = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_NTASKS": "16"}
BATCH = {"SLURM_PROCID": "0", "SLURM_NTASKS": "16", "SLURM_JOB_ID": "7"}  # sbatch's script before srun, salloc's shell


@pytest.mark.parametrize(
    "variables, gpus, ranks",
    [
        ({}, 0, 1),
        ({}, 1, 1),
        ({}, 8, 8),
        ({"NPROC": "2"}, 8, 2),
        ({"NPROC": "2"}, 0, 2),
        (STEP, 8, 1),
        (BATCH, 8, 8),
        (STEP | {"SLURM_PROCID": "0", "SLURM_STEP_ID": "4294967290"}, 8, 8),  # salloc's shell, where that is a step
        ({"RANK": "1", "WORLD_SIZE": "2"}, 8, 1),
        ({"CUDA_VISIBLE_DEVICES": "2,5"}, 8, 2),
        ({"CUDA_VISIBLE_DEVICES": "GPU-003,7"}, 8, 2),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, 0, 1),
        ({"CUDA_VISIBLE_DEVICES": ""}, 8, 1),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, 8, 1),  # Slurm's, for a job without GPUs
        ({"CUDA_VISIBLE_DEVICES": "0,1,-1,2"}, 8, 2),  # CUDA looks no further than -1
        ({"CUDA_VISIBLE_DEVICES": "0,1", "NPROC": "4"}, 8, 4),
    ],
)
def test_one_process_a_gpu_unless_a_launcher_has_numbered_this_one(launch, variables, gpus, ranks):
    called = launch(variables=variables, gpus=gpus)
    start = ALONE
    if ranks > 1:
        start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), ALONE[1]]
    assert called[: len(start)] == start
    assert called[len(start)].startswith("--")


def test_slices_of_a_gpu_are_no_gpus(launch):
    """CUDA shows a process one of them, also where several are named."""
    assert launch(gpus=2, slices=4)[:2] == launch(gpus=1, slices=4)[:2] == ALONE
    named = launch(gpus=1, slices=4, variables={"CUDA_VISIBLE_DEVICES": "MIG-000-0,MIG-000-1"})
    assert named[:2] == ALONE


@pytest.mark.parametrize("given, told", [({"SLURM_CPUS_PER_TASK": "7"}, "7"), ({}, "none")])
def test_the_cores_of_a_job_s_tasks_are_told_to_srun(tmp_path, given, told):
    """Since Slurm 22.05 srun reads them from this variable only. Where a rank has a node for itself that does not show:
    alone it is bound to all cores of the job there."""
    (tmp_path / "srun").write_text('#!/bin/sh\necho "cores: ${SRUN_CPUS_PER_TASK:-none}, flags: $*"\n')
    (tmp_path / "srun").chmod(0o755)
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SRUN"))}
    environment = outside | given | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(ROOT)}
    command = ["bash", str(ROOT / "scripts" / "train.sbatch"), "--lr", "1"]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert said == f"cores: {told}, flags: --kill-on-bad-exit=1 bash {LAUNCHER} --lr 1\n"


def test_the_hyperparameters_are_the_official_ones(launch):
    settings = parse_arguments(launch()[2:])
    assert settings.model == InfDiTConfig.preset("official") and settings.random_position
    assert (settings.train_iters, settings.warmup, settings.lr_decay_style) == (10**6, 0.01, "linear")
    assert (settings.ema_decay, settings.lr_dropout, settings.degradation) == (0.9999, 0.07, "strong")
    assert (settings.p_mean, settings.p_std, settings.sigma_sampling, settings.augment) == (-1.0, 1.4, "iid", "release")
    assert (settings.save_interval, settings.eval_interval, settings.eval_iters, settings.log_interval) == (
        5000, 1000, 1, 20,
    )  # fmt: skip
    assert settings.num_workers == 6 and settings.gradient_weight == settings.seam_weight == 0
    values = read_deepspeed_config(ROOT / settings.deepspeed_config)
    recipe = settle(settings, values, world_size=16, use_cuda=True)
    assert (recipe.batch, recipe.accumulation, recipe.precision, recipe.zero_stage) == (16, 1, "bf16", 1)
    assert (recipe.lr, recipe.betas, recipe.eps, recipe.weight_decay) == (1e-4, (0.9, 0.999), 1e-8, 1e-4)
    assert recipe.clip_grad == 0.1
    zero = recipe.engine["zero_optimization"]
    assert zero["overlap_comm"] and zero["reduce_scatter"]
    assert (zero["reduce_bucket_size"], zero["allgather_bucket_size"]) == (10**8, 10**9)


@pytest.mark.parametrize("line", DOCUMENTED)
def test_flags_after_it_override_those_inside_and_the_documented_ones_are_understood(launch, line):
    added = line.split()
    settings = parse_arguments(launch(added)[2:])
    for flag, value in zip(added[::2], added[1::2], strict=True):
        assert str(getattr(settings, flag[2:].replace("-", "_"))).replace("1e-05", "1e-5") == value


def test_the_page_documents_both_kinds_of_start():
    assert [bool(line.strip()) for line in DOCUMENTED] == [False, True]
