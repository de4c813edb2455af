"""Where the network's weights live: all on the device, or the layers on the host and brought in one ahead."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import torch
from torch import nn

from sat_sr.inference.fetch_ahead import FetchAhead
from sat_sr.inference.transfer import Copy, Transfer, make_transfer

if TYPE_CHECKING:
    from sat_sr.model.inf_dit import InfDiT  # imports SAT, which takes seconds


class Weights:
    """The weights of a network, where the plans of one picture after another want them.

    On the host go the Linears of the layers, and everything else stays on the device. The parameters of the layer in
    use then point at one of two buffers on the device, those of the others at the host. The host's memory is
    page-locked, which takes long: it is kept until a plan wants the weights on the device.
    """

    def __init__(self, model: InfDiT, device: torch.device):
        self._model, self._device = model, device
        self._layers: list[list[nn.Parameter]] = []
        self._transfer: Transfer | None = None  # whose memory the host's is
        self._host: list[torch.Tensor] = []
        self._ahead: FetchAhead | None = None
        self._in_use: int | None = None

    def place(self, offload: str) -> None:
        """Move them to where a plan wants them. Raises MemoryError or, on a device, torch.OutOfMemoryError."""
        self.release()
        if offload != "all":
            self._model.to(self._device)
            self._transfer, self._host = None, []
            return
        self._layers = [_linears(self._model, layer) for layer in range(self._model.config.num_layers)]
        if not self._are_on_host():
            self._move_to_host()
        streamed = {id(p) for parameters in self._layers for p in parameters}
        for tensor in (*self._model.parameters(), *self._model.buffers()):
            if id(tensor) not in streamed:
                tensor.data = tensor.data.to(self._device)
        self._ahead = FetchAhead(self._host[0].numel(), device=self._device, dtype=self._model.dtype)

    def use(self, layer: int) -> None:
        """The weights of a layer are wanted now."""
        if self._ahead is None or layer == self._in_use:
            return
        self._point_at_host()
        self._point(layer, self._ahead.take(layer, (layer + 1) % len(self._layers), self._fetch))
        self._in_use = layer

    def release(self) -> None:
        """Give the buffers on the device back: the picture is done, or another place is wanted."""
        self._point_at_host()
        self._ahead = None

    def held(self) -> dict[str, int]:
        """Bytes that they have taken, as `measure_budget` wants them."""
        places = Counter()
        for parameter in self._model.parameters():
            places[parameter.device.type] += parameter.nbytes
        return {"held": places[self._device.type], "held_on_host": places["cpu"]}

    def _are_on_host(self) -> bool:
        """Whether they are still where they were moved to: the model is not ours alone."""
        return bool(self._host) and all(
            parameter.data_ptr() == place.data_ptr()
            for parameters, flat in zip(self._layers, self._host, strict=True)
            for parameter, place in zip(parameters, _split(flat, parameters), strict=True)
        )

    def _move_to_host(self) -> None:
        self._host, self._transfer = [], None
        host, transfer = [], make_transfer(self._device)
        for parameters in self._layers:  # layer by layer: what held the weights before is given back on the way
            flat = transfer.host_memory((sum(p.numel() for p in parameters),), self._model.dtype)
            for parameter, place in zip(parameters, _split(flat, parameters), strict=True):
                place.copy_(parameter.data)
                parameter.data = place
            host.append(flat)
        self._host, self._transfer = host, transfer

    def _point_at_host(self) -> None:
        if self._in_use is not None:
            self._point(self._in_use, self._host[self._in_use])
            self._in_use = None

    def _point(self, layer: int, flat: torch.Tensor) -> None:
        for parameter, place in zip(self._layers[layer], _split(flat, self._layers[layer]), strict=True):
            parameter.data = place

    def _fetch(self, layer: int, buffer: torch.Tensor) -> tuple[torch.Tensor, Copy]:
        return buffer, self._transfer.copy(buffer, self._host[layer])


def _linears(model: InfDiT, layer: int) -> list[nn.Parameter]:
    """What is large in a layer: attention, MLP, adaLN."""
    modules = (model.transformer.layers[layer], model.mixins["adaln_layer"].adaLN_modulations[layer])
    return [parameter for module in modules for parameter in module.parameters()]


def _split(flat: torch.Tensor, like: list[nn.Parameter]) -> list[torch.Tensor]:
    """Views of flat memory with the shapes of some parameters."""
    return [part.view(p.shape) for part, p in zip(flat.split([p.numel() for p in like]), like, strict=True)]
