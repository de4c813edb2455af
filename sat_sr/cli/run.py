"""The run of the command line: inputs to a list, the list shared among ranks, picture after picture, exit code.

Light until there is something to compute: what is wrong with flags and paths is told before torch is imported. So
whatever needs torch (worker, describe, cost, ranks) is imported late, by the functions that use it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sat_sr.cli.console import Console
from sat_sr.cli.entry import Entry
from sat_sr.cli.errors import CannotRun
from sat_sr.cli.find_network import find_network
from sat_sr.cli.free_names import next_free, source_in
from sat_sr.cli.inputs import expand_inputs
from sat_sr.cli.outputs import Output, plan_outputs
from sat_sr.image_io.picture import Picture, PictureError
from sat_sr.image_io.storage import NameTaken, require_writable
from sat_sr.programs import exit_codes
from sat_sr.programs.launcher import Process

if TYPE_CHECKING:
    import torch

    from sat_sr.cli.worker import Worker

PROMPT = "Please input low resolution image path (Ctrl-D quit): "
DEFAULT_OUT_DIR = "samples"
MIB = 1 << 20


@dataclass
class Run:
    """One call of the program.

    stored    settings that --from-picture repeats, for what they say about the weights
    together  whether the ranks compute each picture together; otherwise they share the list
    """

    args: argparse.Namespace
    console: Console
    process: Process
    stored: Mapping[str, Any] | None = None
    together: bool = False
    done: int = 0
    skipped: int = 0
    failed: list[str] = field(default_factory=list)
    made: list[Path] = field(default_factory=list)

    def run(self) -> int:
        args = self.args
        for note in args.notes:
            self.console.note(note)
        network = find_network(args.network)
        interactive = not args.inputs
        if interactive and self.process.world_size > 1:
            raise CannotRun(f"{self.process.world_size} ranks cannot be asked for pictures: name them, or a list")
        if "-" in args.inputs and self.process.world_size > 1:  # torchrun's would each read a part of it
            raise CannotRun(
                f"{self.process.world_size} ranks cannot share standard input: save the list as a .txt file"
            )
        entries = [] if interactive else expand_inputs(args.inputs, recursive=args.recursive, exclude=self._out_dir())
        if entries and all(entry.error for entry in entries):
            for entry in entries:
                self._fail(entry, entry.error or "")
            return self._summary()
        worker = self._start(network)
        if interactive:
            for entry in self._ask():
                self._do_all(worker, [entry])
            return self._summary()
        if args.estimate:
            for output in self._mine(self._plan(worker, entries)):
                self._do(worker, output, self._estimate)
        else:
            if self._split(entries):
                self._join(worker, entries)
            self._do_all(worker, entries)
        return self._summary()

    def _start(self, network: Path) -> Worker:
        from sat_sr.cli.describe import introduction
        from sat_sr.cli.worker import Worker
        from sat_sr.inference.devices import share_cores

        args, process = self.args, self.process
        seed = args.seed
        if seed is None:
            seed = 0 if process.world_size > 1 else secrets.randbelow(2**32)  # ranks that share a list do not meet
        try:
            worker = Worker(
                args, network, seed=seed, local_rank=process.local_rank, local_ranks=process.local_world_size
            )
        except (ValueError, OSError) as error:
            raise CannotRun(str(error)) from error
        share_cores(process.local_world_size)
        self.console.line(introduction(worker))
        for note in worker.notes():
            self.console.note(note)
        if self.stored is not None and self.stored.get("checkpoint") != worker.checkpoint_hash:
            self.console.note(
                f"{args.from_picture} was made with other weights ({self.stored.get('network')}): the picture "
                "will differ"
            )
        return worker

    def _split(self, entries: list[Entry]) -> bool:
        """Whether the ranks compute pictures together."""
        together = self.args.split_picture
        if together and self.process.world_size == 1:
            self.console.note("--split-picture has no effect on one process: start several, by torchrun")
        if together is None:
            together = len(entries) == 1 and "MASTER_ADDR" in os.environ  # without, ranks do not find one another
        return together and self.process.world_size > 1

    def _join(self, worker: Worker, entries: list[Entry]) -> None:
        """Compute every picture together with the other ranks; the first one speaks and writes for all."""
        from sat_sr.cli.work import dtype_name
        from sat_sr.inference.rendezvous import RanksDiffer, join

        settings = {
            **vars(self.args),
            "device": worker.device.type,
            "dtype": dtype_name(worker.dtype),
            "weights": worker.checkpoint_hash,
            "pictures": [entry.name for entry in entries],
        }
        try:
            worker.ranks = join(
                settings, worker.device, self.process.rank, self.process.world_size, on_wait=self.console.note
            )
        except (ValueError, OSError) as error:
            if isinstance(error, RanksDiffer) and self.process.rank:  # all know it, the first one tells
                raise SystemExit(exit_codes.FAILED) from error
            raise CannotRun(str(error)) from error
        self.together = True
        self.console.quiet = self.console.quiet or self.process.rank > 0

    def _ask(self) -> Iterator[Entry]:
        """Pictures that the user names, one after the other, until Ctrl-D."""
        while True:
            try:
                typed = self.console.ask_paths(PROMPT)
            except EOFError:
                self.console.line("")
                return
            for entry in expand_inputs(typed, recursive=self.args.recursive, exclude=self._out_dir()):
                if entry.error:
                    self.console.error(entry.error)
                else:
                    yield entry

    def _out_dir(self) -> str:
        return self.args.out_dir or DEFAULT_OUT_DIR

    def _mine(self, items: Sequence) -> Sequence:
        """This rank's share of a list: every rank makes the same list."""
        return items if self.together else items[self.process.rank :: self.process.world_size]

    def _plan(self, worker: Worker, entries: list[Entry]) -> list[Output]:
        args, settings = self.args, worker.settings
        existing = "skip" if args.skip_existing else "overwrite" if args.overwrite else None
        try:
            return plan_outputs(
                entries,
                out_dir=None if args.output else self._out_dir(),
                out_file=args.output,
                template=args.name,
                format=args.format or "png",
                values={"seed": worker.seed, "sampler": settings.sampler, "steps": settings.num_steps},
                fields_of=worker.name_fields,
                existing=existing or ("error" if args.output else "number"),
                stored_in=self._stored_in,
                taken=self.made,
            )
        except ValueError as error:
            raise CannotRun(str(error)) from error

    @staticmethod
    def _stored_in(path: Path) -> Mapping[str, Any] | None:
        """The settings in a finished output; None for a file of another kind."""
        from sat_sr.image_io import read_settings

        try:
            return read_settings(path)
        except PictureError:
            return None

    def _do_all(self, worker: Worker, entries: list[Entry]) -> None:
        plan = self._plan(worker, entries)
        # Outputs of other ranks that this one finds in a searched folder are not in the lists of those.
        outputs = [*self._mine([output for output in plan if not output.left_out])]
        if self.process.rank == 0:
            outputs += [output for output in plan if output.left_out]
        for folder in sorted({output.path.parent for output in outputs if not (output.error or output.skip)}):
            try:
                require_writable(folder)
            except PictureError as error:
                raise CannotRun(str(error)) from error
        costs = (0 if output.error or output.skip else worker.cost(output.entry) for output in outputs)
        with self.console.list_progress(len(outputs), costs) as advance:
            for output in outputs:
                self._do(worker, output, self._upscale)
                advance()

    def _do(self, worker: Worker, output: Output, act: Callable[[Worker, Output], None]) -> None:
        entry, console = output.entry, self.console
        for note in (entry.note, output.note if not output.skip or output.left_out else None):
            if note:
                console.note(note)
        if output.error:
            self._fail(entry, output.error)
        elif output.skip:
            self._skip(worker, output)
        else:
            with self._failures(entry):
                act(worker, output)

    def _skip(self, worker: Worker, output: Output) -> None:
        self.skipped += 1
        name = output.entry.name
        if output.left_out:  # the note tells
            self.console.record({"status": "skipped", "input": name, "reason": output.note})
            return
        self.console.line(f"{name}: skipped, {output.path} is done")
        self.console.record({"status": "skipped", "input": name, "output": str(output.path)})
        if output.stored and (different := worker.different_in(output.stored)):
            self.console.note(f"it is done with {', '.join(different)}: --overwrite makes it anew", name)

    def _upscale(self, worker: Worker, output: Output) -> None:
        from sat_sr.cli.describe import describe, record
        from sat_sr.measure import measured

        entry, console = output.entry, self.console
        picture, work, notes = worker.prepare(entry.read(self.args.max_pixels), output.path)
        origin = entry.origin()
        console.line(describe(worker, entry.name, work))
        for note in notes:
            console.note(note, entry.name)
        worker.load()
        with measured(worker.device) as cost:
            with console.picture_progress(entry.name) as progress:
                rgb = worker.upscale(picture, work, progress)
            try:
                path = self._write(worker, output, rgb, picture, origin, notes) if rgb is not None else None
            except NameTaken:  # --skip-existing, and another process has done it since
                self._skip(worker, output)
                return
        self.done += 1
        if path is None:  # the first rank has it, and tells
            return
        self.made.append(path)
        console.line(f"{entry.name} -> {path} ({cost.seconds:.1f} s, peak {cost.peak_mib:.0f} MiB)")
        console.record(
            {"status": "done", "input": entry.name, "output": str(path), **record(worker, work), "notes": notes,
             "seconds": round(cost.seconds, 3), "peak_memory_bytes": int(cost.peak_mib * MIB)}
        )  # fmt: skip

    def _write(
        self, worker: Worker, output: Output, rgb: torch.Tensor, picture: Picture, origin: Mapping, notes: list[str]
    ) -> Path:
        """Where it is now: at a numbered name, if another process has taken the planned one since. Adds to `notes`."""
        path = output.path
        while True:
            try:
                added = worker.write(path, rgb, picture, origin, replace=output.replaces)
            except NameTaken:
                if self.args.skip_existing and source_in(self._stored_in(path)) in (None, origin):
                    raise
                path = next_free(output.wanted or output.path)
                notes.append(f"{output.path} has appeared meanwhile: written to {path}")
            else:
                notes += [note for note in added if note not in notes]
                for note in notes:
                    self.console.note(note, output.entry.name)
                return path

    def _estimate(self, worker: Worker, output: Output) -> None:
        from sat_sr.cli.describe import describe, describe_cost, record
        from sat_sr.image_io import check_output_size

        name = output.entry.name
        work = worker.plan(output.entry.size(self.args.max_pixels))
        check_output_size(output.path, work.target)
        self.done += 1
        self.console.line(f"{describe(worker, name, work)} | {describe_cost(work)}")
        self.console.record({"status": "estimate", "input": name, **record(worker, work)})

    @contextlib.contextmanager
    def _failures(self, entry: Entry) -> Iterator[None]:
        """What can go wrong with a picture is told and does not stop the others; what is our mistake does."""
        from sat_sr.inference.out_of_memory import is_out_of_memory

        try:
            yield
        except (ValueError, OSError, MemoryError, FloatingPointError) as error:
            self._fail(entry, str(error) or "there is not enough memory: ask for a smaller size")
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0]
            self._fail(entry, f"there is not enough memory ({reason}): give --memory, or ask for a smaller size")

    def _fail(self, entry: Entry, reason: str) -> None:
        self.failed.append(entry.name)
        self.console.error(reason if entry.name in reason else f"{entry.name}: {reason}")
        self.console.record({"status": "failed", "input": entry.name, "error": reason})
        if self.together:  # the others would wait for this one
            raise SystemExit(exit_codes.FAILED)

    def _summary(self) -> int:
        total = self.done + self.skipped + len(self.failed)
        if total > 1:
            counts = {"done": self.done, "skipped": self.skipped, "failed": len(self.failed)}
            self.console.line(", ".join(f"{count} {what}" for what, count in counts.items() if count))
        if self.failed and total > 1:
            self.console.error(f"{len(self.failed)} of {total} failed: {', '.join(self.failed)}")
        return exit_codes.FAILED if self.failed else exit_codes.DONE
