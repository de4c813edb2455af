"""The architecture of an Inf-DiT, as one frozen value that checks itself."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

# Fixed by the method, not by the configuration (paper, section 3; every released script uses these).
IN_CHANNELS = 6  # noisy canvas (3) and upsampled low-resolution image (3), in that order
OUT_CHANNELS = 3
LR_FACTOR = 4  # the LR condition has 1/4 of the canvas, whatever the scale of the upsampling
LR_PATCH = 2  # stride of the convolution that turns the LR condition into features
TIME_FREQUENCIES = 96  # the time embedding is 192 wide, whatever the hidden size
LAYERNORM_EPS = 1e-6
MAX_SEQUENCE_LENGTH = 256  # rows of transformer.position_embeddings: in every checkpoint, never used


@dataclass(frozen=True)
class InfDiTConfig:
    """Sizes of the network.

    num_layers            transformer layers
    hidden_size           C, width of a token
    num_attention_heads   h; the head dim d = C/h must be a multiple of 4 (two rotary halves of pairs)
    patch_size            p, pixels per side of a token
    image_block_size      b, pixels per side of a block: the unit of attention and of inference
    image_size            side of the training crops; positions repeat after 8·image_size pixels
    vector_dim            V, width of the CLIP image embedding; 0: the model has no CLIP input

    Raises ValueError when a value breaks a rule; the message has the value, the rule and a way out.
    """

    num_layers: int = 28
    hidden_size: int = 1280
    num_attention_heads: int = 16
    patch_size: int = 4
    image_block_size: int = 128
    image_size: int = 512
    vector_dim: int = 768

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), 0 if field.name == "vector_dim" else 1
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{field.name}={value!r}: must be an integer of at least {least}")
        self._require_multiple("hidden_size", self.num_attention_heads, "num_attention_heads")
        if self.head_dim % 4:
            raise ValueError(
                f"hidden_size={self.hidden_size} over num_attention_heads={self.num_attention_heads} gives heads of "
                f"{self.head_dim}: must be a multiple of 4 (rows and columns take one half each, in pairs); "
                "change one of the two"
            )
        # A block must hold whole tokens and whole features of the LR condition (1/4 canvas, stride 2).
        self._require_multiple("image_block_size", self.patch_size, "patch_size")
        self._require_multiple("image_block_size", LR_FACTOR * LR_PATCH, "pixels per LR feature")
        self._require_multiple("image_size", self.patch_size, "patch_size")

    def _require_multiple(self, name: str, of: int, what: str) -> None:
        value = getattr(self, name)
        if value % of:
            below, above = value // of * of, (value // of + 1) * of
            near = " or ".join(str(v) for v in (below, above) if v > 0)
            raise ValueError(f"{name}={value}: must be a multiple of {of} ({what}); the nearest is {near}")

    @property
    def head_dim(self) -> int:
        """d, width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def tokens_per_side(self) -> int:
        """n = b/p, tokens along one side of a block."""
        return self.image_block_size // self.patch_size

    @property
    def tokens_per_block(self) -> int:
        """L = n², tokens of a block."""
        return self.tokens_per_side**2

    @property
    def lr_features_per_side(self) -> int:
        """LR features along one side of a block: b/8, half of n for 4-pixel patches."""
        return self.image_block_size // (LR_FACTOR * LR_PATCH)

    @property
    def rope_period(self) -> int:
        """Position ids are taken modulo this many tokens: 8·image_size/p (1024 in the official model)."""
        return 8 * self.image_size // self.patch_size

    def to_dict(self) -> dict[str, int]:
        """Plain dictionary of all fields, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, int]) -> InfDiTConfig:
        """The config of `to_dict`. Raises ValueError for a key that is not a field."""
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(f"unknown configuration key {', '.join(unknown)}: the known keys are {', '.join(known)}")
        return cls(**values)

    def to_json(self) -> str:
        """One JSON object of all fields: what a safetensors file carries as `config`."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> InfDiTConfig:
        """The config of `to_json`; fields that are left out have their defaults.

        Raises ValueError for text that is not JSON, an unknown key, or a value that breaks a rule.
        """
        return cls.from_dict(json.loads(text))

    @classmethod
    def preset(cls, name: str) -> InfDiTConfig:
        """One of PRESETS by name. Raises ValueError that lists the names."""
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}: the presets are {', '.join(PRESETS)}")
        return PRESETS[name]


def lr_size(canvas: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the LR condition of a canvas (H, W)."""
    return canvas[0] // LR_FACTOR, canvas[1] // LR_FACTOR


PRESETS = {
    # The published model: 753,762,928 parameters without the CLIP tower.
    "official": InfDiTConfig(),
    # For laptops: small blocks, no CLIP; 2,789,296 parameters, a 512×512 canvas costs 0.08 TFLOP per network call.
    "mini": InfDiTConfig(
        num_layers=4, hidden_size=192, num_attention_heads=6, image_block_size=32, image_size=128, vector_dim=0
    ),
}
