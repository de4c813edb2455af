"""Colour spaces and transparency: profiles are kept where the pixels stay as they are, CMYK and Lab become sRGB."""

from __future__ import annotations

import io

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageCms

# ICC colour space signatures that fit pixels of a kind. A grey picture with an RGB profile is common and harmless.
_FITTING_SPACES = {"grey": ("GRAY", "RGB "), "rgb": ("RGB ",), "cmyk": ("CMYK",)}


def check_profile(icc: bytes | None, kind: str, notes: list[str]) -> bytes | None:
    """`icc` if it is a profile that fits pixels of `kind` ("grey", "rgb" or "cmyk"); else None, noted."""
    if not icc:
        return None
    try:
        space = ImageCms.ImageCmsProfile(io.BytesIO(icc)).profile.xcolor_space
    except (OSError, TypeError, ValueError) as error:
        notes.append(f"the ICC profile does not parse ({error}): left out, the colours are taken as sRGB")
        return None
    if space not in _FITTING_SPACES[kind]:
        notes.append(f"the ICC profile is for {space.strip()}, the pixels are {kind}: left out")
        return None
    return icc


def cmyk_to_srgb(image: Image.Image, icc: bytes | None, notes: list[str]) -> Image.Image:
    """CMYK to sRGB by its profile (relative colorimetric, black point compensation), noted; without one by the plain
    formula (1-C)(1-K)."""
    icc = check_profile(icc, "cmyk", notes)
    if icc is None:
        notes.append("CMYK without a profile: converted to sRGB by the plain formula, colours are approximate")
        return image.convert("RGB")
    profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    notes.append(f"CMYK converted to sRGB by its profile ({ImageCms.getProfileDescription(profile).strip()})")
    return ImageCms.profileToProfile(
        image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB",
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC, flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )  # fmt: skip


def lab_to_srgb(image: Image.Image, notes: list[str]) -> Image.Image:
    """CIE Lab (D50, 8 bits) to sRGB, noted."""
    notes.append("Lab colours converted to sRGB")
    return ImageCms.profileToProfile(
        image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB",
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
    )  # fmt: skip


def unpremultiply(rgb: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """Straight colours, from colours multiplied by alpha. rgb (3, H, W) and alpha (1, H, W), both in [0, 1]."""
    return torch.where(alpha > 0, rgb / alpha.clamp_min(1e-6), rgb).clamp(0, 1)


def fill_transparent(rgb: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """Replaces the colours of fully transparent pixels by those of their neighbours.

    What a file stores under alpha 0 is arbitrary, mostly black; an upscaler would draw it into the edge of the visible
    part as a dark fringe. Pull-push (Gortler et al., The Lumigraph, 1996): average the known colours down to one pixel,
    then fill the unknown ones coarse to fine.

    rgb (3, H, W) any range, alpha (1, H, W) -> (3, H, W); visible pixels are untouched, nothing visible: all are.
    """
    known = (alpha > 0).to(rgb.dtype)
    if known.all() or not known.any():
        return rgb
    return _pull_push((rgb * known)[None], known[None])[0]


def _pull_push(color: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """color (1, 3, H, W), zero where `known` (1, 1, H, W) is 0 -> color with the rest filled in."""
    if known.all():
        return color
    size = color.shape[-2:]
    weight = F.avg_pool2d(known, 2, ceil_mode=True, count_include_pad=False)
    average = F.avg_pool2d(color, 2, ceil_mode=True, count_include_pad=False) / weight.clamp_min(1e-12)
    coarse = _pull_push(average * (weight > 0), (weight > 0).to(color.dtype))
    return torch.where(known > 0, color, F.interpolate(coarse, size=size, mode="bilinear", align_corners=False))


def resize_alpha(alpha: torch.Tensor, size: tuple[int, int], rows: tuple[int, int] | None = None) -> torch.Tensor:
    """Transparency resized by Lanczos (a = 3), clipped to its range.

    alpha (1, h, w) float32 in [0, 1]; size (W, H) in pixels -> (1, H, W), or only `rows` = (first, end) of it,
    (1, end-first, W), with the same values up to float32 rounding (2e-5): a large output can be made strip by strip.
    """
    height, width = alpha.shape[1:]
    out_width, out_height = size
    first, end = rows or (0, out_height)
    box = (0, first * height / out_height, width, end * height / out_height)
    image = Image.fromarray(np.ascontiguousarray(alpha[0].numpy()))  # mode F
    resized = image.resize((out_width, end - first), Image.Resampling.LANCZOS, box=box)
    return torch.from_numpy(np.array(resized))[None].clamp(0, 1)
