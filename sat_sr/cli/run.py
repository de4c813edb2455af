"""The run of the command line: inputs to a list, the list shared among ranks, picture after picture, exit code.

Light until there is something to compute: what is wrong with flags and paths is told before torch is imported. So
whatever needs torch (worker, describe, cost, ranks) is imported late, by the functions that use it.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sat_sr.cli.console import Console
from sat_sr.cli.entry import Entry
from sat_sr.cli.errors import CannotRun, reason_of
from sat_sr.cli.find_network import find_network
from sat_sr.cli.free_names import next_free, source_in, stored_in
from sat_sr.cli.inputs import expand_inputs
from sat_sr.cli.outputs import Output, into_writable_folders, plan_outputs
from sat_sr.cli.results import Results
from sat_sr.cli.sharing import Sharing
from sat_sr.image_io.picture import Picture, PictureError
from sat_sr.image_io.storage import NameTaken
from sat_sr.programs import exit_codes

if TYPE_CHECKING:
    import torch

    from sat_sr.cli.worker import Worker

PROMPT = "Please input low resolution image path (Ctrl-D quit): "
DEFAULT_OUT_DIR = "samples"


@dataclass
class Run:
    """One call of the program.

    sharing   this process among the ranks
    stored    settings that --from-picture repeats, for what they say about the weights
    """

    args: argparse.Namespace
    console: Console
    sharing: Sharing
    stored: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        self.results = Results(self.console, self.sharing)

    def run(self) -> int:
        self.console.notes(self.args.notes)
        code = exit_codes.DONE
        try:
            if self.args.inputs:
                self._do_list()
            else:
                self._do_what_is_asked_for()
            self.results.summary()
        except CannotRun as error:
            self.console.error(str(error))
            self.results.report_left()
            code = exit_codes.WRONG_USE
        if code == exit_codes.DONE and (self.results.failed or self.console.lost):
            code = exit_codes.FAILED
        self.sharing.finish(code != exit_codes.DONE, self.console.note)
        return code

    def _do_list(self) -> None:
        args, ranks = self.args, self.sharing.process.world_size
        if "-" in args.inputs and ranks > 1:  # torchrun's would each read a part of it
            raise CannotRun(f"{ranks} ranks cannot share standard input: save the list as a .txt file")
        entries = expand_inputs(args.inputs, recursive=args.recursive, exclude=self._out_dir())
        self.results.due = len(self.sharing.mine(entries))
        together = self._split(entries) and not args.estimate
        if all(entry.error for entry in entries) and not together:
            for entry in self.sharing.mine(entries):
                self.results.fail(entry, entry.error or "")
            return
        with self.sharing.awaited(self.console.error) if together else contextlib.nullcontext():
            worker = self._start()
            plan = self._plan(worker, entries)
        if args.estimate:
            for output in self.sharing.mine(plan):
                self._do(worker, output, self._estimate)
            return
        if together:
            self._join(worker, plan)
        self._do_all(worker, plan)

    def _do_what_is_asked_for(self) -> None:
        """Pictures that the user names, one after the other, until Ctrl-D."""
        if (ranks := self.sharing.process.world_size) > 1:
            raise CannotRun(f"{ranks} ranks cannot be asked for pictures: name them, or a list")
        worker = self._start()
        while True:
            try:
                typed = self.console.ask_paths(PROMPT)
            except EOFError:
                self.console.line("")
                return
            entries = expand_inputs(typed, recursive=self.args.recursive, exclude=self._out_dir())
            for entry in entries:
                if entry.error:  # a slip of the hand is not a failure
                    self.console.error(entry.error)
            try:
                self._do_all(worker, self._plan(worker, [entry for entry in entries if not entry.error]))
            except CannotRun as error:  # with -o, several at once
                self.console.error(str(error))

    def _start(self) -> Worker:
        from sat_sr.cli.describe import introduction
        from sat_sr.cli.worker import Worker
        from sat_sr.inference.devices import share_cores

        args, process = self.args, self.sharing.process
        network = find_network(args.network)
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
        self.console.notes(worker.notes())
        if self.stored is not None and self.stored.get("checkpoint") != worker.checkpoint_hash:
            self.console.note(
                f"{args.from_picture} was made with other weights ({self.stored.get('network')}): the picture "
                "will differ"
            )
        return worker

    def _split(self, entries: list[Entry]) -> bool:
        """Whether the ranks compute pictures together."""
        together = self.args.split_picture
        ranks = self.sharing.process.world_size
        if together and ranks == 1:
            self.console.note("--split-picture has no effect on one process: start several, by torchrun")
        if together is None:
            together = len(entries) == 1 and "MASTER_ADDR" in os.environ  # without, ranks do not find one another
        return together and ranks > 1

    def _join(self, worker: Worker, plan: list[Output]) -> None:
        """Compute every picture together with the other ranks."""
        from sat_sr.cli.work import dtype_name

        settings = {
            **vars(self.args),
            "device": worker.device.type,
            "dtype": dtype_name(worker.dtype),
            "weights": worker.checkpoint_hash,
            # Where ranks see different files, one would wait for what another leaves out.
            "pictures": [
                f"{output.entry.name}: {output.error or ('skipped' if output.skip else 'to do')}" for output in plan
            ],
        }
        self.sharing.join(settings, worker.device, self.console)
        worker.ranks = self.sharing.ranks
        self.console.quiet = self.console.quiet or not self.sharing.reports

    def _out_dir(self) -> str:
        return self.args.out_dir or DEFAULT_OUT_DIR

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
                stored_in=stored_in,
                taken=self.results.made,
            )
        except ValueError as error:
            raise CannotRun(str(error)) from error

    def _do_all(self, worker: Worker, plan: list[Output]) -> None:
        try:
            plan = into_writable_folders(plan)
        except PictureError as error:
            raise CannotRun(str(error)) from error
        # Outputs of other ranks that this one finds in a searched folder are not in the lists of those.
        outputs = [*self.sharing.mine([output for output in plan if not output.left_out])]
        if self.sharing.process.rank == 0:
            outputs += [output for output in plan if output.left_out]
        self.results.due = len(outputs)
        costs = (0 if output.error or output.skip else worker.cost(output.entry) for output in outputs)
        with self.console.list_progress(len(outputs), costs) as advance, self.console.notes_gathered():
            for number, output in enumerate(outputs):
                try:
                    self._do(worker, output, self._upscale)
                except CannotRun as error:
                    self._leave(worker, outputs[number:], str(error))
                    raise
                advance()

    def _leave(self, worker: Worker, outputs: list[Output], reason: str) -> None:
        """What a run that ends before them tells of pictures."""
        for output in outputs:
            if output.skip:
                self._skip(worker, output)
            else:
                self.results.left(output.entry, output.error or reason)

    def _do(self, worker: Worker, output: Output, act: Callable[[Worker, Output], None]) -> None:
        entry, console = output.entry, self.console
        console.notes(filter(None, (entry.note, output.note if not output.skip or output.left_out else None)))
        if output.error:
            self.results.fail(entry, output.error)
        elif output.skip:
            self._skip(worker, output)
        else:
            with self._failures(entry):
                act(worker, output)

    def _skip(self, worker: Worker, output: Output) -> None:
        self.results.skip(output, worker.different_in(output.stored) if output.stored else [])

    def _upscale(self, worker: Worker, output: Output) -> None:
        from sat_sr.cli.describe import describe, record
        from sat_sr.measure import measured

        entry, console = output.entry, self.console
        report = functools.partial(console.error_about, entry.name)
        picture, origin = self.sharing.agree(lambda: (entry.read(self.args.max_pixels), entry.origin()), report)
        picture, work, notes = self.sharing.agree(lambda: worker.prepare(picture, output.path), report)
        console.line(describe(worker, entry.name, work))
        console.notes(notes, entry.name)
        self.sharing.all_run(worker.load)
        console.notes(worker.clip_notes())
        # From here on ranks that compute the picture together wait for one another.
        with self._failures(entry, of_all=False):
            try:
                with measured(worker.device) as cost:
                    with console.picture_progress(entry.name) as progress:
                        rgb = worker.upscale(picture, work, progress)
                    path = None if rgb is None else self._write(worker, output, rgb, picture, origin, notes)
            except NameTaken:  # --skip-existing, and another process has done it since
                self._skip(worker, output)
            else:
                self.results.written(output, path, record(worker, work), notes, cost)

    def _write(
        self, worker: Worker, output: Output, rgb: torch.Tensor, picture: Picture, origin: Mapping, notes: list[str]
    ) -> Path:
        """Where it is now: at a numbered name, if another process has taken the planned one since. Adds to `notes`."""
        path = output.path
        while True:
            try:
                added = worker.write(path, rgb, picture, origin, replace=output.replaces)
            except NameTaken:
                if self.args.skip_existing and source_in(stored_in(path)) in (None, origin):
                    raise
                path = next_free(output.wanted or output.path)
                notes.append(f"{output.path} has appeared meanwhile: written to {path}")
            else:
                notes += [note for note in added if note not in notes]
                self.console.notes(notes, output.entry.name)
                return path

    def _estimate(self, worker: Worker, output: Output) -> None:
        from sat_sr.cli.describe import describe, describe_cost, record
        from sat_sr.image_io import check_output_size

        work = worker.plan(output.entry.size(self.args.max_pixels))
        check_output_size(output.path, work.target)
        line = f"{describe(worker, output.entry.name, work)} | {describe_cost(work)}"
        self.results.estimated(output, line, record(worker, work))

    @contextlib.contextmanager
    def _failures(self, entry: Entry, *, of_all: bool = True) -> Iterator[None]:
        """What can go wrong with a picture is reported and does not stop the others; what is our mistake does.

        of_all  as in `Results.fail`
        """
        try:
            yield
        except ConnectionError as error:  # in between pictures, too
            self.results.fail(entry, str(error), of_all=False)
        except (ValueError, OSError, MemoryError, FloatingPointError, RuntimeError) as error:
            self.results.fail(entry, reason_of(error), of_all=of_all)
