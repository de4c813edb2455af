"""What is logged of an interval of steps: mean loss, rate, and the seconds that each phase of a step took."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
import torch.distributed as dist

from sat_sr.measure import peak_rss
from sat_sr.training.logs import RunLog, duration

PHASES = ("data", "forward", "backward", "step")


class PhaseTimer:
    """Seconds spent in each of PHASES since the last `take`.

    On CUDA by events, so that nothing waits for the device until the times are read; "data" is then the time that the
    device stood still for it.
    """

    def __init__(self, use_cuda: bool) -> None:
        self._use_cuda = use_cuda
        self._marks: list[tuple[str, object]] = [("", self._now())]

    def _now(self):
        if not self._use_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def mark(self, phase: str) -> None:
        """Ends `phase`; it began at the mark before."""
        self._marks.append((phase, self._now()))

    def take(self) -> dict[str, float]:
        """Seconds by phase; starts again at the last mark."""
        if self._use_cuda:
            torch.cuda.synchronize()
        seconds = dict.fromkeys(PHASES, 0.0)
        for (_, begin), (phase, end) in zip(self._marks, self._marks[1:], strict=False):
            if phase in seconds:
                seconds[phase] += begin.elapsed_time(end) / 1000 if self._use_cuda else end - begin
        del self._marks[:-1]
        return seconds


class Interval:
    """The steps since the last logged line. All ranks do the same with it; the log writes on rank 0.

    batch  samples per step, over all ranks
    """

    def __init__(self, log: RunLog, batch: int, train_iters: int, device: torch.device, step: int) -> None:
        self.timer = PhaseTimer(device.type == "cuda")
        self._log, self._batch, self._train_iters, self._device = log, batch, train_iters, device
        self.start(step)

    def start(self, step: int) -> None:
        self._loss = torch.zeros((), device=self._device)
        self._updates = 0  # steps that were not skipped
        self._first = step
        self._began = time.perf_counter()
        self.timer.mark("other")
        self.timer.take()

    def add(self, loss: torch.Tensor) -> None:
        """Of a step that has changed the weights."""
        self._loss += loss
        self._updates += 1

    def leave_out(self, seconds: float) -> None:
        """Of the times: the seconds until now that went into something else than training."""
        self._began += seconds
        self.timer.mark("other")

    def write(self, step: int, grad_norm: float, lrs: Sequence[float]) -> None:
        """A line and a record of the steps up to `step`.

        lrs  learning rates: Muon's for the matrices, then AdamW's for the rest; one where it is the same for all
        """
        if not self._updates:  # the same on all ranks
            self._log.line(f"step {step}: no loss to show, all steps since the last line were skipped")
            return
        mean = self._loss / self._updates
        dist.all_reduce(mean)
        loss = mean.item() / dist.get_world_size()
        steps = step - self._first
        phases = {name: seconds / steps for name, seconds in self.timer.take().items()}
        seconds = (time.perf_counter() - self._began) / steps
        rates, times = " ".join(f"{lr:.2e}" for lr in lrs), " ".join(f"{name} {phases[name]:.3f}" for name in PHASES)
        memory = peak_memory(self._device.type == "cuda")
        left = (self._train_iters - step) * seconds
        rate = self._batch / seconds
        self._log.line(
            f"step {step}/{self._train_iters} | loss {loss:.4f} | grad norm {grad_norm:.3f} | "
            f"lr {rates} | {rate:.2f} samples/s | {times} s | {memory:.2f} GiB | {duration(left)} left"
        )
        self._log.scalars(
            "train",
            step,
            {"loss": loss, "grad_norm": grad_norm, "samples_per_second": rate, "memory_gib": memory}
            | dict(zip(("lr", "lr_adamw"), lrs, strict=False))
            | {f"seconds_{name}": phases[name] for name in PHASES},
        )


def peak_memory(use_cuda: bool) -> float:
    """GiB: most that was allocated on the device, or the largest resident size of this process."""
    if use_cuda:
        return torch.cuda.max_memory_allocated() / 2**30
    return peak_rss() / 2**30
