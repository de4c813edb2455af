"""Which code made a result: a digest of source files and of the versions of packages.

A result on disk is used again only for the code that made it. What samples and what measures are told apart, so that
another metric is computed on the pictures that are there.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Iterable
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]

SAMPLING = (
    *("config.py", "sampling.py"),
    *(f"{package}/**/*.py" for package in ("checkpoint", "diffusion", "inference", "model")),
)
SAMPLING_PACKAGES = ("torch", "numpy", "SwissArmyTransformer", "transformers")
MEASURING = ("diffusion/**/*.py", "evaluation/**/*.py")
MEASURING_PACKAGES = ("torch", "numpy", "pillow", "scikit-image", "scipy", "stlpips_pytorch", "lpips")


def digest_of_source(patterns: Iterable[str], packages: Iterable[str]) -> str:
    """16 hexadecimal digits that change with any file that a pattern finds, its name, and any package's version.

    patterns   globs below PACKAGE
    packages   names of distributions; one that is not installed counts as such
    """
    digest = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in PACKAGE.glob(pattern)}):
        digest.update(path.relative_to(PACKAGE).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    for package in packages:
        digest.update(f"{package} {_version(package)}\0".encode())
    return digest.hexdigest()[:16]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
