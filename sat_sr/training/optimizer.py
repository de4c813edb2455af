"""AdamW whose state carries an exponential moving average of the weights, and the learning rate of a step.

The average lives in the optimizer's state beside the two moments. So it is partitioned by ZeRO, saved and restored
with them, and always float32, whatever the precision of the network: under ZeRO and bf16 the parameters that an
optimizer sees are this rank's slices of the float32 master weights.
"""

from __future__ import annotations

import math

import torch

UNUSED = ("transformer.position_embeddings.", ".k_layer_norm.")  # in every checkpoint, never in the computation
PER_WEIGHT = ("exp_avg", "exp_avg_sq", "ema")  # what AdamW's state has a number of for each weight
LR_DECAY_STYLES = ("linear", "cosine", "constant")


def learning_rate(step: int, total_steps: int, peak: float, warmup: float = 0.01, style: str = "linear") -> float:
    """Learning rate of the update number `step` (0, 1, …, total_steps − 1).

    Rises linearly over the first `warmup` (a fraction of the run), reaching `peak` at its end, then falls to zero by
    `style`: "linear", "cosine" (half a period) or "constant" (stays). A function of the step alone, so a resumed run
    has it without saving anything.
    """
    warmup_steps = math.ceil(warmup * total_steps)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    left = 1 - (step - warmup_steps) / max(total_steps - warmup_steps, 1)  # 1 at the end of the warm-up, 0 at the end
    if style == "linear":
        return peak * left
    if style == "cosine":
        return peak * (1 - math.cos(math.pi * left)) / 2
    if style == "constant":
        return peak
    raise ValueError(f"learning rate decay {style!r}: use one of {', '.join(LR_DECAY_STYLES)}")


def ema_decay(updates: int, maximum: float = 0.9999) -> float:
    """How much of the average the update number `updates` (1, 2, …) keeps: min(maximum, (1 + k)/(10 + k)).

    The fraction rises from 2/11, so that the random initial weights are forgotten within the first updates.
    """
    return min(maximum, (1 + updates) / (10 + updates))


def parameter_groups(model: torch.nn.Module, lr: float, weight_decay: float) -> list[dict]:
    """The trainable parameters in two groups: with weight decay, and without (biases and the vectors of norms).

    "peak_lr" of a group is what the schedule scales.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "lr": lr, "peak_lr": lr, "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "lr": lr, "peak_lr": lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


class AdamWWithEMA(torch.optim.AdamW):
    """torch.optim.AdamW (foreach kernels) and, after each update, `ema ← d·ema + (1 − d)·weights`, d = `ema_decay`.

    The average is `state[parameter]["ema"]`, of the parameter's shape, started at the weights before the first update.
    Works on any parameters: whole float32 tensors, or the flat partitions that ZeRO puts in their place.

    params  groups as `parameter_groups` gives them
    """

    def __init__(
        self,
        params: list[dict],
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        ema_decay: float = 0.9999,
    ) -> None:
        if not 0 <= ema_decay < 1:
            raise ValueError(f"EMA decay {ema_decay}: must be at least 0 and below 1, such as 0.9999")
        super().__init__(params, betas=tuple(betas), eps=eps, foreach=True)
        # A group's entry, so that it is saved with the rest.
        for group in self.param_groups:
            group["ema_decay"] = ema_decay

    def new_state(self, parameter: torch.Tensor, group: dict) -> dict[str, torch.Tensor]:
        """The state before the first update. The first three as torch.optim.AdamW makes and names them."""
        return {
            "step": torch.zeros((), dtype=torch.float32),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
            "ema": parameter.detach().clone(),
        }

    def start(self) -> None:
        """Makes the state of all parameters. The first `step` would do it, but DeepSpeed looks for it earlier."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if not self.state[parameter]:
                    self.state[parameter] = self.new_state(parameter, group)

    def update(self) -> None:
        """Changes the weights; `step` then averages them."""
        super().step()

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        self.start()
        self.update()
        # Groups are walked as they are now: ZeRO steps one group at a time by replacing the list.
        for group in self.param_groups:
            updated = [p for p in group["params"] if p.grad is not None]
            if updated:
                decay = ema_decay(int(self.state[updated[0]]["step"]), group["ema_decay"])
                torch._foreach_lerp_([self.state[p]["ema"] for p in updated], updated, 1 - decay)
