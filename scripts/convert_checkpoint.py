#!/usr/bin/env python3
"""Convert a checkpoint, and report what is in it.

    python scripts/convert_checkpoint.py ckpt/mp_rank_00_model_states.pt ckpt/inf_dit.safetensors
    python scripts/convert_checkpoint.py runs/mine mine.safetensors --dtype bf16
    python scripts/convert_checkpoint.py mine.safetensors mine.pt

IN is a .pt in the release's layout (DeepSpeed/SAT), a training folder (its averaged weights, of the newest checkpoint),
or a .safetensors of this project. The ending of OUT says which format is written. A CLIP image tower goes along if IN
carries one; rotary tables and leftovers of the text tower do not. OUT appears under its name when it is complete.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "keep": None}
FORMATS = (".safetensors", ".pt")


def main() -> int:
    args = parse_args()
    try:
        convert(args.input, args.output, args.dtype, args.sampler_defaults)
    except (ValueError, OSError) as error:
        print(f"convert_checkpoint.py: {error}", file=sys.stderr)
        return 1
    return 0


def convert(source: Path, target: Path, dtype: str, sampler_defaults: dict | None) -> None:
    import torch

    from sat_sr.checkpoint import checkpoint_hash, load, save_pt, save_safetensors

    torch_dtype = getattr(torch, DTYPES[dtype]) if DTYPES[dtype] else None
    checkpoint = load(source)
    print("read", "\n     ".join(checkpoint.report()))
    checkpoint.check_values()
    if target.exists() and target.samefile(checkpoint.path):
        raise ValueError(f"{target} is what is read: give OUT another name")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target}: there is no folder {target.parent}; make it first")
    sampler = checkpoint.sampler_defaults if sampler_defaults is None else sampler_defaults

    if target.suffix == ".safetensors":
        kept = {key: text for key, text in checkpoint.metadata.items() if key not in ("format", "config", "sampler")}
        save_safetensors(
            target,
            checkpoint.tensors,
            checkpoint.config,
            kept,
            checkpoint.clip_tensors,
            sampler_defaults=sampler,
            dtype=torch_dtype,
        )
    else:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".convert-") as scratch:
            if torch_dtype not in (None, checkpoint.dtype):
                # torch.save wants all tensors converted at once: let them lie in a file, and the source's pages go.
                converted = Path(scratch) / "converted.safetensors"
                save_safetensors(
                    converted, checkpoint.tensors, checkpoint.config, clip=checkpoint.clip_tensors, dtype=torch_dtype
                )
                checkpoint = load(converted)
            save_pt(
                target, checkpoint.tensors, checkpoint.config, checkpoint.clip_tensors,
                sampler_defaults=sampler, dtype=torch_dtype,
            )  # fmt: skip
    print("wrote", "\n      ".join(load(target).report()))
    print(f"      hash: {checkpoint_hash(target)}")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", metavar="IN", type=Path, help="checkpoint file or training folder")
    parser.add_argument("output", metavar="OUT", type=Path, help="file to write, ending in .safetensors or .pt")
    parser.add_argument("--dtype", choices=DTYPES, default="keep", help="of the weights (default: %(default)s)")
    parser.add_argument(
        "--sampler-defaults",
        metavar="JSON",
        help="how the model wants to be sampled, stored with it; keys: name, num_steps, sigma_max, sigma_min, "
        'color_fix, detail, grid_shift, and fast with the same keys, such as \'{"name": "heun", "num_steps": 20}\'; {} '
        "removes what IN says (default: what IN says)",
    )
    args = parser.parse_args()
    if args.output.suffix not in FORMATS:
        parser.error(f"OUT {args.output} must end in {' or '.join(FORMATS)}")
    if args.sampler_defaults is not None:
        try:
            args.sampler_defaults = json.loads(args.sampler_defaults)
        except json.JSONDecodeError as error:
            parser.error(f"--sampler-defaults is not JSON: {error}")
        if not isinstance(args.sampler_defaults, dict):
            given = json.dumps(args.sampler_defaults)
            parser.error(f'--sampler-defaults {given}: must be an object, such as {{"name": "heun"}}; {{}} removes all')
    return args


if __name__ == "__main__":
    sys.exit(main())
