"""Where the network's weights live: all on the device, or the layers on the host and brought in one ahead."""

from __future__ import annotations

import torch
from torch import nn

from sat_sr.inference.fetch_ahead import FetchAhead
from sat_sr.inference.transfer import Copy, Transfer
from sat_sr.model.inf_dit import InfDiT


class DeviceWeights:
    """All weights on the device."""

    def __init__(self, model: InfDiT, device: torch.device):
        model.to(device)

    def use(self, layer: int) -> None:
        """The weights of a layer are wanted now."""

    def release(self) -> None:
        """They are about to be moved to another place."""


class HostWeights:
    """The Linears of the layers on the host, everything else on the device.

    The parameters of the layer in use point at one of two buffers on the device, those of the others at the host.
    """

    def __init__(self, model: InfDiT, device: torch.device, transfer: Transfer):
        self._transfer = transfer
        self._parameters = [_linears(model, layer) for layer in range(model.config.num_layers)]
        size = sum(p.numel() for p in self._parameters[0])
        self._host: list[torch.Tensor] = []
        for parameters in self._parameters:  # layer by layer: what held the weights before is given back on the way
            flat = transfer.host_memory((size,), model.dtype)
            for parameter, place in zip(parameters, _split(flat, parameters), strict=True):
                place.copy_(parameter.data)
                parameter.data = place
            self._host.append(flat)
        streamed = {id(p) for parameters in self._parameters for p in parameters}
        for tensor in (*model.parameters(), *model.buffers()):
            if id(tensor) not in streamed:
                tensor.data = tensor.data.to(device)
        self._ahead = FetchAhead(size, device=device, dtype=model.dtype)
        self._in_use: int | None = None

    def use(self, layer: int) -> None:
        if layer == self._in_use:
            return
        self.release()
        self._point(layer, self._ahead.take(layer, (layer + 1) % len(self._parameters), self._fetch))
        self._in_use = layer

    def release(self) -> None:
        """All layers point at the host: nothing but this object holds the buffers."""
        if self._in_use is not None:
            self._point(self._in_use, self._host[self._in_use])
            self._in_use = None

    def _point(self, layer: int, flat: torch.Tensor) -> None:
        for parameter, place in zip(self._parameters[layer], _split(flat, self._parameters[layer]), strict=True):
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
