#!/usr/bin/env python3
"""Write a checkpoint with freshly initialised weights: for trying things out, and as a start for training.

    python scripts/init_checkpoint.py OUT.pt --preset mini
    python scripts/init_checkpoint.py OUT.safetensors --num-layers 6 --hidden-size 320 --num-attention-heads 4

OUT.pt has the release's layout (DeepSpeed/SAT, key "module"). Sizes given one by one replace those of the preset. The
weights are untrained: their pictures are good for nothing but tests.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sat_sr.config import PRESETS, InfDiTConfig
from sat_sr.programs.release_flags import flag

SIZES = [field.name for field in dataclasses.fields(InfDiTConfig)]


def main() -> int:
    args = parse_args()

    import torch

    from sat_sr.checkpoint import load, save_pt, save_safetensors
    from sat_sr.model.inf_dit import InfDiT

    torch.manual_seed(args.seed)
    model = InfDiT(args.config, dtype={"bf16": torch.bfloat16, "fp32": torch.float32}[args.dtype])
    save = save_pt if args.output.suffix == ".pt" else save_safetensors
    try:
        save(args.output, model.state_dict(), args.config)
        print("wrote", "\n      ".join(load(args.output).report()))
    except OSError as error:
        print(f"init_checkpoint.py: {error}", file=sys.stderr)
        return 1
    return 0


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", metavar="OUT", type=Path, help="file to write, ending in .pt or .safetensors")
    parser.add_argument("--preset", choices=PRESETS, default="official", help="(default: %(default)s)")
    for name in SIZES:
        parser.add_argument(flag(name), type=int, metavar="N", help="(default: the preset's)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="fp32", help="(default: %(default)s)")
    args = parser.parse_args()
    if args.output.suffix not in (".pt", ".safetensors"):
        parser.error(f"OUT {args.output} must end in .pt or .safetensors")
    given = {name: value for name in SIZES if (value := getattr(args, name)) is not None}
    try:
        args.config = dataclasses.replace(PRESETS[args.preset], **given)
    except ValueError as error:
        parser.error(str(error))
    return args


if __name__ == "__main__":
    sys.exit(main())
