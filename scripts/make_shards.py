#!/usr/bin/env python3
"""Pack folders of pictures into WebDataset shards for training.

    python scripts/make_shards.py PHOTOS... SHARDS/

PHOTOS are picture files or folders (searched through). SHARDS/ is written whole or not at all: the shards get their
names when the last one is complete, and a folder that holds anything already is refused.

A sample has one file, `<key>.jpg`, and its key names the source: `holiday/beach/0001.jpg` for beach/0001.jpg of the
folder holiday. 8-bit RGB JPEGs are stored as they are; every other picture (PNG, WebP, TIFF, BMP, grey, CMYK, 16 bit,
with transparency, rotated by EXIF) is converted to RGB and stored as JPEG of --quality. What is skipped is counted by
reason and listed. The order is shuffled, the same way each time: training reads a shard at a time, and pictures of one
folder, tiles of one photograph (--tile) all the more, tend to look alike. For the tiles' sake all of them are written
twice: SHARDS/ takes twice its size until it is complete.
"""

from __future__ import annotations

import argparse
import io
import random
import signal
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from sat_sr.programs.cores import own_cores

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
NAMED = 10  # files that are named for each reason of skipping; the rest is counted


@dataclass
class Packed:
    """What became of one picture: the JPEGs to store by key, or why there are none."""

    files: dict[str, bytes] = field(default_factory=dict)
    converted: str | None = None
    skipped: str | None = None


def main() -> None:
    sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
    args = parse_args()

    from tqdm import tqdm

    from sat_sr.atomic_files import atomic_folder
    from sat_sr.data.pictures import SUFFIXES, find_pictures
    from sat_sr.data.processes import map_over

    try:
        pictures, others = find_pictures(args.photos)
    except FileNotFoundError as error:
        sys.exit(f"make_shards.py: {error}")
    pictures = list(pictures.items())
    random.Random(0).shuffle(pictures)
    skipped: dict[str, list[Path]] = {}
    if others:
        skipped[f"not a picture (known: {' '.join(sorted(SUFFIXES))})"] = others
    converted: Counter[str] = Counter()
    prepare = partial(pack, min_side=args.min_side, tile=args.tile, quality=args.quality)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `kill` cleans up just as Ctrl-C does
    try:
        with atomic_folder(args.out) as folder, ShardWriter(folder, args.shard_size) as writer, Held(folder) as held:
            take = held.write if args.tile else writer.write  # whole pictures are shuffled above already
            with map_over(args.jobs) as map_in_order:
                done = map_in_order(prepare, pictures)
                done = tqdm(done, "packing", len(pictures), unit="picture", disable=None)
                for (_, path), packed in zip(pictures, done, strict=True):
                    if packed.skipped:
                        skipped.setdefault(packed.skipped, []).append(path)
                    if packed.converted:
                        converted[packed.converted] += 1
                    for key, jpeg in packed.files.items():
                        take(key, jpeg)
            for key, jpeg in held.shuffled():
                writer.write(key, jpeg)
            if not writer.samples:
                report(skipped, converted)
                raise ValueError(f"none of the {len(pictures)} pictures can be used, nothing was written")
    except (OSError, ValueError, BrokenProcessPool) as error:
        sys.exit(f"make_shards.py: {error}")
    except KeyboardInterrupt:
        sys.exit("make_shards.py: interrupted, nothing was written")
    report(skipped, converted)
    print(
        f"{args.out}: {writer.samples} samples in {writer.shards} shards, {writer.bytes / 1e6:.1f} MB; "
        f"train with --train-data ';{args.out}'"
    )


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="+", type=Path, metavar="PHOTOS", help="picture files, or folders of them")
    parser.add_argument("out", type=Path, metavar="SHARDS", help="folder to write; must not hold anything yet")
    parser.add_argument("--shard-size", type=size_in_bytes, default="256MB", help="bytes per shard (default: 256MB)")
    parser.add_argument("--min-side", type=int, default=512, help="skip pictures with a side below this (default: 512)")
    parser.add_argument("--tile", type=int, help="cut pictures into disjoint squares of this side, as many as fit")
    parser.add_argument("--quality", type=int, default=95, help="of the JPEGs that are made here (default: 95)")
    parser.add_argument("--jobs", type=int, default=own_cores(), help="processes (default: one a core)")
    args = parser.parse_args()
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        parser.error(f"{args.out} exists already: name a new folder, nothing is overwritten")
    if not 1 <= args.quality <= 100:
        parser.error(f"--quality {args.quality}: 1 to 100 is wanted")
    if args.jobs < 1:
        parser.error(f"--jobs {args.jobs}: at least 1 is wanted")
    if args.tile is not None:
        if args.tile < 8:
            parser.error(f"--tile {args.tile}: at least 8 pixels are wanted")
        args.min_side = max(args.min_side, args.tile)
    return args


