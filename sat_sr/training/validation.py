"""How good the averaged weights are: loss at fixed noise levels, PSNR of samples, and a picture to look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image

from sat_sr.atomic_files import atomic_file
from sat_sr.config import LR_FACTOR
from sat_sr.diffusion.edm import denoise, edm_loss, karras_sigmas
from sat_sr.diffusion.samplers import dpmpp_2m
from sat_sr.training.noise import mix_seed

# From noise that hides the finest detail to noise that hides most of a picture. Training's default, ln sigma ~
# N(-1, 1.4), draws six of seven levels from between the two ends.
SIGMAS = (0.05, 0.2, 0.5, 1.0, 3.0)
PICTURES = 4  # sampled and shown, each rank, where its batches hold so many
SIGMA_MAX, SIGMA_MIN = 5.0, 0.02  # where sampling starts: early in training higher levels are hardly learnt


@dataclass
class ValidationResult:
    """loss: mean over SIGMAS and samples; by_sigma: at each of SIGMAS; psnr: dB of the sampled pictures, RGB."""

    loss: float
    by_sigma: list[float]
    psnr: float
    grid: torch.Tensor | None  # (3, BH, 4W) uint8, of this rank; one row per picture: LR, bicubic, sample, target


@torch.no_grad()
def validate(
    model,
    batches: list[dict],
    *,
    steps: int,
    seed: int,
    device: torch.device,
    stop: Callable[[], bool] = lambda: False,
    asked: Callable[[], bool] = lambda: False,
) -> ValidationResult | None:
    """Runs the model on the same samples with the same noise each time; the numbers are means over all ranks' samples.

    model    called as InfDiT.forward; an engine whose weights are the averaged ones
    batches  dicts of "target", "lr", "lr_upsampled" and, with CLIP, "clip_embedding", on the CPU; may be empty on a
             rank that has no sample
    steps    of the sampler
    stop     called before each batch and after the last, by all ranks together, the same for all: where it is true they
             return None
    asked    called before each call of the model: where it is true this rank leaves its batch, to be the sooner at the
             next `stop`, which must be true then
    """

    def on_device(batch: dict) -> dict:
        return {name: tensor.to(device) for name, tensor in batch.items()}

    generator = torch.Generator(device)
    sums = torch.zeros(len(SIGMAS) + 1, device=device)  # of losses and PSNR
    counts = torch.zeros_like(sums)
    rounds = torch.tensor(len(batches), device=device)
    dist.all_reduce(rounds, op=dist.ReduceOp.MAX)
    for number in range(int(rounds)):
        if stop():
            return None
        if number >= len(batches):  # another rank has more
            continue
        batch = on_device(batches[number])
        target = batch["target"]
        generator.manual_seed(mix_seed("validation", seed, number))
        noise = torch.randn(target.shape, generator=generator, device=device)
        for level, sigma in enumerate(SIGMAS):
            if asked():
                break
            loss = edm_loss(model, noise=noise, sigma=target.new_full((len(target),), sigma), **batch)
            sums[level] += loss.sum()
            counts[level] += len(loss)
    grids = []
    for number in range(min(PICTURES, int(rounds))):
        if stop():
            return None
        missing = PICTURES - int(counts[-1])
        if number >= len(batches) or not missing:
            continue
        batch = on_device({name: tensor[:missing] for name, tensor in batches[number].items()})
        try:
            psnr, grid = _sample(model, batch, steps, generator, asked)
        except _Left:
            continue
        sums[-1] += psnr.sum()
        counts[-1] += len(psnr)
        grids.append(grid)
    if stop():
        return None
    dist.all_reduce(sums)
    dist.all_reduce(counts)
    *by_sigma, psnr = (sums / counts).tolist()
    return ValidationResult(sum(by_sigma) / len(by_sigma), by_sigma, psnr, torch.cat(grids, dim=-2) if grids else None)


class _Left(Exception):
    """A batch, in the middle of it."""


def _sample(
    model, batch: dict, steps: int, generator: torch.Generator, asked: Callable[[], bool]
) -> tuple[torch.Tensor, torch.Tensor]:
    """PSNR of each sample (B,), and the grid. Raises _Left where `asked` is true."""

    def denoised(x: torch.Tensor, sigma: float) -> torch.Tensor:
        if asked():
            raise _Left
        return denoise(model, x, x.new_full((len(x),), sigma), **conditions)

    conditions = {name: tensor for name, tensor in batch.items() if name != "target"}
    target, lr_upsampled = batch["target"], batch["lr_upsampled"]
    noise = torch.randn(target.shape, generator=generator, device=target.device)
    sigmas = karras_sigmas(steps, SIGMA_MIN, SIGMA_MAX)
    sample = dpmpp_2m(denoised, lr_upsampled + SIGMA_MAX * noise, sigmas).clamp(-1, 1)
    psnr = 10 * torch.log10(4 / (sample - target).square().mean(dim=(1, 2, 3)))  # values span 2
    lr = batch["lr"].repeat_interleave(LR_FACTOR, -1).repeat_interleave(LR_FACTOR, -2)  # shown as its pixels are
    rows = torch.cat([lr, lr_upsampled, sample, target], dim=-1)  # (B, 3, H, 4W)
    grid = torch.cat(list(rows), dim=-2)  # (3, BH, 4W)
    return psnr, ((grid.clamp(-1, 1) + 1) * 127.5).round().byte().cpu()


def write_picture(path: Path, picture: torch.Tensor) -> None:
    """(3, H, W) uint8 to a PNG."""
    path.parent.mkdir(exist_ok=True)
    with atomic_file(path) as temporary:
        Image.fromarray(np.ascontiguousarray(picture.permute(1, 2, 0).numpy())).save(temporary, format="PNG")
