"""DeepSpeed's JSON, checked: DeepSpeed itself passes over a misspelt key in silence, and stumbles over wrong values."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ADAMW = ("adam", "adamw", "fusedemaadam")  # last part of optimizer.type; DeepSpeed's Adam is AdamW, SAT's has an EMA


class Rule(NamedTuple):
    """Whether a value may be, and what may be instead, to be read after "must be"."""

    fits: Callable[[Any], bool]
    wanted: str


def _number(value: Any, above: float = -math.inf) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and above < value < math.inf


def _two_shares(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(_number(v) and 0 <= v < 1 for v in value)


YES_NO = Rule(lambda value: isinstance(value, bool), "true or false")
COUNT = Rule(lambda value: isinstance(value, int) and _number(value, 0), "a whole number from 1 on")
NUMBER = Rule(lambda value: _number(value) and value >= 0, "a number from 0 on")
POSITIVE = Rule(lambda value: _number(value, 0), "a number above 0")
BETAS = Rule(_two_shares, "two numbers, such as [0.9, 0.999]")
DTYPE = Rule(lambda value: value in ("fp32", "fp16", "bf16"), '"fp32", "fp16" or "bf16"')
TAG_VALIDATION = Rule(
    lambda value: isinstance(value, str) and value.lower() in ("warn", "ignore", "fail"), '"Warn", "Ignore" or "Fail"'
)
TEXT = Rule(lambda value: value is None or isinstance(value, str), "a text")
ANYTHING = Rule(lambda value: True, "")  # here; looked at below, in recipe.py, or by DeepSpeed itself
NO_SPARSE = Rule(lambda value: value is False, "false: the network has no sparse gradients")
NOT_UNIVERSAL = Rule(lambda value: value is False, "false: a run resumes on other ranks without that")
NOT_IN_TURNS = Rule(
    lambda value: value is False,
    "false: with it DeepSpeed loses track of which weights lie where, and the averaged ones that are saved are wrong",
)
SHARED_FOLDER = Rule(lambda value: value is False, "false: a run's checkpoints lie in the --save folder of all nodes")

# "auto" is for programs that fill it in, and fits none of these.
KEYS: dict[str, Any] = {
    "train_batch_size": COUNT,
    "train_micro_batch_size_per_gpu": COUNT,
    "gradient_accumulation_steps": COUNT,
    "gradient_clipping": NUMBER,
    "gradient_predivide_factor": POSITIVE,
    "prescale_gradients": YES_NO,
    "sparse_gradients": NO_SPARSE,
    "communication_data_type": DTYPE,
    "data_types": {"grad_accum_dtype": DTYPE},
    "steps_per_print": COUNT,
    "wall_clock_breakdown": YES_NO,
    "memory_breakdown": YES_NO,
    "dump_state": YES_NO,
    "bf16": {"enabled": YES_NO},
    "fp16": {
        "enabled": YES_NO,
        **dict.fromkeys(
            ("loss_scale", "initial_scale_power", "loss_scale_window", "hysteresis", "consecutive_hysteresis",
             "min_loss_scale", "auto_cast", "fp16_master_weights_and_grads"), ANYTHING,
        ),
    },
    "optimizer": {
        "type": ANYTHING,
        "params": {"lr": POSITIVE, "betas": BETAS, "eps": POSITIVE, "weight_decay": NUMBER},
    },
    "zero_allow_untested_optimizer": YES_NO,
    "zero_optimization": {  # what DeepSpeed documents for stages 0 to 2
        "stage": ANYTHING,
        "reduce_bucket_size": COUNT,
        "allgather_bucket_size": COUNT,
        **dict.fromkeys(
            ("allgather_partitions", "overlap_comm", "reduce_scatter", "contiguous_gradients",
             "load_from_fp32_weights", "use_multi_rank_bucket_allreduce", "ignore_unused_parameters"), YES_NO,
        ),
        "round_robin_gradients": NOT_IN_TURNS,  # 0.19.8 deals the weights out by one list and looks them up by another
        "cpu_offload": ANYTHING,
        "offload_optimizer": ANYTHING,
    },
    "activation_checkpointing": dict.fromkeys(
        ("partition_activations", "cpu_checkpointing", "contiguous_memory_optimization", "number_checkpoints",
         "synchronize_checkpoint_boundary", "profile"), ANYTHING,
    ),
    "comms_logger": dict.fromkeys(("enabled", "verbose", "prof_all", "debug"), YES_NO) | {"prof_ops": ANYTHING},
    "flops_profiler": {
        "enabled": YES_NO, "detailed": YES_NO, "profile_step": COUNT, "top_modules": COUNT, "output_file": TEXT,
        "module_depth": ANYTHING, "recompute_fwd_factor": NUMBER,
    },
    "checkpoint": {
        "tag_validation": TAG_VALIDATION,
        "parallel_write": {"pipeline_stage": YES_NO},
        "load_universal": NOT_UNIVERSAL,
        "use_node_local_storage": SHARED_FOLDER,
    },
}  # fmt: skip


def read_deepspeed_config(path: str | Path) -> dict:
    """The JSON object of a DeepSpeed configuration file.

    Raises ValueError for a file that is missing, no JSON, has a key that means nothing (the nearest one is named), or a
    value that cannot be used.
    """
    path = Path(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"--deepspeed-config {path}: cannot be read ({error.strerror})") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"--deepspeed-config {path}: not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"--deepspeed-config {path}: must hold one JSON object, not {type(values).__name__}")
    _check(values, KEYS, str(path))
    _check_optimizer(values.get("optimizer", {}).get("type", "AdamW"), path)
    _check_offload(values.get("zero_optimization", {}), path)
    return values


def _check(section: dict, keys: dict[str, Any], path: str, name: str = "") -> None:
    where = f"--deepspeed-config {path}" + (f", {name}" if name else "")
    for key, value in section.items():
        if key not in keys:
            near = difflib.get_close_matches(key, keys, n=1)
            hint = f"; is {near[0]} meant?" if near else f"; known are {', '.join(keys)}"
            raise ValueError(f"{where}: unknown key {key!r}{hint}")
        rule = keys[key]
        if isinstance(rule, Rule):
            if not rule.fits(value):
                raise ValueError(f"{where}: {key} is {value!r}: must be {rule.wanted}")
        elif not isinstance(value, dict):
            raise ValueError(f"{where}: {key} must be an object, not {type(value).__name__}")
        else:
            _check(value, rule, path, f"{name}.{key}" if name else key)


def _check_optimizer(kind: object, path: Path) -> None:
    if not isinstance(kind, str) or kind.rpartition(".")[2].lower() not in ADAMW:
        raise ValueError(
            f"--deepspeed-config {path}: optimizer.type is {kind!r}, AdamW is what there is; --optimizer muon is the "
            "other choice"
        )


def _check_offload(zero: dict, path: Path) -> None:
    offload = zero.get("offload_optimizer") or {}
    if zero.get("cpu_offload") or not isinstance(offload, dict) or offload.get("device", "none") != "none":
        raise ValueError(
            f"--deepspeed-config {path}: the optimizer's state stays on the device, its averages go with it: remove "
            "cpu_offload and offload_optimizer; more ranks leave less state on each"
        )