def size_in_bytes(text: str) -> int:
    unit = text[-2:].upper()
    try:
        size = int(float(text[:-2]) * UNITS[unit]) if unit in UNITS else int(text)
    except ValueError:
        size = 0
    if size <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: write bytes, or 300KB, 45MB, 1.5GB")
    return size


def pack(entry: tuple[str, Path], *, min_side: int, tile: int | None, quality: int) -> Packed:
    """Read one picture and make the JPEGs to store of it."""
    from PIL import Image

    from sat_sr.data.pictures import orientation, to_rgb
    from sat_sr.data.tile_grid import tile_starts
    from sat_sr.image_io.decoding_errors import DECODING_ERRORS

    key, path = entry
    try:
        data = path.read_bytes()
    except OSError as error:  # of rights, or of a disk that has gone: no fault of the picture
        return Packed(skipped=f"cannot be read ({error.strerror})")
    try:
        with Image.open(io.BytesIO(data)) as image:
            if min(image.size) < min_side:
                return Packed(skipped=f"a side below {min_side} px")
            stored = image.format == "JPEG" and image.mode == "RGB" and orientation(image) == 1
            if stored and tile is None:
                image.load()  # decode it all: a JPEG that breaks off opens well
                return Packed({key: data})
            rgb, converted = to_rgb(image)
            upright = orientation(image) == 1
    except Image.DecompressionBombError:
        return Packed(skipped=f"more than {2 * Image.MAX_IMAGE_PIXELS / 1e6:.0f} megapixels: cut it up first")
    except DECODING_ERRORS:
        return Packed(skipped="cannot be decoded")
    if tile is None:
        reason = converted or ("rotated by EXIF" if not upright else "not JPEG")
        return Packed({key: encode(rgb, quality)}, reason)
    files = {}
    for y in tile_starts(rgb.height, tile):
        for x in tile_starts(rgb.width, tile):
            files[f"{key}_x{x:05d}_y{y:05d}"] = encode(rgb.crop((x, y, x + tile, y + tile)), quality)
    return Packed(files, converted)


def encode(image, quality: int) -> bytes:
    """JPEG without chroma subsampling: these pictures are what the model learns to make."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling="4:4:4")
    return buffer.getvalue()


class ShardWriter:
    """Writes samples to shard-000000.tar, shard-000001.tar, … of at most `size` bytes each (one sample at least)."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size
        self.shards = self.samples = self.bytes = self._in_shard = 0
        self._tar: tarfile.TarFile | None = None

    def write(self, key: str, jpeg: bytes) -> None:
        member = tarfile.TarInfo(f"{key}.jpg")  # of time 0 and no owner: the same pictures give the same bytes
        member.size = len(jpeg)
        needed = len(member.tobuf(tarfile.PAX_FORMAT)) + -(-len(jpeg) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        if self._tar is not None and self._in_shard + needed > self.size - tarfile.RECORDSIZE:
            self._close()
        if self._tar is None:
            path = self.folder / f"shard-{self.shards:06d}.tar"
            self._tar = tarfile.open(path, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115, it lives across calls
            self.shards, self._in_shard = self.shards + 1, 0
        self._tar.addfile(member, io.BytesIO(jpeg))
        self._in_shard += needed
        self.samples, self.bytes = self.samples + 1, self.bytes + len(jpeg)

    def _close(self) -> None:
        if self._tar is not None:
            self._tar.close()
            self._tar = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_) -> None:
        self._close()


class Held:
    """Samples on the disk, in a nameless file in `folder`; to be had again in a random order, always the same."""

    def __init__(self, folder: Path) -> None:
        self._places: list[tuple[str, int, int]] = []  # key, where it begins, how long it is
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115, it lives across calls

    def write(self, key: str, jpeg: bytes) -> None:
        self._places.append((key, self._file.tell(), len(jpeg)))
        self._file.write(jpeg)

    def shuffled(self) -> Iterator[tuple[str, bytes]]:
        random.Random(0).shuffle(self._places)
        for key, begin, length in self._places:
            self._file.seek(begin)
            yield key, self._file.read(length)

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *_) -> None:
        self._file.close()


def report(skipped: dict[str, list[Path]], converted: Counter[str]) -> None:
    for reason, paths in skipped.items():
        print(f"skipped {len(paths)}: {reason}")
        for path in paths[:NAMED]:
            print(f"    {path}")
        if len(paths) > NAMED:
            print(f"    and {len(paths) - NAMED} more")
    if converted:
        print("converted: " + ", ".join(f"{count} {reason}" for reason, count in converted.most_common()))


if __name__ == "__main__":
    main()
