"""Naming shards: one text that a user types -> the list of tars to read."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from braceexpand import UnbalancedBracesError, braceexpand

from sat_sr.data.folders import files_below

SUFFIXES = (".tar", ".tar.gz", ".tgz")
URL = re.compile(r"([a-z][a-z0-9+.-]*)://|(pipe):", re.IGNORECASE)


def expand_shards(spec: str | Sequence[str]) -> list[str]:
    """All the shards that a text names, in a fixed order.

    spec      `;DIR1,DIR2*3`: a leading semicolon means folders, searched through for tars; `*3` takes a folder's shards
              three times. This is how the release names its data.
              Otherwise a list with commas of: paths (`a.tar`), folders, globs (`data/*.tar`; `data/*` for the tars
              there and in the folders there, each once), brace lists (`data/{0000..0009}.tar`), and URLs that
              webdataset opens (`https://host/{00..99}.tar`, `pipe:…`).
              What starts with `pipe:` is a shell command, commas and all, that webdataset runs; several are
              separated by `::`. Never take such a text from somebody you do not trust.
              Several such texts name the shards of all of them.
    returns   paths and URLs; a shard comes as often as it is named

    Raises ValueError that names the part which matches nothing or cannot be understood.
    """
    if not isinstance(spec, str):
        return [shard for text in spec for shard in expand_shards(text)]
    text = spec.strip()
    if text.startswith(";"):
        shards = [shard for part in text[1:].split(",") if part.strip() for shard in _folder(part.strip())]
    elif text.startswith("pipe:"):
        shards = [shard for part in text.split("::") for shard in _braces(part)]
    else:
        shards = [shard for part in _split(text) for shard in _one(part)]
    if not shards:
        raise ValueError(f"{spec!r} names no shards: give ';FOLDER', a path, a glob, a brace list or a URL")
    return shards


def fingerprint(shards: Sequence[str]) -> str:
    """How many they are, and eight digits that change with any name or their order."""
    return f"{len(shards)}, list {hashlib.sha256(os.fsencode(chr(10).join(shards))).hexdigest()[:8]}"


def named_and_sized(shard: str) -> str:
    """What tells a shard from others wherever it lies: its file's name and size; of a URL, all of it."""
    return shard if URL.match(shard) else f"{os.path.basename(shard)} of {os.path.getsize(shard):,} bytes"


def _folder(part: str) -> list[str]:
    """`DIR` or `DIR*3`."""
    name, star, times = part.rpartition("*")
    if not star:
        name, times = part, "1"
    if not re.fullmatch(r"[1-9][0-9]*", times):
        raise ValueError(f"{part!r}: after * comes how many times the folder's shards are taken, a whole number from 1")
    folder = Path(name).expanduser()
    if not folder.is_dir():
        kind = "a file; without the leading ';' paths of tars are read" if folder.exists() else "no such folder"
        raise ValueError(f"shard folder {name!r}: {kind}")
    return _tars_in(folder) * int(times)


def _tars_in(folder: Path) -> list[str]:
    tars = _tars_below(folder)
    if not tars:
        raise ValueError(
            f"shard folder {str(folder)!r}: no {', '.join(SUFFIXES)} in it; scripts/make_shards.py makes some"
        )
    return tars


def _tars_below(folder: Path) -> list[str]:
    found = (path for path in files_below(folder) if path.name.endswith(SUFFIXES))
    # Hidden folders are of make_shards.py: what it has not finished, or was killed in.
    return sorted(str(path) for path in found if not any(p.startswith(".") for p in path.relative_to(folder).parts))


def _split(text: str) -> list[str]:
    """Parts between commas; a comma inside braces belongs to the brace list."""
    parts, depth, start = [], 0, 0
    for at, character in enumerate(text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if character == "," and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    return [part.strip() for part in [*parts, text[start:]] if part.strip()]


def _braces(part: str) -> list[str]:
    try:
        return list(braceexpand(part))
    except UnbalancedBracesError as error:
        raise ValueError(f"shards {part!r}: braces without their other half") from error


def _one(part: str) -> list[str]:
    if match := URL.match(part):
        return _url(part, (match[1] or match[2]).lower())
    shards = []
    for name in _braces(part):
        path = Path(name).expanduser()
        if path.is_dir():
            shards += _tars_in(path)
        elif path.exists():
            shards.append(str(path))
        else:
            found = _matching(str(path)) if glob.has_magic(name) else []
            if not found:
                of = f" (of {part!r})" if name != part else ""
                raise ValueError(f"shards {name!r}{of}: nothing matches that is a shard or holds some")
            shards += found
    return shards


def _matching(pattern: str) -> list[str]:
    """The files that match, and the tars in folders that do; each once, however many names lead to it."""
    found: dict[str, str] = {}
    for hit in sorted(glob.glob(pattern, recursive=True)):
        for tar in _tars_below(Path(hit)) if os.path.isdir(hit) else [hit]:
            if tar.endswith(SUFFIXES):  # `data/*` matches notes, too
                found.setdefault(os.path.realpath(tar), tar)
    return [*found.values()]


def _url(part: str, scheme: str) -> list[str]:
    from webdataset.gopen import gopen_schemes

    if scheme not in gopen_schemes:
        known = ", ".join(sorted(name for name in gopen_schemes if name != "__default__"))
        way_out = {
            "s3": f"write 'pipe:aws s3 cp {part} -', or set USE_AIS_FOR=s3 for an AIStore",
            "file": "write the path",
        }
        raise ValueError(
            f"{part!r}: webdataset does not open {scheme}: URLs; {way_out.get(scheme, f'it knows {known}')}"
        )
    return _braces(part)
