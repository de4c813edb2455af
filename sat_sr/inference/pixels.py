"""Pictures as Python programs have them, PIL images, numpy arrays and tensors: to one kind of tensor, and back."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps

from sat_sr.image_io.color import check_profile, fill_transparent
from sat_sr.image_io.decoding_errors import EXIF_ERRORS

logger = logging.getLogger(__name__)

Pixels = TypeVar("Pixels", Image.Image, np.ndarray, torch.Tensor)


def to_tensor(image: Pixels) -> tuple[torch.Tensor, Callable[[torch.Tensor], Pixels]]:
    """Any of them as (B, 3, h, w) float32 in [-1, 1], and the way back to its kind.

    Raises TypeError or ValueError that says what was given and what is wanted.
    """
    if isinstance(image, Image.Image):
        return _from_pil(image)
    if isinstance(image, np.ndarray):
        return _from_numpy(image)
    if not isinstance(image, torch.Tensor):
        raise TypeError(f"image is a {type(image).__name__}: give a PIL image, a numpy array or a tensor")
    if image.ndim not in (3, 4) or image.shape[-3] != 3 or not image.is_floating_point() or 0 in image.shape:
        raise ValueError(
            f"tensor of shape {tuple(image.shape)}, {image.dtype}: must be (3, h, w) or (B, 3, h, w), float in [-1, 1]"
        )
    low, high = image.aminmax()
    if not (low >= -1.0001 and high <= 1.0001):  # also false for NaN
        raise ValueError(f"tensor with values from {low:.4g} to {high:.4g}: must lie in [-1, 1]")
    batch = image.detach().float().cpu().reshape(-1, *image.shape[-3:])

    def restore(output: torch.Tensor) -> torch.Tensor:
        output = output.to(image.device, image.dtype).contiguous()
        return output if image.ndim == 4 else output[0]

    return batch, restore


def _from_numpy(image: np.ndarray) -> tuple[torch.Tensor, Callable[[torch.Tensor], np.ndarray]]:
    levels = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}.get(image.dtype.newbyteorder("="))
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape or not (levels or image.dtype.kind == "f"):
        raise ValueError(
            f"array of shape {image.shape}, {image.dtype}: must be (h, w, 3), uint8, uint16 or float in [0, 1]"
        )
    values = torch.from_numpy(image.astype(np.float32)) / (levels or 1)
    if not bool(((values >= 0) & (values <= 1)).all()):
        raise ValueError(f"array with values from {image.min()} to {image.max()}: floats must lie in [0, 1]")

    def restore(output: torch.Tensor) -> np.ndarray:
        values = (output[0].permute(1, 2, 0) + 1).div_(2)
        if levels:
            values = values.mul_(levels).round_()
        return np.ascontiguousarray(values.numpy(), dtype=image.dtype)

    return (values * 2 - 1).permute(2, 0, 1)[None].contiguous(), restore


def _from_pil(image: Image.Image) -> tuple[torch.Tensor, Callable[[torch.Tensor], Image.Image]]:
    """RGB as it is, L and RGBA restored afterwards (alpha by Lanczos), other modes of 8 bits as RGB, or as RGBA if they
    have transparency.

    The picture is turned upright as its EXIF says. Colours that nobody sees, under alpha 0, are not used. An ICC
    profile that fits the output's mode is put into the output's `info`, from where Pillow's `save` takes it; another is
    left out with a warning.
    """
    if image.mode.startswith(("I", "F")):  # PIL's conversion to RGB would clip at 255
        raise ValueError(
            f"a PIL picture of mode {image.mode}: give a numpy array (h, w, 3), uint16 or float in [0, 1], "
            "or read the file with image_io"
        )
    if image.has_transparency_data:
        mode, kind = "RGBA", f"{image.mode} with transparency"
    else:
        mode, kind = "L" if image.mode == "L" else "RGB", image.mode
    if mode != image.mode:
        logger.warning("a picture of mode %s is upscaled as %s; read files with image_io to keep more", kind, mode)
    image = _upright(image).convert(mode)
    notes: list[str] = []
    icc = check_profile(image.info.get("icc_profile"), "grey" if mode == "L" else "rgb", notes)
    for note in notes:
        logger.warning(note)
    tensor, from_array = _from_numpy(np.asarray(image.convert("RGB")))
    if mode == "RGBA":
        alpha = torch.from_numpy(np.array(image.getchannel("A")))[None]
        tensor = fill_transparent(tensor[0], alpha)[None]

    def restore(output: torch.Tensor) -> Image.Image:
        picture = Image.fromarray(from_array(output))
        if mode == "RGBA":
            picture.putalpha(image.getchannel("A").resize(picture.size, Image.Resampling.LANCZOS))
        picture = picture.convert(mode)
        if icc:
            picture.info["icc_profile"] = icc
        return picture

    return tensor, restore


def _upright(image: Image.Image) -> Image.Image:
    image.load()  # what fails here is not EXIF
    try:
        return ImageOps.exif_transpose(image)
    except EXIF_ERRORS as error:
        logger.warning("EXIF data does not parse (%s): the picture is taken as upright", error)
        return image
