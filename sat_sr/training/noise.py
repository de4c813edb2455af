"""Random numbers of the training step, as functions of (seed, rank, step): nothing to save, nothing to restore."""

from __future__ import annotations

import hashlib
import random

import torch

from sat_sr.config import InfDiTConfig
from sat_sr.diffusion.edm import sample_training_sigmas, stratified_training_sigmas


def mix_seed(*parts: int | str) -> int:
    """A 63-bit seed from several values; near values give unrelated seeds."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class TrainingNoise:
    """Draws noise, noise levels and position offsets of one step of one rank, micro batch after micro batch."""

    def __init__(
        self, seed: int, rank: int, device: torch.device, p_mean: float, p_std: float, stratified: bool
    ) -> None:
        self._seed, self._rank, self._device = seed, rank, device
        self._p_mean, self._p_std = p_mean, p_std
        self._sigmas = stratified_training_sigmas if stratified else sample_training_sigmas
        self._generator = torch.Generator(device)
        self._offsets = random.Random()

    def start_step(self, step: int) -> None:
        self._generator.manual_seed(mix_seed("noise", self._seed, self._rank, step))
        self._offsets.seed(mix_seed("offset", self._seed, self._rank, step))

    def noise(self, shape: torch.Size) -> torch.Tensor:
        return torch.randn(shape, generator=self._generator, device=self._device)

    def sigmas(self, batch: int) -> torch.Tensor:
        return self._sigmas(batch, self._generator, self._device, self._p_mean, self._p_std)

    def position_offset(self, config: InfDiTConfig) -> tuple[int, int]:
        """(row, column), each uniform in 0 … 7·(image_size/p) inclusive: every position of inference is seen."""
        most = 7 * config.image_size // config.patch_size
        return self._offsets.randint(0, most), self._offsets.randint(0, most)
