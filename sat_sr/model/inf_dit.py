"""Inf-DiT (arXiv 2405.04312) as a SAT model: the mixins put together.

Shapes: B batch · H W canvas pixels · p patch · b block side · n = b/p · I J block rows and columns · L = n² tokens of a
block · C width · h heads · d head dim. Tokens live in blocks, (B, I, J, L, C), row-major inside a block.
"""

from __future__ import annotations

import functools
import logging

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from sat_sr.config import LAYERNORM_EPS, MAX_SEQUENCE_LENGTH, InfDiTConfig, lr_size
from sat_sr.model.adaln import AdaLNMixin, GroupContext
from sat_sr.model.block_attention import clamped_halo
from sat_sr.model.embeddings import FinalLayerMixin, PatchEmbedMixin, TimeEmbedding, VectorEmbedding
from sat_sr.model.lr_cross_attention import group_lr
from sat_sr.model.rope import rotary
from sat_sr.model.sat_import import BaseModel, BaseTransformer, mpu


class InfDiT(BaseModel):
    """The network F.

    config  sizes
    device  where the parameters are made; "meta" makes none
    dtype   of the parameters

    The weights are initialised for training unless the device is "meta".
    """

    def __init__(self, config: InfDiTConfig, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32):
        _ensure_model_parallel()
        with torch.device(device):
            super().__init__(args=None, transformer=_transformer(config, device))
            self.config = config
            self.add_mixin("patch_embed", PatchEmbedMixin(config))
            self.add_mixin("adaln_layer", AdaLNMixin(config))
            self.add_mixin("final_layer", FinalLayerMixin(config))
            self.time_embed = TimeEmbedding(config)
            if config.vector_dim:
                self.cond_embed = VectorEmbedding(config)
        self.to(dtype)
        if torch.device(device).type != "meta":
            initialise(self)

    @property
    def dtype(self) -> torch.dtype:
        """The type that the network computes in: that of its parameters, all of one type."""
        return self.mixins["patch_embed"].proj.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the input is wanted: the device of the patch embedding, which stays there when layers are streamed."""
        return self.mixins["patch_embed"].proj.weight.device

    def forward(
        self,
        images: torch.Tensor,
        c_noise: torch.Tensor,
        lr: torch.Tensor,
        clip_embedding: torch.Tensor | None = None,
        position_offset: tuple[int, int] = (0, 0),
    ) -> torch.Tensor:
        """The whole canvas at once, with gradients: for training, and the reference for the inference schedules.

        images          (B, 6, H, W): c_in·[noisy canvas, upsampled LR]; H, W multiples of the block side
        c_noise         (B,) ln(sigma)/4
        lr              (B, 3, H/4, W/4)
        clip_embedding  (B, V), when the model has a CLIP input
        position_offset (row, column) added to the rotary ids, in tokens
        returns         (B, 3, H, W)
        """
        self.check_inputs(images, lr, clip_embedding)
        grid = self.grid(images.shape[-2:])
        rows, cols = range(grid[0]), range(grid[1])
        tokens = grid[0] * grid[1] * self.config.tokens_per_block
        ids = images.new_zeros(len(images), tokens, dtype=torch.long)  # SAT wants some; only their shape is looked at
        output, *_ = super().forward(
            ids,
            None,
            None,
            images=images,
            emb=self.condition(c_noise, clip_embedding),
            extend=clamped_halo,
            context=GroupContext(self.rotary(rows, cols, position_offset), group_lr(lr, rows, cols, grid)),
        )
        return output

    def condition(self, c_noise: torch.Tensor, clip_embedding: torch.Tensor | None = None) -> torch.Tensor:
        """Noise level and CLIP embedding to `emb` (B, C), which drives every adaLN."""
        emb = self.time_embed(c_noise)
        if clip_embedding is not None:
            emb = emb + self.cond_embed(clip_embedding)
        return F.silu(emb)

    def rotary(self, rows: range, cols: range, offset: tuple[int, int] = (0, 0)) -> torch.Tensor:
        """Rotary table of a group of blocks; ids are taken modulo the period of the model."""
        n = self.config.tokens_per_side
        ids = (
            torch.arange(blocks.start * n + o, blocks.stop * n + o, device=self.device).view(-1, n)
            for blocks, o in zip((rows, cols), offset, strict=True)
        )
        return rotary(*ids, self.config.head_dim, self.config.rope_period)

    def grid(self, canvas: tuple[int, int]) -> tuple[int, int]:
        """(I, J) blocks of a canvas (H, W). Raises ValueError unless whole blocks fill it."""
        b = self.config.image_block_size
        if canvas[0] % b or canvas[1] % b or not all(canvas):
            raise ValueError(
                f"canvas {canvas[1]}x{canvas[0]}: both sides must be multiples of the block side {b}; "
                "pad it, or use Upscaler"
            )
        return canvas[0] // b, canvas[1] // b

    def check_inputs(self, images: torch.Tensor, lr: torch.Tensor, clip_embedding: torch.Tensor | None) -> None:
        """Raises ValueError when the conditions do not fit the canvas or the model."""
        expected = (len(images), 3, *lr_size(images.shape[-2:]))
        if tuple(lr.shape) != expected:
            raise ValueError(f"lr has shape {tuple(lr.shape)}: this canvas needs {expected}, a quarter of each side")
        if bool(self.config.vector_dim) != (clip_embedding is not None):
            raise ValueError(
                f"the model's vector_dim is {self.config.vector_dim}: a CLIP embedding must be "
                + ("given" if self.config.vector_dim else "left out")
            )


def _transformer(config: InfDiTConfig, device: torch.device | str) -> BaseTransformer:
    """SAT's transformer, holding the Linears of attention and MLP; norms have no affine and live in the mixins."""
    transformer = BaseTransformer(
        num_layers=config.num_layers,
        vocab_size=1,
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
        max_sequence_length=MAX_SEQUENCE_LENGTH,
        layernorm_epsilon=LAYERNORM_EPS,
        layernorm=functools.partial(nn.LayerNorm, elementwise_affine=False),
        use_final_layernorm=False,  # FinalLayerMixin applies it
        skip_init=True,  # `initialise` does it
        device=torch.device(device),
    )
    del transformer.word_embeddings  # pixels come in through patch_embed
    return transformer


