"""What a network call computes with, apart from the schedule: what its memory and its time depend on."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sat_sr.config import InfDiTConfig


@dataclass(frozen=True)
class Workload:
    """A canvas, the network that computes it, and how.

    config   of the network
    canvas   (H, W) pixels, multiples of the block side
    batch    pictures computed together
    device   where the network computes: "cpu", "cuda", "cuda:1", "mps"
    dtype    of the network
    kernel   attention kernel
    sampler  name in `sampling.SAMPLER_NAMES`
    """

    config: InfDiTConfig
    canvas: tuple[int, int]
    batch: int = 1
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    kernel: str = "merge"
    sampler: str = "heun"

    @property
    def grid(self) -> tuple[int, int]:
        """(I, J) blocks of the canvas."""
        block = self.config.image_block_size
        return self.canvas[0] // block, self.canvas[1] // block

    @property
    def itemsize(self) -> int:
        """Bytes of a number in the network's type."""
        return self.dtype.itemsize

    @property
    def block_bytes(self) -> int:
        """Hidden state, or keys, or values, of one block of the grid."""
        return self.batch * self.config.tokens_per_block * self.config.hidden_size * self.itemsize
