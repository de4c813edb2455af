"""Results on disk as they come, so that an interrupted evaluation goes on where it was.

One JSON object a line in `records.jsonl`; a later line adds to, or replaces, what an earlier one of the same run and
picture said. A run is known by the hash of all that decides its output.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path


def digest_of(content: Mapping[str, object]) -> str:
    """16 hexadecimal digits that change with any value of a JSON-like mapping."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def digest_of_file(path: str | Path) -> str:
    """16 hexadecimal digits that change with the content of a file, or of the files of a folder or their names."""
    path = Path(path)
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        if path.is_dir():
            digest.update(file.relative_to(path).as_posix().encode() + b"\0")
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


class Records:
    """What is known of every (run, picture).

    path   the JSON-lines file; made when the first record comes
    Attributes   broken: numbers of lines that are no records (an interruption can cut the last one short)
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.broken: list[int] = []
        self._known: dict[tuple[str, str], dict] = {}
        if not path.exists():
            return
        text = path.read_text(encoding="utf-8", errors="replace")
        for number, line in enumerate(text.splitlines(), start=1):
            try:
                record = json.loads(line)
                run, picture = record.pop("run"), record.pop("picture")
            except (json.JSONDecodeError, AttributeError, KeyError, TypeError):
                self.broken.append(number)
                continue
            self._merge(run, picture, record)
        if text and not text.endswith("\n"):
            with path.open("a", encoding="utf-8") as stream:
                stream.write("\n")  # the next record starts on a line of its own

    def get(self, run: str, picture: str) -> dict:
        """What is known, {} if nothing: "figures" {column: number or None} and what else was added."""
        return self._known.get((run, picture), {})

    def add(self, run: str, picture: str, **record: object) -> None:
        """Remember and write at once. Figures join those that are known; other values replace theirs."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"run": run, "picture": picture, **record}) + "\n")
        self._merge(run, picture, record)

    def _merge(self, run: str, picture: str, record: dict) -> None:
        known = self._known.setdefault((run, picture), {})
        figures = {**known.get("figures", {}), **record.get("figures", {})}
        known.update(record)
        known["figures"] = figures
