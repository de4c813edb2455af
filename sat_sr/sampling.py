"""How a picture is sampled, as one frozen value: what checkpoints and pictures carry, and flags change.

Needs no PyTorch to be imported: the command line answers with it at once.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SAMPLER_NAMES = ("heun", "euler", "dpmpp_2m", "unipc")  # of `diffusion.samplers`
COLOR_FIXES = ("none", "mean", "wavelet", "backprojection")  # `inference.color_fix`, `inference.backprojection`
MOST_DETAIL = 5  # beyond, there are only artefacts to see


@dataclass(frozen=True)
class SamplingSettings:
    """The defaults are the release's: 20 Heun steps from sigma 40, started at the upsampled input plus noise.

    sampler      name in SAMPLER_NAMES
    num_steps    N
    sigma_min    last noise level before 0
    sigma_max    first noise level
    init_noise   start from the upsampled input plus noise; False: from noise alone
    strength     0..1: at 1 sampling starts at sigma_max; below, at a noise level in between (geometrically) and so
                 stays closer to the input; at 0 it starts at sigma_min
    color_fix    name in COLOR_FIXES: what is taken over from the input, afterwards or (backprojection) in the calls
    detail       factor of what the network adds to the interpolated input, at high noise levels (`detail`)
    grid_shift   pixels, less than the model's blocks: how far the grid of blocks moves from network call to network
                 call, so that its lines do not show (`placement`); 0: it stays

    Raises ValueError when a value breaks its rule.
    """

    sampler: str = "heun"
    num_steps: int = 20
    sigma_min: float = 0.002
    sigma_max: float = 40.0
    init_noise: bool = True
    strength: float = 1.0
    color_fix: str = "none"
    detail: float = 1.0
    grid_shift: int = 0

    def __post_init__(self) -> None:
        for name in ("sigma_min", "sigma_max", "strength", "detail"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, numbers.Real):
                raise ValueError(f"{name}={value!r}: must be a number")
            if type(value) is not int:
                self._set(name, float(value))  # numpy's, too, of which not all can be stored as JSON
        if not isinstance(self.init_noise, bool):
            raise ValueError(f"init_noise={self.init_noise!r}: must be true or false")
        if self.sampler not in SAMPLER_NAMES:
            raise ValueError(f"unknown sampler {self.sampler!r}: choose one of {', '.join(SAMPLER_NAMES)}")
        if self.color_fix not in COLOR_FIXES:
            raise ValueError(f"unknown color fix {self.color_fix!r}: choose one of {', '.join(COLOR_FIXES)}")
        for name, least, rule in (
            ("num_steps", 1, "an integer of at least 1"),
            ("grid_shift", 0, "an integer number of pixels, 0 for none"),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
                raise ValueError(f"{name}={value!r}: must be {rule}")
            self._set(name, int(value))
        if not 0 <= self.detail <= MOST_DETAIL:
            raise ValueError(f"detail={self.detail}: must lie between 0 and {MOST_DETAIL}")
        if not 0 < self.sigma_min <= self.sigma_max < math.inf:
            raise ValueError(
                f"sigma_min={self.sigma_min}, sigma_max={self.sigma_max}: must be 0 < sigma_min <= sigma_max"
            )
        if not 0 <= self.strength <= 1:
            raise ValueError(f"strength={self.strength}: must lie between 0 and 1")
        if self.strength < 1 and not self.init_noise:
            raise ValueError("strength below 1 starts from the upsampled input: it cannot go without init_noise")

    def _set(self, name: str, value: float) -> None:
        object.__setattr__(self, name, value)  # frozen, but not yet made

    def sigmas(self) -> torch.Tensor:
        """Noise levels (steps + 1,) float32, falling, the last 0.

        There are num_steps steps, fewer only where sigma_min and the start are too close to tell so many apart.
        """
        import torch

        from sat_sr.diffusion.edm import karras_sigmas

        start = self.sigma_min * (self.sigma_max / self.sigma_min) ** self.strength
        return torch.unique_consecutive(karras_sigmas(self.num_steps, min(self.sigma_min, start), start))

    @property
    def network_calls(self) -> int:
        from sat_sr.diffusion.samplers import network_calls

        return network_calls(self.sampler, len(self.sigmas()) - 1)

    def grid_offsets(self, block: int) -> list[int]:
        """The offset of each network call (the function `grid_offsets`), for blocks of `block` pixels per side.

        Raises ValueError when the grid moves by a block or more from call to call.
        """
        if self.grid_shift >= block:
            raise ValueError(f"grid_shift={self.grid_shift}: must be less than the model's blocks of {block} pixels")
        return grid_offsets(self.grid_shift, block, self.network_calls)

    def margin(self, block: int) -> int:
        """Pixels that a canvas needs to the right and below, so that the picture is covered at every offset."""
        return max(self.grid_offsets(block))

    def replace(self, **changes) -> SamplingSettings:
        """A copy with those changes that are not None. Raises ValueError for an unknown name."""
        known = [field.name for field in dataclasses.fields(self)]
        unknown = sorted(set(changes) - set(known))
        if unknown:
            raise ValueError(f"unknown sampling setting {', '.join(unknown)}: the known ones are {', '.join(known)}")
        return dataclasses.replace(self, **{name: value for name, value in changes.items() if value is not None})

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        sigmas = self.sigmas()
        text = f"{self.sampler}, {len(sigmas) - 1} steps ({self.network_calls} network calls), sigma "
        text += f"{float(sigmas[0]):.4g} to {self.sigma_min:g}"
        text += f", color fix {self.color_fix}" if self.color_fix != "none" else ""
        text += f", detail {self.detail:g}" if self.detail != 1 else ""
        return text + (f", grid moving by {self.grid_shift} px" if self.grid_shift else "")


SETTING_NAMES = tuple(field.name for field in dataclasses.fields(SamplingSettings))


def grid_offsets(shift: int, block: int, calls: int) -> list[int]:
    """The picture's offset from the grid's corner in each network call: pixels, down and right alike.

    From call to call the grid moves by `shift` pixels, so that in the last it begins in the picture's corner: that call
    draws the finest details, and its condition is the input itself. After a whole block the grid is where it was.
    """
    return [(calls - 1 - call) * shift % block for call in range(calls)]
