"""How the ranks share the work: each does its part of the list, or all compute every picture together."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from sat_sr.cli.errors import CannotRun, reason_of
from sat_sr.image_io.picture import PictureError
from sat_sr.programs import exit_codes
from sat_sr.programs.launcher import Process

if TYPE_CHECKING:
    import torch

    from sat_sr.cli.console import Console
    from sat_sr.inference.ranks import Ranks

Result = TypeVar("Result")
_POLL_SECONDS = 0.5


@dataclass
class Sharing:
    """This process among the ranks.

    process  its place
    ranks    those that compute every picture together with it; None when they share the list
    """

    process: Process
    ranks: Ranks | None = None

    @property
    def together(self) -> bool:
        return self.ranks is not None

    @property
    def reports(self) -> bool:
        """Whether this rank reports what all of them find."""
        return not self.together or self.process.rank == 0

    def mine(self, items: Sequence) -> Sequence:
        """This rank's part of a list: every rank makes the same list."""
        return items if self.together else items[self.process.rank :: self.process.world_size]

    @contextlib.contextmanager
    def awaited(self, report: Callable[[str], None]) -> Iterator[None]:
        """What comes before `join`: where this rank cannot run, `report` tells why, and all ranks end."""
        try:
            yield
        except CannotRun as error:
            from sat_sr.inference.rendezvous import decline

            report(str(error))
            with contextlib.suppress(KeyboardInterrupt):  # torchrun's signal, when another has ended first
                decline(self.process.rank, self.process.world_size)
            raise SystemExit(exit_codes.WRONG_USE) from error

    def join(self, settings: Mapping[str, Any], device: torch.device, console: Console) -> None:
        """From here on the ranks compute every picture together; the first one reports and writes for all.

        settings, device  as in `rendezvous.join`

        Raises SystemExit where they cannot, which is told.
        """
        from sat_sr.inference.rendezvous import RanksDiffer, join

        try:
            self.ranks = join(settings, device, self.process.rank, self.process.world_size, on_wait=console.note)
        except (ValueError, OSError) as error:
            if isinstance(error, RanksDiffer) and self.process.rank:  # all know it, the first one reports it
                raise SystemExit(exit_codes.FAILED) from error
            console.error(str(error))
            raise SystemExit(exit_codes.WRONG_USE) from error

    def agree(self, action: Callable[[], Result], report: Callable[[str], None]) -> Result:
        """What `action` returns, or the error that it raises. PictureError where that error is another rank's, with
        which this one would compute the picture: none may wait for one that has given up.

        report  called with the error by the first rank that has one, if it is not the rank which reports
        """
        error: Exception | None = None
        try:
            result = action()
        except (ValueError, OSError, MemoryError, RuntimeError) as caught:
            reason, error = reason_of(caught), caught
        first = self.ranks.first_with(error is not None) if self.ranks else None
        if error:
            if first == self.process.rank and not self.reports:
                report(reason)
            raise error
        if first is not None:
            raise PictureError(f"rank {first} cannot do it: its message says why")
        return result

    def all_run(self, action: Callable[[], object]) -> None:
        """Raises CannotRun where `action` does, or does on another rank with which this one would compute pictures."""
        error: CannotRun | None = None
        try:
            action()
        except CannotRun as caught:
            error = caught
        first = self.ranks.first_with(error is not None) if self.ranks else None
        if error:
            raise error
        if first is not None:
            raise CannotRun(f"rank {first} cannot go on: its message says why")

    def finish(self, failed: bool, on_wait: Callable[[str], None]) -> None:
        """To be called last. A rank that ends with an error waits for the others: torchrun would end them with it.

        on_wait  called with a sentence if there is somebody to wait for
        """
        if self.ranks:
            self.ranks.close()
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or self.process.world_size == 1:
            return  # other launchers let the rest work on
        from datetime import timedelta

        from torch.distributed import PrefixStore, TCPStore

        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        try:
            store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=30))
            # torchrun keeps its store when it starts the ranks again.
            store = PrefixStore(f"finished, attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
            others = self.process.world_size - store.add("ranks", 1)
            if failed and others:
                on_wait(f"this rank is done, and waits for {others} other(s) so that torchrun does not end them")
            while failed and store.add("ranks", 0) < self.process.world_size:
                time.sleep(_POLL_SECONDS)
        except RuntimeError:  # torchrun itself has gone
            return
