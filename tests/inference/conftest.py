"""What several tests of inference need: inputs of a network, and an account of live tensors."""

from __future__ import annotations

import weakref

import pytest
import torch
from tiny_upscaler import CONFIG, SETTINGS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sat_sr.config import InfDiTConfig
from sat_sr.inference.upscaler import Upscaler


@pytest.fixture(scope="session")
def make_inputs():
    """(config, grid) -> x, lr, lr_upsampled, clip_embedding of a canvas of that many blocks."""

    def make(config: InfDiTConfig, grid: tuple[int, int], seed: int = 1):
        generator = torch.Generator().manual_seed(seed)
        height, width = (blocks * config.image_block_size for blocks in grid)
        lr = torch.rand(1, 3, height // 4, width // 4, generator=generator) * 2 - 1
        lr_upsampled = torch.nn.functional.interpolate(lr, scale_factor=4)
        x = lr_upsampled + torch.randn(lr_upsampled.shape, generator=generator)
        return x, lr, lr_upsampled, torch.randn(1, config.vector_dim, generator=generator)

    return make


@pytest.fixture(scope="session")
def tiny_model(make_model):
    return make_model(CONFIG)


@pytest.fixture(scope="session")
def upscaler(tiny_model):
    return Upscaler(tiny_model, defaults=SETTINGS)


@pytest.fixture
def use_transfer(monkeypatch):
    """(make) -> None: what copies between host and device, of a picture's state and of the weights."""

    def use(make):
        for module in ("denoiser", "weights"):
            monkeypatch.setattr(f"sat_sr.inference.{module}.make_transfer", make)

    return use


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are made inside and still alive.

    limit  what a machine has: an operation whose result goes beyond fails as if memory had run out
    meta   count tensors without memory, which stand for others, instead of those with memory
    """

    def __init__(self, limit: float = float("inf"), meta: bool = False):
        super().__init__()
        self.limit, self.now, self.peak, self.meta = limit, 0, 0, meta
        self._known: set[int] = set()

    def forget(self, storage: torch.UntypedStorage) -> None:
        """Do not count a storage, it stands for memory in another place; the peak is counted from here on."""
        self._drop(storage._cdata, storage.nbytes())
        self.peak = self.now

    def _drop(self, key: int, size: int) -> None:
        if key in self._known:
            self._known.remove(key)
            self.now -= size

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        inputs = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if not isinstance(tensor, torch.Tensor) or (tensor.device.type == "meta") != self.meta:
                continue
            storage = tensor.untyped_storage()
            if storage._cdata in inputs or storage._cdata in self._known:
                continue
            size = storage.nbytes()
            if self.now + size > self.limit:
                raise torch.OutOfMemoryError(f"out of memory: {size} bytes wanted, {self.limit - self.now} left")
            self._known.add(storage._cdata)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, storage._cdata, size)
        return result


@pytest.fixture(scope="session")
def live_bytes():
    return LiveBytes
