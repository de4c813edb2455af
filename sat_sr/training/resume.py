"""What a resumed run keeps, what it may change, and what is said of that."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import torch
import torch.distributed as dist

from sat_sr.checkpoint.run_folder import EMA_WEIGHTS, find_latest
from sat_sr.data.shards import fingerprint
from sat_sr.programs.release_flags import flag
from sat_sr.training.recipe import Recipe

# Flags that decide the result beside the recipe's numbers.
DECISIVE = (
    "train_data", "degradation", "degrade_on_device", "augment", "lr_dropout", "train_iters", "warmup",
    "lr_decay_style", "muon_lr", "ema_decay", "p_mean", "p_std", "sigma_sampling", "gradient_weight", "seam_weight",
    "random_position", "tf32",
)  # fmt: skip


def checkpoint_of(folder: Path) -> Path | None:
    """The checkpoint that all ranks resume from, which call this together: the one that rank 0 finds.

    On NFS another node may see an older `latest` for a while. Raises ValueError on rank 0, as `find_latest`.
    """
    found = find_latest(folder) if dist.get_rank() == 0 else None
    name = [found and found.name]
    dist.broadcast_object_list(name)
    return folder / name[0] if name[0] else None


def fixed_settings(settings: argparse.Namespace, recipe: Recipe) -> dict:
    """What a run cannot change on its way; JSON values. ZeRO's stages 1 and 2 save the same."""
    return {
        "optimizer": settings.optimizer,
        "precision": recipe.precision,
        "zero": "partitioned" if recipe.zero_stage else "stage 0",
    }


def require_same(folder: Path, saved: dict, fixed: dict) -> None:
    """Raises ValueError where what was saved, training.json's values, cannot be continued with these settings."""
    for name, here in fixed.items():
        if (there := saved.get(name, here)) != here:
            raise ValueError(
                f"{folder} was trained with {name} {there}, this start has {here}: what the run has saved does not fit "
                "that, so start with the same; or begin a new run from the averaged weights: "
                f"--load {folder / str(saved['step']) / EMA_WEIGHTS} with another --save"
            )


def decisive_settings(
    settings: argparse.Namespace, recipe: Recipe, shards: list[str], clip: torch.nn.Module | None
) -> dict:
    """What decides the result and may change on the way, by name; JSON values."""
    shared = {
        "ranks": recipe.world_size,
        "samples per step": recipe.batch,
        "micro batch": recipe.micro_batch,
        "accumulation": recipe.accumulation,
        "lr": recipe.lr,
    }
    shared |= {"betas": list(recipe.betas), "eps": recipe.eps, "weight decay": recipe.weight_decay}
    shared |= {"clipping": recipe.clip_grad} | {flag(name): vars(settings)[name] for name in DECISIVE}
    return shared | {"training shards": fingerprint(shards), "CLIP tower": clip and _fingerprint_of_tower(clip)}


def changes(saved: dict, decisive: dict) -> str:
    """Which of the decisive settings are others than when the checkpoint was saved; "" where none is."""
    there = saved.get("settings", {})
    return ", ".join(
        f"{name} {value} (was {there[name]})"
        for name, value in decisive.items()
        if name in there and there[name] != value
    )


def _fingerprint_of_tower(clip: torch.nn.Module) -> str:
    """Eight digits that tell one tower from another, wherever it lies: of some values of each tensor, for speed."""
    digest = hashlib.sha256()
    for name, tensor in sorted(clip.state_dict().items()):
        values = tensor.flatten()
        digest.update(name.encode() + values[:: max(1, len(values) // 64)].cpu().numpy().tobytes())
    return digest.hexdigest()[:8]
