"""What is decided about a picture before it is computed, as it is told: in a line, or as an object."""

from __future__ import annotations

from typing import Any

from sat_sr.byte_sizes import format_bytes
from sat_sr.checkpoint.reading import stored_types
from sat_sr.cli.target import by
from sat_sr.cli.work import Work, dtype_name
from sat_sr.cli.worker import Worker
from sat_sr.inference.budget import PROGRAM_BYTES
from sat_sr.model.counts import parameter_count


def introduction(worker: Worker) -> str:
    """What was found in the weights, and where the network runs."""
    checkpoint, count = worker.checkpoint, parameter_count(worker.config)
    parameters = f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count:,}"
    tower = "no CLIP input"
    if checkpoint.clip_tensors:
        tower = f"its own CLIP tower in {stored_types(checkpoint.clip_tensors)}"
    elif worker.config.vector_dim:
        tower = f"no CLIP tower in the file, that of {worker.clip_model} is used"
    return (
        f"network {checkpoint.path} ({checkpoint.kind}, {parameters} parameters stored in "
        f"{stored_types(checkpoint.tensors)}, {tower}), "
        f"{dtype_name(worker.dtype)} on {worker.device}, kernel {worker.kernel} ({worker.kernel_reason})"
    )


def describe(worker: Worker, name: str, work: Work) -> str:
    """The line at the start of a picture."""
    last = work.jobs[-1]
    schedule, canvas, block = last.plan.schedule, last.canvas.size, worker.config.image_block_size
    cut = f" (cut to {by(work.trimmed)})" if work.trimmed != work.source else ""
    passes = f" in {len(work.jobs)} passes" if len(work.jobs) > 1 else ""
    program = "" if worker.device.type == "cuda" else f" + {format_bytes(PROGRAM_BYTES)} for the program"
    return (
        f"{name}: {by(work.source)}{cut} -> {by(work.target)}{passes}, canvas {canvas[1]}x{canvas[0]}, "
        f"{schedule.grid[1]}x{schedule.grid[0]} blocks of {block} px | {worker.mode}: {schedule}, "
        f"memory about {format_bytes(work.peak_bytes)}{program} | {worker.settings} | seed {worker.seed} | "
        f"{dtype_name(worker.dtype)} on {worker.device}, kernel {last.plan.kernel}"
    )


def describe_cost(work: Work) -> str:
    """What --estimate adds."""
    of_the_host = ", taken from the host's" if work.on_host else ""
    return (
        f"{work.flops / 1e12:.4g} TFLOP in {work.network_calls} network calls | peak memory: device "
        f"{format_bytes(work.device_bytes)}{of_the_host}, host {format_bytes(work.host_bytes + PROGRAM_BYTES)} in all"
    )


def record(worker: Worker, work: Work) -> dict[str, Any]:
    """The same for scripts."""
    plan = work.jobs[-1].plan
    return {
        "input_size": list(work.source),
        "output_size": list(work.target),
        "passes": len(work.jobs),
        "mode": worker.mode,
        "schedule": str(plan.schedule),
        "seed": worker.seed,
        **worker.settings.to_dict(),
        "dtype": dtype_name(worker.dtype),
        "device": str(worker.device),
        "kernel": plan.kernel,
        "tflop": work.flops / 1e12,
        "predicted_device_bytes": work.device_bytes,
        "predicted_host_bytes": work.host_bytes + PROGRAM_BYTES,
    }
