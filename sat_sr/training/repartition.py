"""What ZeRO saved on one number of ranks, loaded on another.

ZeRO lays the parameters of a group end to end, pads the whole to a multiple of the ranks and gives each one slice, of
the float32 weights and of every state of the optimizer (Rajbhandari et al., arXiv 1910.02054). Each slice is saved with
what lies where in it, by the parameters' names. So a parameter is put together from the pieces that the old ranks have
of it, and DeepSpeed cuts it as the new ranks want it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from deepspeed import DeepSpeedEngine
from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

from sat_sr.checkpoint.run_folder import optimizer_states
from sat_sr.training.engine import link_optimizer_state
from sat_sr.training.optimizer import PER_WEIGHT


@torch.no_grad()
def load_repartitioned(engine: DeepSpeedEngine, checkpoint: Path, ranks: int) -> None:
    """Weights, moments and EMA from the checkpoint of `ranks` ranks. Called by all ranks together, with ZeRO.

    A rank reads what it keeps a part of, not all that was saved.
    """
    engine.load_checkpoint(str(checkpoint.parent), tag=checkpoint.name, load_optimizer_states=False)
    link_optimizer_state(engine)
    slices = [_Slice(path) for path in optimizer_states(checkpoint, ranks)]
    for name, parameter in engine.module.named_parameters():
        if getattr(parameter, "_hp_mapping", None) is None:
            continue  # not trained, or nothing of it is kept here
        safe_set_full_fp32_param(parameter, _whole(slices, name, None).to(parameter.device))
        for key in PER_WEIGHT:
            safe_set_full_optimizer_state(parameter, _whole(slices, name, key).to(parameter.device), key)
    optimizer = engine.optimizer.optimizer  # ZeRO's, of slices
    for at, group in enumerate(optimizer.param_groups):
        (flat,) = group["params"]
        optimizer.state[flat]["step"].copy_(slices[0].states[at]["step"])


class _Slice:
    """What one rank saved: float32 weights and optimizer states of its slice of each parameter group."""

    def __init__(self, path: Path) -> None:
        # Mapped, so that reading a piece of it reads no more. A run's own file, as those that DeepSpeed loads.
        saved = torch.load(path, map_location="cpu", mmap=True, weights_only=False)["optimizer_state_dict"]
        self.weights = saved["single_partition_of_fp32_groups"]
        self.states = saved["base_optimizer_state"]["state"]
        self.addresses = saved["param_slice_mappings"]

    def pieces(self, name: str, key: str | None) -> list[torch.Tensor]:
        """Of the parameter's weights, or of a state of it: a flat tensor; none if other ranks have it all."""
        return [
            (self.weights[at] if key is None else self.states[at][key]).narrow(0, address.start, address.numel)
            for at, group in enumerate(self.addresses)
            if (address := group.get(name))
        ]


def _whole(slices: list[_Slice], name: str, key: str | None) -> torch.Tensor:
    """A parameter, flat, in float32: its pieces follow one another from rank to rank."""
    return torch.cat([piece for part in slices for piece in part.pieces(name, key)])
