"""What is kept on the host comes to the device one thing ahead of its use, while another is computed.

    compute           group 1    group 2    group 3    group 4
    host -> device    fetch 2    fetch 3    fetch 4    fetch 5
    device -> host               store 1    store 2    store 3

Things are groups of hidden state, keys and values, or the weights of a layer.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable
from typing import NamedTuple

import torch

from sat_sr.inference.transfer import Copy

# Called with (key, buffer): starts to copy the thing `key` into the flat `buffer`; returns the part of the buffer that
# it fills, and the last copy.
Fetch = Callable[[Hashable, torch.Tensor], tuple[torch.Tensor, Copy]]


class Arriving(NamedTuple):
    key: Hashable
    tensor: torch.Tensor
    copy: Copy


class FetchAhead:
    """Brings things of the host to the device through two buffers: one in use, one arriving.

    size     elements of the largest thing
    buffers  3 when a thing is changed in its buffer and goes back from there: one more is leaving
    """

    def __init__(self, size: int, *, device: torch.device, dtype: torch.dtype, buffers: int = 2):
        self._buffers = itertools.cycle([torch.empty(size, device=device, dtype=dtype) for _ in range(buffers)])
        self._arriving: Arriving | None = None

    def take(self, key: Hashable, following: Hashable | None, fetch: Fetch) -> torch.Tensor:
        """The thing `key`, valid until the next `take`; starts to fetch `following`, the one that is wanted next.

        fetch  not kept: it is a method of the owner of this object, and the two would keep each other, and the buffers,
               until the garbage collector comes

        The computation on the thing taken before must have been issued: its buffer is filled again.
        """
        taken = self._arriving if self._arriving and self._arriving.key == key else self._start(key, fetch)
        self._arriving = None if following is None else self._start(following, fetch)
        taken.copy.wait()
        return taken.tensor

    def unfilled(self) -> torch.Tensor:
        """The buffer that is next, for a thing that does not come from the host; valid as what `take` returns is.

        Nothing may be arriving when it is filled: what is, comes to its end and is dropped.
        """
        if self._arriving:
            self._arriving.copy.wait()
            self._arriving = None
        return next(self._buffers)

    def forget(self, key: Hashable) -> None:
        """The thing `key` has changed on the host: what was fetched of it is stale."""
        if self._arriving and self._arriving.key == key:
            self._arriving = None

    def _start(self, key: Hashable, fetch: Fetch) -> Arriving:
        return Arriving(key, *fetch(key, next(self._buffers)))
