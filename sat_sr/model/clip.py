"""The CLIP image tower that conditions Inf-DiT (paper, section 3.3), on top of the one in transformers.

The release conditions on OpenCLIP's ViT-L/14 (`datacomp_xl_s13b_b90k`): exact GELU, LayerNorm eps 1e-5.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from sat_sr.model.layout import CLIP_PREFIX, mismatch

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)

# transformers' name of everything that is not inside a layer.
_STEM = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_ENCODER_LAYER = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.")
_RESBLOCK = re.compile(r"visual\.transformer\.resblocks\.(\d+)\.(.+)")


def preprocess(lr: Tensor, image_size: int = 224) -> Tensor:
    """What the tower sees: shorter side resized to image_size, centre crop, normalised by CLIP's mean and deviation.

    lr       (B, 3, h, w) in [-1, 1], any size
    returns  (B, 3, image_size, image_size) float32, not clamped after the resize
    """
    h, w = lr.shape[-2:]
    axis, short, long = (3, h, w) if w >= h else (2, w, h)
    long = int(image_size * long / short)
    crop = round((long - image_size) / 2)

    image = (lr.float() + 1) / 2
    # Bicubic interpolation is separable: the long side first, so that only the crop of a 30000×1 strip is blown up.
    size = (h, long) if axis == 3 else (long, w)
    image = F.interpolate(image, size, mode="bicubic", antialias=True, align_corners=False)
    image = image.narrow(axis, crop, image_size)
    image = F.interpolate(image, (image_size, image_size), mode="bicubic", antialias=True, align_corners=False)
    mean, std = (image.new_tensor(values).view(1, 3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
    return (image - mean) / std


class CLIPImageEncoder(nn.Module):
    """Low-resolution image to a CLIP embedding of unit length. Frozen: its parameters want no gradient.

    tower  transformers' image tower with its projection
    Attribute notes: what was assumed about it, a line each.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, tower: CLIPVisionModelWithProjection) -> None:
        super().__init__()
        self.tower = tower.eval().requires_grad_(False)

    @property
    def image_size(self) -> int:
        """Side in pixels of the square that the tower sees: 224 in the official model."""
        return self.tower.config.image_size

    @property
    def embedding_dim(self) -> int:
        """V, width of the embedding: 768 in the official model."""
        return self.tower.config.projection_dim

    def preprocess(self, lr: Tensor) -> Tensor:
        """(B, 3, h, w) in [-1, 1] -> (B, 3, image_size, image_size) float32, see `preprocess` of this module."""
        return preprocess(lr, self.image_size)

    def forward(self, lr: Tensor) -> Tensor:
        """(B, 3, h, w) in [-1, 1] -> (B, V) float32, each row of length 1."""
        pixels = self.preprocess(lr).to(self.tower.visual_projection.weight.dtype)
        with _exact_convolution():
            embedding = self.tower(pixel_values=pixels).image_embeds
        return F.normalize(embedding.float(), dim=-1)

    @classmethod
    def from_openclip(cls, weights: Mapping[str, Tensor], *, head_width: int = 64) -> CLIPImageEncoder:
        """The tower with OpenCLIP's weights; all sizes follow from the shapes, but the width of an attention head.

        weights     OpenCLIP names (`visual.…`), also after the prefix that Inf-DiT checkpoints give them; what is left
                    of a text tower is ignored. The tensors are taken over as they are, without a copy where possible.
        head_width  64 in every ViT-B and ViT-L

        Raises ValueError for missing, unexpected or misshapen weights.
        """
        weights = {name.removeprefix(CLIP_PREFIX): tensor for name, tensor in weights.items()}
        return cls.from_transformers(dict(_rename_openclip(weights)), head_width=head_width)

    @classmethod
    def from_transformers(cls, weights: Mapping[str, Tensor], *, head_width: int = 64) -> CLIPImageEncoder:
        """`from_openclip` for the names of transformers' CLIPModel and CLIPVisionModelWithProjection."""
        weights = {
            name: tensor
            for name, tensor in weights.items()
            # Older files store the position ids, which are 0, 1, 2 ….
            if name.startswith(("vision_model.", "visual_projection.")) and not name.endswith(".position_ids")
        }
        config = _infer_config(weights, head_width)
        with torch.device("meta"):
            tower = CLIPVisionModelWithProjection(config)
        wanted = {name: tuple(tensor.shape) for name, tensor in tower.state_dict().items()}
        found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        if problem := mismatch(found, wanted):
            raise ValueError(f"the weights are not a CLIP image tower ({problem})")
        tower.load_state_dict(weights, assign=True)
        # The one buffer that no file holds.
        embeddings = tower.vision_model.embeddings
        embeddings.position_ids = torch.arange(embeddings.num_positions).expand(1, -1)
        return cls(tower)


@contextlib.contextmanager
def _exact_convolution() -> Iterator[None]:
    """Without cuDNN, to which PyTorch allows TF32 by default, other than to matrix products.

    Training on a GPU is to have the embedding of generation, which computes it on the host. (There are two settings of
    cuDNN's precision, and PyTorch refuses to read one where somebody has used the other.)
    """
    cudnn = torch.backends.cudnn
    before, cudnn.enabled = cudnn.enabled, False
    try:
        yield
    finally:
        cudnn.enabled = before


def _rename_openclip(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """OpenCLIP's image tower in transformers' names."""
    for name, tensor in weights.items():
        if name in _STEM:
            yield _STEM[name], tensor
        elif name == "visual.proj":  # x @ proj there, a Linear here
            yield "visual_projection.weight", tensor.t()
        elif match := _RESBLOCK.fullmatch(name):
            layer = f"vision_model.encoder.layers.{match[1]}"
            module, _, kind = match[2].rpartition(".")
            if module in _LAYER:
                yield f"{layer}.{_LAYER[module]}.{kind}", tensor
            elif match[2] in ("attn.in_proj_weight", "attn.in_proj_bias"):
                kind = match[2].removeprefix("attn.in_proj_")
                for part, third in zip("qkv", tensor.chunk(3), strict=True):
                    yield f"{layer}.self_attn.{part}_proj.{kind}", third
            else:
                yield f"{layer}.{match[2]}", tensor  # unknown: the caller's check names it
        elif name.startswith("visual."):
            yield f"vision_model.{name.removeprefix('visual.')}", tensor


def _infer_config(weights: Mapping[str, Tensor], head_width: int) -> CLIPVisionConfig:
    embeddings = "vision_model.embeddings"
    needed = (
        f"{embeddings}.patch_embedding.weight",
        f"{embeddings}.position_embedding.weight",
        "vision_model.encoder.layers.0.mlp.fc1.weight",
        "visual_projection.weight",
    )
    absent = [name for name in needed if name not in weights]
    if absent:
        raise ValueError(f"the weights are not a CLIP image tower with a projection: {', '.join(absent)} missing")
    conv, positions, fc1, projection = (weights[name] for name in needed)
    width, _, patch, _ = conv.shape
    if head_width < 1 or width % head_width:
        raise ValueError(f"head_width={head_width}: must divide the tower's width, {width}")
    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=fc1.shape[0],
        projection_dim=projection.shape[0],
        num_hidden_layers=len({match[1] for name in weights if (match := _ENCODER_LAYER.match(name))}),
        num_attention_heads=width // head_width,
        image_size=patch * math.isqrt(positions.shape[0] - 1),
        patch_size=patch,
        hidden_act="gelu",
        layer_norm_eps=1e-5,
    )
