"""How much memory a rank needs for what its engine holds, by the numbers alone."""

from __future__ import annotations

import math
from collections.abc import Mapping

from sat_sr.training.optimizer import UNUSED
from sat_sr.training.recipe import Recipe

FLOAT32 = 4  # bytes
STATES = {"adamw": 3, "muon": 2}  # float32 numbers for each weight: two moments or one, and the average


def held_bytes(shapes: Mapping[str, tuple[int, ...]], recipe: Recipe, optimizer: str) -> float:
    """Weights, gradients and optimizer state of a rank at the end of a backward pass, when most of them are there.

    shapes  of the network's parameters by name

    Activations, and the buckets in which ranks exchange gradients, come on top.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    trained = sum(size for name, size in sizes.items() if not any(part in name for part in UNUSED))
    width = 2 if recipe.precision == "bf16" else FLOAT32
    network, gradients = width * sum(sizes.values()), width * trained
    if not recipe.zero_stage:
        matrices = 0
        if optimizer == "muon":
            layers = [
                name for name, shape in shapes.items() if name.startswith("transformer.layers.") and len(shape) == 2
            ]
            matrices = sum(sizes[name] for name in layers)
        states = STATES["muon"] * matrices + STATES["adamw"] * (trained - matrices)
        return network + gradients + FLOAT32 * states
    # ZeRO: float32 weights and states in slices; so are the gradients, but whole where stage 1 adds several up.
    slices = FLOAT32 * (1 + STATES["adamw"]) * trained / recipe.world_size
    whole = recipe.zero_stage == 1 and recipe.accumulation > 1
    kept = gradients if whole else gradients / recipe.world_size
    if recipe.engine.get("data_types", {}).get("grad_accum_dtype") == "fp32" and recipe.precision == "bf16":
        # Stage 1 is another engine then, which keeps all gradients in float32 as well.
        kept = kept + FLOAT32 * trained if recipe.zero_stage == 1 else FLOAT32 * trained / recipe.world_size
    return network + slices + kept
