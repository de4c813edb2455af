"""Muon for the weight matrices inside the layers, AdamW for all other parameters, both with EMA.

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) replaces the momentum of a matrix by the nearest matrix
with orthogonal rows or columns, so all directions move at the same rate. It needs whole matrices: no ZeRO partitions.
"""

from __future__ import annotations

import torch

from sat_sr.training.optimizer import AdamWWithEMA, parameter_groups

MOMENTUM = 0.95
# Quintic iteration whose slope at 0 is as steep as possible; it lands singular values in about [0.7, 1.2].
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


def muon_parameter_groups(model: torch.nn.Module, lr: float, matrix_lr: float, weight_decay: float) -> list[dict]:
    """As `parameter_groups`, with a first group "muon" of the matrices of attention and MLP."""
    matrices = [p for p in model.transformer.layers.parameters() if p.requires_grad and p.ndim == 2]
    taken = set(map(id, matrices))
    rest = [
        {**group, "params": [p for p in group["params"] if id(p) not in taken]}
        for group in parameter_groups(model, lr, weight_decay)
    ]
    return [
        {"params": matrices, "lr": matrix_lr, "peak_lr": matrix_lr, "weight_decay": weight_decay, "muon": True},
        *(group for group in rest if group["params"]),
    ]


def orthogonalise(matrices: torch.Tensor) -> torch.Tensor:
    """About U Vᵀ of each matrix U S Vᵀ, by Newton–Schulz iterations. (N, rows, columns) -> the same shape."""
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class MuonWithEMA(AdamWWithEMA):
    """Groups with "muon" hold matrices that Muon updates; the other groups and the averages are AdamWWithEMA's."""

    def new_state(self, parameter: torch.Tensor, group: dict) -> dict:
        if not group.get("muon"):
            return super().new_state(parameter, group)
        return {
            "step": torch.zeros((), dtype=torch.float32),
            "momentum": torch.zeros_like(parameter),
            "ema": parameter.detach().clone(),
        }

    def update(self) -> None:
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group.get("muon")]
        super().update()
        self.param_groups = groups
        for group in groups:
            if group.get("muon"):
                self._update_matrices(group)

    def _update_matrices(self, group: dict) -> None:
        by_shape: dict[torch.Size, list[torch.Tensor]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                by_shape.setdefault(parameter.shape, []).append(parameter)
        for shape, parameters in by_shape.items():
            grads = [p.grad for p in parameters]
            momenta = [self.state[p]["momentum"] for p in parameters]
            torch._foreach_add_([self.state[p]["step"] for p in parameters], 1)
            torch._foreach_lerp_(momenta, grads, 1 - MOMENTUM)
            ahead = torch._foreach_lerp(grads, momenta, MOMENTUM)  # Nesterov
            updates = orthogonalise(torch.stack(ahead)).unbind()
            scale = max(1.0, shape[0] / shape[1]) ** 0.5  # the same change of the output whatever the shape
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(parameters, updates, alpha=-group["lr"] * scale)
