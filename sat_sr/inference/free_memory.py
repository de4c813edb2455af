"""The host's memory that is free for this process: the machine's, or what a container or a Slurm job leaves of it.

Linux limits groups of processes ("cgroups"), each within the one above it, and kills who takes more without a word.
https://docs.kernel.org/admin-guide/cgroup-v2.html and .../cgroup-v1/memory.html
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

# Limit, use, and in memory.stat what of it is page cache, which the kernel takes back before it kills; all of them with
# the groups below.
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))
_V2 = ("memory.max", "memory.current", ("inactive_file", "active_file"))


def free_host_bytes(root: Path = Path("/")) -> int:
    """Bytes that this process can still take before the machine or a limit is full.

    root  where /proc and /sys are
    """
    return min([psutil.virtual_memory().available, *_left_by_limits(root)])


def resident_bytes() -> int:
    """Bytes of the host that this process has now, but for files that are mapped: their pages count as free."""
    memory = psutil.Process().memory_info()
    return memory.rss - getattr(memory, "shared", 0)  # Linux tells of these alone


def _left_by_limits(root: Path) -> Iterator[int]:
    """What each limit leaves; where there is none, version 2 has "max", version 1 more bytes than any machine."""
    for folder, (limit, use, reclaimables) in _groups(root):
        try:
            most, used = (folder / limit).read_text().strip(), int((folder / use).read_text())
            cache = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            if most != "max":
                yield max(0, int(most) - used + sum(int(cache.get(name, 0)) for name in reclaimables))
        except (OSError, ValueError):  # a group above the container, or version 2's root, which has no limit
            continue


def _groups(root: Path) -> Iterator[tuple[Path, tuple[str, str, tuple[str, str]]]]:
    """Folders of the groups that this process is in, and of those above, with the names of their files."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    mounts = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            tops, names = (mounts, mounts / "unified"), _V2
        elif "memory" in controllers.split(","):
            tops, names = (mounts / "memory",), _V1
        else:
            continue
        group = path.strip("/")
        for top in tops:
            # In a container the path may be the machine's, and what is mounted only its end: the top is looked at, too.
            for folder in (top / group, *(top / group).parents):
                if folder == top or top in folder.parents:
                    yield folder, names