@torch.no_grad()
def initialise(model: InfDiT) -> None:
    """The initialisation of the training recipe; what is not named keeps PyTorch's defaults."""
    config = model.config
    adaln, final, patch = (model.mixins[name] for name in ("adaln_layer", "final_layer", "patch_embed"))
    width = 0.02
    output_width = width / (2 * config.num_layers) ** 0.5

    def normal(linear: nn.Module, std: float) -> None:
        nn.init.normal_(linear.weight, std=std)
        nn.init.zeros_(linear.bias)

    def xavier(linear: nn.Module) -> None:
        nn.init.xavier_uniform_(linear.weight.flatten(1))
        nn.init.zeros_(linear.bias)

    def zero(linear: nn.Module) -> None:
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)

    nn.init.normal_(model.transformer.position_embeddings.weight, std=width)
    for layer in model.transformer.layers:
        normal(layer.attention.query_key_value, width)
        normal(layer.attention.dense, output_width)
        normal(layer.mlp.dense_h_to_4h, width)
        normal(layer.mlp.dense_4h_to_h, output_width)
    for linear in adaln.cross_attention.children():
        normal(linear, width)
    for embedding in (adaln.lr_query_position_embedding, adaln.lr_key_position_embedding):
        nn.init.normal_(embedding, std=width)
    nn.init.zeros_(adaln.re_pos_embed)

    for modulation in (*adaln.adaLN_modulations, final.adaLN_modulation):
        zero(modulation[-1])
    xavier(patch.proj)
    xavier(final.linear)
    xavier(model.time_embed.mlp[0])
    xavier(model.time_embed.mlp[2])
    if config.vector_dim:
        zero(model.cond_embed.map_vector[-1])


def _ensure_model_parallel() -> None:
    """SAT's Linears ask for a model-parallel group: make one of size 1.

    Without torch.distributed, a group of this process alone is opened over an in-memory store: no port, no environment
    variable. Whoever wants ranks initialises torch.distributed before building the model.
    """
    if mpu.model_parallel_is_initialized():
        return
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    logger = logging.getLogger("sat")
    level = logger.level
    logger.setLevel(logging.WARNING)  # its messages are about environment variables that do not matter here
    try:
        mpu.initialize_model_parallel(1)
    finally:
        logger.setLevel(level)
