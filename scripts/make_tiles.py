#!/usr/bin/env python3
"""Cut the most detailed tiles out of large photographs, as PNG files: for evaluation, or to pack with make_shards.py.

    python scripts/make_tiles.py PHOTOS... TILES/ --tile 512 --count 48 --per-photo 3

PHOTOS are picture files or folders. A tile counts as detailed when reducing it 4 times and enlarging it again by
bicubic interpolation gives a PSNR below --detailed; the most detailed come first. Photographs of a JPEG quality below
80 are cut at half size, so that compression is not taken for detail. A tile's name has photograph, size and place:
`Bamboo__r1_x0384_y0000.png`, r2 where the photograph was halved. tiles.tsv lists them with their PSNR.
"""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from sat_sr.programs.cores import own_cores


def main() -> None:
    sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="+", type=Path, metavar="PHOTOS", help="picture files, or folders of them")
    parser.add_argument("out", type=Path, metavar="TILES", help="folder to write; must not hold anything yet")
    parser.add_argument("--tile", type=int, default=512, help="side of a tile, pixels (default: 512)")
    parser.add_argument("--count", type=int, default=500, help="number of tiles (default: 500)")
    parser.add_argument("--per-photo", type=int, default=16, help="most detailed tiles of one photograph (default: 16)")
    parser.add_argument("--detailed", type=float, default=38.0, metavar="DB", help="detailed below (default: 38 dB)")
    parser.add_argument("--smooth", type=float, default=0.0, metavar="PART", help="part of smooth tiles (default: 0)")
    parser.add_argument("--also-half", action="store_true", help="offer tiles of the halved photographs as well")
    parser.add_argument("--jobs", type=int, default=own_cores(), help="processes (default: one a core)")
    args = parser.parse_args()
    if args.tile < 16 or args.tile % 4:
        parser.error(f"--tile {args.tile}: a multiple of 4 and at least 16 is wanted")
    for name, number in (("--count", args.count), ("--per-photo", args.per_photo), ("--jobs", args.jobs)):
        if number < 1:
            parser.error(f"{name} {number}: at least 1 is wanted")
    if not 0 <= args.smooth < 1:
        parser.error(f"--smooth {args.smooth:g}: a part is wanted, from 0 to below 1")
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        parser.error(f"{args.out} exists already: name a new folder, nothing is overwritten")

    from tqdm import tqdm

    from sat_sr.atomic_files import atomic_folder
    from sat_sr.data.pictures import find_pictures
    from sat_sr.data.processes import map_over
    from sat_sr.data.tiles import choose

    try:
        pictures, _ = find_pictures(args.photos)
    except FileNotFoundError as error:
        parser.error(str(error))
    names = {key.rsplit("/", 1)[-1]: path for key, path in pictures.items()}
    if len(names) < len(pictures):
        parser.error("two photographs have the same file name, tiles of both would have the same names: rename one")

    try:
        with atomic_folder(args.out) as folder, map_over(args.jobs) as map_in_order:
            looked = map_in_order(look, names.items(), [args.tile] * len(names), [args.also_half] * len(names))
            looked = dict(zip(names, tqdm(looked, "looking", len(names), unit="photo", disable=None), strict=True))
            too_small = f"smaller than a tile of {args.tile} px, at the size it is used at"
            for name, (tiles, problem) in looked.items():
                if not tiles:
                    print(f"skipped {names[name]}: {problem or too_small}")
            tiles = [tile for tiles, _ in looked.values() for tile in tiles]
            if not tiles:
                raise ValueError(f"none of the {len(names)} photographs can be used, nothing was written")
            chosen = choose(
                tiles, args.count, detailed=args.detailed, per_photo=args.per_photo, smooth_share=args.smooth
            )
            if not chosen:
                raise ValueError(f"no tile of {args.tile} px has a PSNR below {args.detailed} dB: raise --detailed")
            work = [(path, [tile for tile in chosen if tile.photo == name], folder) for name, path in names.items()]
            for _ in tqdm(map_in_order(cut, work), "cutting", len(work), unit="photo", disable=None):
                pass
            lines = [f"{tile.key}.png\t{tile.psnr:.2f}" for tile in chosen]
            listing = "\n".join(["name\tbicubic_psnr", *lines, ""])
            (folder / "tiles.tsv").write_bytes(os.fsencode(listing))
    except (OSError, ValueError, BrokenProcessPool) as error:
        sys.exit(f"make_tiles.py: {error}")
    except KeyboardInterrupt:
        sys.exit("make_tiles.py: interrupted, nothing was written")
    detailed = sum(tile.psnr < args.detailed for tile in chosen)
    halved = sum(tile.reduced == 2 for tile in chosen)
    photos = len({tile.photo for tile in chosen})
    print(
        f"{args.out}: {len(chosen)} tiles of {args.tile} px from {photos} of {len(names)} photographs, {detailed} "
        f"detailed and {len(chosen) - detailed} smooth, {halved} at half size; "
        f"bicubic PSNR {chosen[0].psnr:.1f} to {max(tile.psnr for tile in chosen):.1f} dB"
    )


def read(path: Path):
    """The photograph as 8-bit RGB, and its JPEG quality (None for other formats), or a ValueError."""
    from PIL import Image

    from sat_sr.data.pictures import to_rgb
    from sat_sr.data.tiles import jpeg_quality
    from sat_sr.image_io.decoding_errors import DECODING_ERRORS

    try:
        with Image.open(path) as image:
            return to_rgb(image)[0], jpeg_quality(image)
    except DECODING_ERRORS as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def look(entry: tuple[str, Path], size: int, also_half: bool):
    """The tiles of a photograph; and, where there are none as it cannot be read, why."""
    import torch

    from sat_sr.data.tiles import candidates

    torch.set_num_threads(1)
    name, path = entry
    try:
        image, quality = read(path)
    except ValueError as error:
        return [], f"cannot be decoded ({error.__cause__})"
    return candidates(image, size, photo=name, quality=quality, also_half=also_half), None


def cut(work) -> None:
    from sat_sr.data.tiles import halve

    path, tiles, folder = work
    if not tiles:
        return
    full, _ = read(path)
    half = halve(full)
    for tile in tiles:
        source = half if tile.reduced == 2 else full
        source.crop((tile.x, tile.y, tile.x + tile.size, tile.y + tile.size)).save(folder / f"{tile.key}.png")


if __name__ == "__main__":
    main()
