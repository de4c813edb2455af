#!/usr/bin/env python3
"""Contact sheet to look at the degradation: a row is a crop, its LR picture (nearest), and that upscaled by bicubic."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

MARGIN = 8


def main() -> None:
    sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures", nargs="+", type=Path, help="pictures, used in turn")
    parser.add_argument("-o", "--output", type=Path, required=True, help="picture file to write, such as sheet.png")
    parser.add_argument("--degradation", default="strong", help="preset or mixture (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--rows", type=int, help="rows of the sheet (default: one per picture)")
    parser.add_argument("--size", type=int, default=256, help="side of the crops in pixels (default: %(default)s)")
    args = parser.parse_args()
    if args.rows is not None and args.rows < 1:
        parser.error("--rows must be at least 1")
    try:
        write_sheet(args)
    except (ValueError, OSError) as error:
        sys.exit(f"show_degradation: {error}")


def write_sheet(args: argparse.Namespace) -> None:
    import torch
    import torch.nn.functional as F
    from PIL import Image

    from sat_sr.atomic_files import atomic_file
    from sat_sr.data.degradation import degrade
    from sat_sr.data.degradation_law import parse_degradation, sample_params
    from sat_sr.diffusion.resize import resize

    if (format := Image.registered_extensions().get(args.output.suffix.lower())) is None:
        suffix = args.output.suffix or "no suffix"
        raise ValueError(f"{args.output}: {suffix} is not a picture format; use .png or .jpg")
    mixture = parse_degradation(args.degradation)
    generator = torch.Generator().manual_seed(args.seed)
    rows = []
    for i in range(args.rows or len(args.pictures)):
        path = args.pictures[i % len(args.pictures)]
        original = random_crop(path, args.size, generator)
        params = sample_params(mixture, 1, generator)
        low = degrade(original, params, generator)
        shape = original.shape[-2:]
        nearest = F.interpolate(low, size=shape, mode="nearest")
        rows.append(
            F.pad(torch.cat([original, nearest, resize(low, shape).clamp(0, 1)]), (0, MARGIN, 0, MARGIN), value=1)
        )
        print(f"row {i + 1}: {path.name}: {describe(params[0])}")
    sheet = torch.cat([torch.cat(list(row), dim=-1) for row in rows], dim=-2)[:, :-MARGIN, :-MARGIN]
    with atomic_file(args.output) as temporary:
        Image.fromarray((sheet * 255).round().byte().permute(1, 2, 0).numpy()).save(temporary, format=format)
    print(f"{args.output}: original, degraded, bicubic")


def random_crop(path: Path, size: int, generator):
    """(1,3,size,size) in [0, 1]."""
    import numpy as np
    import torch
    from PIL import Image

    from sat_sr.data.pictures import to_rgb
    from sat_sr.image_io.decoding_errors import DECODING_ERRORS

    try:
        with Image.open(path) as file:
            image = to_rgb(file)[0]  # as training reads it: upright, 16 bits as 8, transparency over white
    except DECODING_ERRORS as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if min(image.size) < size:
        raise ValueError(
            f"{path} has {image.width}x{image.height} pixels: choose --size {min(image.size) // 4 * 4} or less"
        )
    left, top = (int(torch.randint(side - size + 1, (), generator=generator)) for side in image.size)
    pixels = np.array(image.crop((left, top, left + size, top + size)))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


def describe(params) -> str:
    """The drawn parameters in one line, in the order in which they act."""
    if params.stages is None:
        return "bicubic alone"

    def kernel(parameters) -> list[str]:
        if parameters is None:
            return []
        values = {key: value for key, value in parameters.items() if key not in ("kind", "kernel_size")}
        shape = " ".join(f"{key}={value:.2f}" for key, value in values.items())
        return [f"{parameters['kind']} {parameters['kernel_size']}px {shape}"]

    def stage(s) -> list[str]:
        noise = f"{'gray ' if s.gray_noise else ''}{s.noise} {s.noise_strength:.2f}"
        return [*kernel(s.kernel), f"x{s.resize_scale:.2f} {s.resize_mode}", noise]

    one, two = params.stages
    jpeg = [f"JPEG {two.jpeg_quality}"]
    end = [f"to 1/4 {params.final_resize_mode}", *kernel(params.final_kernel)]
    end = end + jpeg if params.jpeg_last else jpeg + end
    return " · ".join([*stage(one), f"JPEG {one.jpeg_quality}", *stage(two), *end])


if __name__ == "__main__":
    main()
