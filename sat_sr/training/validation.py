"""How good the averaged weights are: loss at fixed noise levels, PSNR of samples, and a picture to look at."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image

from sat_sr.config import LR_FACTOR
from sat_sr.diffusion.edm import denoise, edm_loss, karras_sigmas
from sat_sr.diffusion.samplers import dpmpp_2m

SIGMAS = (0.05, 0.2, 0.5, 1.0, 3.0)  # a detail's noise to a picture's; N(-1, 1.4) draws its ln sigma from here mostly
PICTURES = 4  # sampled and shown, each rank
SIGMA_MAX, SIGMA_MIN = 5.0, 0.02  # where sampling starts: early in training higher levels are hardly learnt


@dataclass
class ValidationResult:
    """loss: mean over SIGMAS and samples; by_sigma: at each of SIGMAS; psnr: dB of the sampled pictures, RGB."""

    loss: float
    by_sigma: list[float]
    psnr: float
    grid: torch.Tensor  # (3, H, W) uint8: a row a picture: LR, bicubic, sample, target


@torch.no_grad()
def validate(model, batches: list[dict], *, steps: int, seed: int) -> ValidationResult:
    """Runs the model on the same samples with the same noise each time; the numbers are means over all ranks.

    model    called as InfDiT.forward; an engine whose weights are the averaged ones
    batches  dicts of "target", "lr", "lr_upsampled" and, with CLIP, "clip_embedding", on the model's device
    steps    of the sampler
    """
    generator = torch.Generator(batches[0]["target"].device)
    losses = [[] for _ in SIGMAS]
    for number, batch in enumerate(batches):
        target = batch["target"]
        generator.manual_seed(seed + number)
        noise = torch.randn(target.shape, generator=generator, device=target.device)
        for level, sigma in enumerate(SIGMAS):
            losses[level].append(edm_loss(model, noise=noise, sigma=target.new_full((len(target),), sigma), **batch))
    by_sigma = torch.stack([torch.cat(level).mean() for level in losses])

    first = {name: tensor[:PICTURES] for name, tensor in batches[0].items()}
    target = first.pop("target")
    generator.manual_seed(seed)
    noise = torch.randn(target.shape, generator=generator, device=target.device)
    sigmas = karras_sigmas(steps, SIGMA_MIN, SIGMA_MAX)
    sample = dpmpp_2m(
        lambda x, sigma: denoise(model, x, x.new_full((len(x),), float(sigma)), **first),
        first["lr_upsampled"] + sigmas[0].item() * noise,
        sigmas,
    ).clamp(-1, 1)
    psnr = 10 * torch.log10(4 / (sample - target).square().mean(dim=(1, 2, 3)))  # peak to peak is 2
    means = torch.cat([by_sigma, psnr.mean()[None]])
    dist.all_reduce(means)
    means /= dist.get_world_size()
    *by_sigma, psnr = means.tolist()

    lr = first["lr"].repeat_interleave(LR_FACTOR, -1).repeat_interleave(LR_FACTOR, -2)  # as its pixels are
    rows = torch.cat([lr, first["lr_upsampled"], sample, target], dim=-1)  # (B, 3, H, 4W)
    grid = torch.cat(list(rows), dim=-2)
    grid = ((grid.clamp(-1, 1) + 1) * 127.5).round().byte().cpu()
    return ValidationResult(sum(by_sigma) / len(by_sigma), by_sigma, psnr, grid)


def write_picture(path: Path, picture: torch.Tensor) -> None:
    """(3, H, W) uint8 to a PNG."""
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f"tmp-{path.name}")
    Image.fromarray(np.ascontiguousarray(picture.permute(1, 2, 0).numpy())).save(temporary, format="PNG")
    os.replace(temporary, path)
