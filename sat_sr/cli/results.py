"""What became of each picture: counted, and reported in lines or objects."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sat_sr.cli.console import Console
from sat_sr.cli.entry import Entry
from sat_sr.cli.outputs import Output
from sat_sr.cli.sharing import Sharing
from sat_sr.programs import exit_codes

if TYPE_CHECKING:
    from sat_sr.measure import Cost

MIB = 1 << 20


@dataclass
class Results:
    """Of one call of the program.

    made  files that were written
    due   pictures that this rank is to do
    """

    console: Console
    sharing: Sharing
    done: int = 0
    skipped: int = 0
    failed: list[str] = field(default_factory=list)
    made: list[Path] = field(default_factory=list)
    due: int = 0

    def written(self, output: Output, path: Path | None, record: dict[str, Any], notes: list[str], cost: Cost) -> None:
        """A picture is finished, and written to `path`; None where the first rank has done that, and reports it.

        record  what `describe.record` has of it
        """
        self.done += 1
        if path is None:
            return
        name = output.entry.name
        self.made.append(path)
        self.console.line(f"{name} -> {path} ({cost.seconds:.1f} s, peak {cost.peak_mib:.0f} MiB)")
        self.console.record(
            {"status": "done", "input": name, "output": str(path), **record,
             "notes": [*filter(None, (output.entry.note, output.note)), *notes],
             "seconds": round(cost.seconds, 3), "peak_memory_bytes": int(cost.peak_mib * MIB)}
        )  # fmt: skip

    def estimated(self, output: Output, line: str, record: dict[str, Any]) -> None:
        """What a picture would take."""
        self.done += 1
        self.console.line(line)
        self.console.record({"status": "estimate", "input": output.entry.name, **record})

    def skip(self, output: Output, different: list[str]) -> None:
        """different: the settings in which its finished output is not like this run."""
        self.skipped += 1
        name = output.entry.name
        if not self.sharing.reports:
            return
        if output.left_out:  # the note tells
            self.console.record({"status": "skipped", "input": name, "reason": output.note})
            return
        self.console.line(f"{name}: skipped, {output.path} is done")
        self.console.record({"status": "skipped", "input": name, "output": str(output.path), "different": different})
        if different:
            self.console.note(f"it is done with {', '.join(different)}: --overwrite makes it anew", name)

    def fail(self, entry: Entry, reason: str, *, of_all: bool = True) -> None:
        """of_all: ranks that compute pictures together all find the same, and go on to the next picture."""
        self.failed.append(entry.name)
        if self.sharing.reports or not of_all:
            self.console.error_about(entry.name, reason)
            self.console.record({"status": "failed", "input": entry.name, "error": reason})
        if self.sharing.together and not of_all:  # the others would wait for this one
            raise SystemExit(exit_codes.FAILED)

    def left(self, entry: Entry, reason: str) -> None:
        """A picture that the run ends before; `reason` is told once, and with --json for each."""
        if self.sharing.reports:
            self.console.record({"status": "failed", "input": entry.name, "error": reason})

    def report_left(self) -> None:
        """What a rank that cannot go on leaves of its share of a list: the others do theirs."""
        process = self.sharing.process
        if process.world_size > 1 and not self.sharing.together and (left := self.due - self._total):
            self.console.error(f"{left} picture(s) of rank {process.rank} are not done")

    @property
    def _total(self) -> int:
        return self.done + self.skipped + len(self.failed)

    def summary(self) -> None:
        total = self._total
        if total > 1:
            counts = {"done": self.done, "skipped": self.skipped, "failed": len(self.failed)}
            self.console.line(", ".join(f"{count} {what}" for what, count in counts.items() if count))
        if self.failed and total > 1 and self.sharing.reports:
            self.console.error(f"{len(self.failed)} of {total} failed: {', '.join(self.failed)}")
