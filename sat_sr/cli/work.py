"""What will be done with a picture: sizes, passes, cost. Decided by a worker before it computes, told by describe."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sat_sr.cli.target import Size
from sat_sr.inference.job import Job


@dataclass(frozen=True)
class Work:
    """What will be done with a picture: all sizes are (width, height).

    source   the input as stored;  trimmed  what is upscaled of it;  target  the output
    jobs     one a pass
    """

    source: Size
    trimmed: Size
    target: Size
    jobs: tuple[Job, ...]

    @property
    def flops(self) -> int:
        return sum(job.flops for job in self.jobs)

    @property
    def network_calls(self) -> int:
        return sum(job.settings.network_calls for job in self.jobs)

    @property
    def device_bytes(self) -> int:
        """Peak on the device, weights included."""
        return max(job.plan.device_bytes for job in self.jobs)

    @property
    def on_host(self) -> bool:
        """Whether the device has no memory of its own and takes the host's."""
        return torch.device(self.jobs[-1].plan.device).type != "cuda"

    @property
    def host_bytes(self) -> int:
        """Peak on the host without the program itself: canvases, what does not fit the device, and what it takes."""
        return max(job.plan.host_bytes + self.on_host * job.plan.device_bytes for job in self.jobs)

    @property
    def peak_bytes(self) -> int:
        """Where the network runs."""
        return self.host_bytes if self.on_host else self.device_bytes


def dtype_name(dtype: torch.dtype) -> str:
    """torch.float32 -> 'float32'."""
    return str(dtype).removeprefix("torch.")
