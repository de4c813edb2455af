"""Picture in, picture out.

    upscaler = Upscaler.from_checkpoint("ckpt/mini.safetensors")
    large = upscaler(Image.open("small.png"), scale=4, seed=0)

What happens between: the input is continued to whole blocks (`canvas`), resized to the two conditions, and a sampler
denoises noise that depends only on the seed and the place (`noise`), calling the network by a schedule that fits the
memory (`planner`, `denoiser`).
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sat_sr.checkpoint import DEFAULT_CLIP, Checkpoint, load, load_image_encoder, load_model
from sat_sr.checkpoint.sampler_defaults import sampling_settings
from sat_sr.diffusion.samplers import SAMPLERS, Denoise
from sat_sr.inference.backprojection import Backprojection
from sat_sr.inference.budget import measure_budget
from sat_sr.inference.canvas_part import CanvasPart
from sat_sr.inference.choices import BLOCK_BATCH
from sat_sr.inference.color_fix import fix_colors
from sat_sr.inference.detail import Detail
from sat_sr.inference.devices import default_dtype, resolve_device
from sat_sr.inference.job import Job, make_job
from sat_sr.inference.moving_grid import MovingGrid
from sat_sr.inference.noise import position_noise
from sat_sr.inference.pixels import Pixels, to_tensor
from sat_sr.inference.ranks import Ranks
from sat_sr.inference.weights import Weights
from sat_sr.sampling import SamplingSettings

if TYPE_CHECKING:
    from sat_sr.inference.denoiser import Denoiser  # both import SAT, which takes seconds
    from sat_sr.model.inf_dit import InfDiT


class Upscaler:
    """A network with everything around it.

    model     the network; its weights are moved to where each plan wants them
    device    where it computes; None: where its weights are
    clip      image tower, (B, 3, h, w) in [-1, 1] -> (B, V), for a model that has a CLIP input
    defaults  settings used where a call gives none
    fast      settings of the quick preset, None when the checkpoint has none
    compiled  run the network's layers compiled (torch.compile): takes a minute at the first picture
    """

    def __init__(
        self,
        model: InfDiT,
        *,
        device: torch.device | str | None = None,
        clip: Callable[[torch.Tensor], torch.Tensor] | None = None,
        defaults: SamplingSettings | None = None,
        fast: SamplingSettings | None = None,
        compiled: bool = False,
    ):
        if bool(model.config.vector_dim) != (clip is not None):
            wanted = "needs a CLIP image encoder" if model.config.vector_dim else "takes no CLIP image encoder"
            raise ValueError(f"the model has vector_dim {model.config.vector_dim} and {wanted}")
        self.model, self.clip = model.eval().requires_grad_(False), clip
        self.device = torch.device(device or model.device)
        self.weights = Weights(self.model, self.device)
        self.defaults, self.fast = defaults or SamplingSettings(), fast
        self.compiled = compiled

    @classmethod
    def from_checkpoint(
        cls,
        source: Checkpoint | str | Path,
        device: str = "auto",
        dtype: torch.dtype | None = None,
        clip_model: str | Path = DEFAULT_CLIP,
        compiled: bool = False,
    ) -> Upscaler:
        """Load weights: a published `.pt`, a training folder, or safetensors.

        They come to the device with the first picture, and only if its plan wants them there: to load them onto it and
        then stream them from the host would take more of it than the plan says.

        dtype  of the network; None: `default_dtype`, bfloat16 on CUDA and float32 elsewhere

        Raises FileNotFoundError or ValueError that says what is wrong with the file.
        """
        checkpoint = source if isinstance(source, Checkpoint) else load(source)
        place = resolve_device(device)
        dtype = dtype or default_dtype(place)
        return cls(
            load_model(checkpoint, device="cpu", dtype=dtype),
            device=place,
            # On the host: once a picture is not worth 1.2 GB of a GPU.
            clip=load_image_encoder(checkpoint, clip_model, device="cpu", dtype=torch.float32),
            defaults=default_settings(checkpoint),
            fast=default_settings(checkpoint, fast=True) if "fast" in checkpoint.sampler_defaults else None,
            compiled=compiled,
        )

    def __enter__(self) -> Upscaler:
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def close(self) -> None:
        """Give the weights back; the upscaler cannot be used afterwards."""
        self.model = self.clip = self.weights = None
        gc.collect()  # SAT's hooks and mixins refer to each other
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def __call__(
        self,
        image: Pixels,
        scale: float | None = None,
        *,
        size: tuple[int, int] | None = None,
        seed: int = 0,
        mode: str = "auto",
        block_batch: int = BLOCK_BATCH,
        offload: str = "auto",
        memory: int | None = None,
        kernel: str = "auto",
        callback: Callable[[int, int, torch.Tensor], None] | None = None,
        **settings,
    ) -> Pixels:
        """Upscale one picture or a batch of equal size; the same kind comes back.

        image      PIL image (RGB, L or RGBA; others become RGB, with transparency RGBA), turned upright by its EXIF,
                   with its ICC profile; numpy (h, w, 3) uint8, uint16 or float in [0, 1];
                   tensor (3, h, w) or (B, 3, h, w) float in [-1, 1]
        scale      any number above 0.25 (default 4), or
        size       (width, height) of the output
        seed       0 <= seed < 2**64; the noise depends on it and the place in the picture only
        mode       "auto", "full", "ar2" (up to block_batch² blocks at a time) or "ar": the same picture, in different
                   memory
        offload    what lives on the host instead of the device: "none", "state", "all", or "auto" (as little as fits)
        memory     bytes that may be used, weights included: of the device, or, where that has no memory of its own, of
                   the host for the whole process, pictures and program included; None: most of what is free
        kernel     of attention: name in `model.attention_kernels.KERNELS`, or "auto"
        callback   called after each step with (step, steps, current picture (B, 3, H, W) in [-1, 1])
        settings   fields of SamplingSettings; what is not given is the checkpoint's default

        Raises TypeError for another kind of image, ValueError for pixels or settings out of range, MemoryError when no
        plan fits, FloatingPointError, naming step and blocks, when the network returns NaN or infinity.
        """
        tensor, restore = to_tensor(image)
        job = self.prepare(
            tensor.shape[-2:],
            batch=len(tensor),
            scale=4.0 if scale is None and size is None else scale,
            target=None if size is None else _height_width(size),
            settings=self.defaults.replace(**settings),
            mode=mode,
            block_batch=block_batch,
            offload=offload,
            memory=memory,
            kernel=kernel,
        )
        return restore(self.run(tensor, job, seed=seed, callback=callback))

    def prepare(self, source: tuple[int, int], *, memory: int | None = None, **choices) -> Job:
        """`make_job` for this model on its device. source (height, width); memory as in a call; choices: the others."""
        if self.model is None:
            raise ValueError("this upscaler is closed and has given its weights back: make a new one")
        budget = measure_budget(self.device, memory=memory, **self.weights.held())
        if ranks := choices.get("ranks"):
            budget = ranks.all_reduce_min(budget)
        defaults = {"settings": self.defaults, "device": self.device, "dtype": self.model.dtype, "budget": budget}
        return make_job(self.model.config, tuple(source), **{**defaults, **choices})

    @torch.no_grad()  # not inference_mode: what comes back may be trained with
    def run(
        self,
        image: torch.Tensor,
        job: Job,
        *,
        seed: int = 0,
        callback: Callable[[int, int, torch.Tensor], None] | None = None,
        on_progress: Callable[[float], None] | None = None,
        ranks: Ranks | None = None,
    ) -> torch.Tensor | None:
        """Compute a prepared job. image (B, 3, h, w) float32 in [-1, 1] on the host; returns (B, 3, *target).

        callback     as in a call
        on_progress  called with the finished share, 0..1, after every piece of a network call
        ranks        share the picture, and the job was prepared with them: rank 0 gets the picture, the others None.
                     There is no callback then, as no rank has the whole picture before the end
        """
        from sat_sr.inference.denoiser import Denoiser  # imports SAT, which takes seconds

        settings, canvas, schedule = job.settings, job.canvas, job.plan.schedule
        block, ranks = self.model.config.image_block_size, ranks or Ranks(0, 1)
        offsets, neighbours = settings.grid_offsets(block), ranks.neighbours()
        part = ranks.canvas_part(schedule, block, offsets)

        lr, lr_upsampled = canvas.conditions(image, part.rows, part.columns)
        network = Denoiser(
            self.model,
            job.plan,
            lr,
            lr_upsampled,
            self.clip(lr) if self.clip is not None else None,
            _share_of_all(settings.network_calls, on_progress) if on_progress else None,
            neighbours=neighbours,
            compiled=self.compiled,
            offsets=offsets,
            overlap=part.overlap,
            weights=self.weights,
        )
        denoise = _compose(network, image, lr_upsampled, job, part)
        try:
            sample = _sample(denoise, network, lr_upsampled, job, part, seed, callback)
        finally:
            self.weights.release()
        if neighbours:
            neighbours.finish()
        denoise = network = lr_upsampled = None  # the first of several ranks needs the room for the others' parts

        sample = ranks.gather(part.without_overlap(sample), schedule, block)
        if sample is None:
            return None
        return fix_colors(canvas.crop(sample).clamp_(-1, 1), image, settings.color_fix).clamp_(-1, 1)


def _compose(network: Denoiser, image: torch.Tensor, lr_upsampled: torch.Tensor, job: Job, part: CanvasPart) -> Denoise:
    """The network with all that the settings want around its calls."""
    settings, denoise = job.settings, network
    if settings.detail != 1:
        denoise = Detail(denoise, lr_upsampled, settings.detail)
    faithful = settings.color_fix == "backprojection"
    if faithful:
        denoise = Backprojection(denoise, image, job.canvas, part)
    if settings.grid_shift:
        denoise = MovingGrid(denoise, network, lr_upsampled, job.canvas.size, part, faithful=faithful)
    return denoise


def _sample(
    denoise: Denoise,
    network: Denoiser,
    lr_upsampled: torch.Tensor,
    job: Job,
    part: CanvasPart,
    seed: int,
    callback: Callable[[int, int, torch.Tensor], None] | None,
) -> torch.Tensor:
    """From noise to the part's pixels, (B, 3, rows, columns). `network` is the one at the bottom of `denoise`."""
    settings, canvas = job.settings, job.canvas
    sigmas = settings.sigmas()

    def start() -> torch.Tensor:
        """Made in the sampler's hands: a second name for it here would keep a canvas alive."""
        # Pictures of a batch get the noise that they would get alone.
        noise = position_noise(seed, canvas.size, part.rows, part.columns).mul_(float(sigmas[0]))
        return noise + lr_upsampled if settings.init_noise else noise.expand_as(lr_upsampled).clone()

    def preview(step: int, steps: int, x: torch.Tensor) -> None:
        callback(step, steps, canvas.crop(x).clamp(-1, 1))

    try:
        return SAMPLERS[settings.sampler](denoise, start(), sigmas, callback=preview if callback else None)
    except FloatingPointError as error:
        step = (network.calls - 1) * settings.num_steps // settings.network_calls + 1
        raise FloatingPointError(f"{error}, step {step} of {settings.num_steps}") from error


def _share_of_all(calls: int, on_progress: Callable[[float], None]) -> Callable[[int, int], None]:
    """What a Denoiser reports of each of several calls, as the share of all of them.

    It counts by itself: a reference to the denoiser would be a cycle, and all that a picture takes on the device would
    wait for the garbage collector.
    """
    finished = 0

    def report(done: int, total: int) -> None:
        nonlocal finished
        on_progress((finished + done / total) / calls)
        finished += done == total

    return report


def default_settings(checkpoint: Checkpoint, fast: bool = False) -> SamplingSettings:
    """How the checkpoint wants to be sampled: the release's settings where it says nothing."""
    if fast and "fast" not in checkpoint.sampler_defaults:
        raise ValueError(f"{checkpoint.path} has no fast preset: give --sampler and --num-steps instead")
    return sampling_settings(checkpoint.sampler_defaults, fast)


def _height_width(size: tuple[int, int]) -> tuple[int, int]:
    if not isinstance(size, Sequence) or len(size) != 2:
        raise ValueError(f"size={size!r}: must be (width, height) of the output")
    return size[1], size[0]
