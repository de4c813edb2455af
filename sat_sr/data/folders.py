"""What lies in a folder of data, searched through."""

from __future__ import annotations

import os
from pathlib import Path


def files_below(folder: Path) -> list[Path]:
    """All files in a folder and those in it, sorted; folders that are linked in it are searched too.

    Each folder once, however many links lead to it, and under its own name where it has one: so a link to a folder
    further up is no endless way, and nothing is taken twice.
    """
    seen: set[str] = set()
    files: list[Path] = []
    links = [str(folder)]
    while links:
        for parent, folders, names in os.walk(links.pop(0)):
            if (real := os.path.realpath(parent)) in seen:
                folders.clear()
                continue
            seen.add(real)
            links += [path for name in sorted(folders) if os.path.islink(path := os.path.join(parent, name))]
            files += [path for name in names if (path := Path(parent, name)).is_file()]
    return sorted(files)
