"""Options and fixtures shared by all tests."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from sat_sr.config import InfDiTConfig

TINY = InfDiTConfig(
    num_layers=3, hidden_size=32, num_attention_heads=2, image_block_size=16, image_size=64, vector_dim=8
)


def pytest_addoption(parser):
    parser.addoption(
        "--golden-dir", type=Path, default=Path(__file__).parent / "golden", help="folder of recorded cases"
    )


def pytest_make_parametrize_id(val, argname):
    """Long bytes are files or profiles, which hold the second in which they were made: xdist's workers, which collect
    in different seconds, would disagree on the names of the tests, and the whole run end."""
    return argname if isinstance(val, bytes) and len(val) > 40 else None


@pytest.fixture(scope="session")
def golden_dir(request) -> Path:
    return request.config.getoption("--golden-dir")


@pytest.fixture(scope="session")
def make_model():
    """config -> InfDiT with all parameters random: a fresh one has zeros where the differences would be."""

    def make(config: InfDiTConfig = TINY):
        from sat_sr.model.inf_dit import InfDiT

        model, generator = InfDiT(config).eval().requires_grad_(False), torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            fan_in = parameter.shape[-1] if parameter.ndim > 1 else 16
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * fan_in**-0.5)
        return model

    return make


CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
ATEN = torch.ops.aten


class StandInDevice(TorchFunctionMode):
    """A GPU that the CPU computes for: while it is entered, tensors say that they are on `CUDA` once they were put
    there, and an operation that mixes them with others fails, as it would there.

    Storages are known by their address. Streams, kernels and the memory of a GPU are not imitated.
    """

    # What copies between devices, and what looks at tensors of two devices without computing.
    MOVES = frozenset({torch.Tensor.copy_, torch.Tensor.__setitem__, torch.Tensor.data.__set__})
    LOOKS = frozenset({torch._has_compatible_shallow_copy_type})
    ATTENTION = frozenset({ATEN._scaled_dot_product_flash_attention, ATEN._scaled_dot_product_efficient_attention})

    def __init__(self):
        super().__init__()
        self._storages: set[int] = set()

    def __enter__(self):
        own = torch._C.TensorBase.device.__get__
        torch.Tensor.device = property(lambda tensor: CUDA if self.has(tensor) else own(tensor))
        torch.Tensor.is_cuda = property(self.has)
        return super().__enter__()

    def __exit__(self, *exc):
        del torch.Tensor.device, torch.Tensor.is_cuda
        return super().__exit__(*exc)

    def has(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._storages

    def _put(self, result):
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and not self.has(tensor):
                storage = tensor.untyped_storage()
                self._storages.add(storage._cdata)
                weakref.finalize(storage, self._storages.discard, storage._cdata)
        return result

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        on_device = any(map(self.has, tensors))
        if function in (torch.Tensor.to, torch.Tensor.cpu):
            return self._to(*args, **kwargs) if function is torch.Tensor.to else self._to(*args, CPU)
        if function is torch.Tensor.numpy and on_device:
            raise TypeError("can't convert a tensor on the device to numpy")
        if kwargs.get("device") is not None:
            on_device = torch.device(kwargs["device"]).type == "cuda"
            kwargs["device"] = CPU
        elif function not in self.MOVES | self.LOOKS:
            # A single number may come from the host.
            elsewhere = [tuple(t.shape) for t in tensors if on_device and t.dim() and not self.has(t)]
            if elsewhere:
                raise RuntimeError(f"{function}: tensors on the device and others, of shape {elsewhere}, on the host")
        if function in self.ATTENTION:
            return self._put(ATEN._scaled_dot_product_flash_attention_for_cpu(*args[:3]))
        if function is torch._addmm_activation:
            return self._put(torch.nn.functional.gelu(torch.addmm(*args), approximate="tanh"))
        result = function(*args, **kwargs)
        return self._put(result) if on_device and function not in self.MOVES else result

    def _to(self, tensor: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        if args and isinstance(args[0], torch.Tensor):
            device, dtype = CUDA if self.has(args[0]) else CPU, args[0].dtype
        else:
            device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        on_device = self.has(tensor) if device is None else device.type == "cuda"
        if on_device == self.has(tensor) and dtype in (None, tensor.dtype):
            return tensor
        moved = torch.empty_like(tensor, dtype=dtype).copy_(tensor)
        return self._put(moved) if on_device else moved


@pytest.fixture(scope="session")
def stand_in_device():
    """One for all tests: what is cached for the device stays there."""
    return StandInDevice()
