"""What several tests of the network need."""

from __future__ import annotations

import pytest
from torch.utils._python_dispatch import TorchDispatchMode


class CalledOperators(TorchDispatchMode):
    """The names of the operators that are called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.fixture
def called_operators():
    return CalledOperators()
