"""One picture, from file to file: read, planned, upscaled in one or more passes, written.

The weights are loaded for the first picture that needs them: `--estimate`, and a list that is done already, do without.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from sat_sr import __version__
from sat_sr.checkpoint import DEFAULT_CLIP, checkpoint_hash, load
from sat_sr.cli.entry import Entry
from sat_sr.cli.errors import CannotRun
from sat_sr.cli.target import MAX_PASS, SIZES, Size, Trim, by, passes
from sat_sr.cli.work import Work, dtype_name
from sat_sr.diffusion.resize import resize
from sat_sr.image_io import Picture, PictureError, check_output, resize_alpha, write_picture
from sat_sr.image_io.picture import WRITE_FORMATS
from sat_sr.inference.budget import measure_budget
from sat_sr.inference.canvas import Canvas
from sat_sr.inference.choices import BLOCK_BATCH
from sat_sr.inference.devices import default_dtype, resolve_device
from sat_sr.inference.job import Job, make_job
from sat_sr.inference.out_of_memory import is_out_of_memory
from sat_sr.inference.planner import BUSY_TOKENS
from sat_sr.inference.ranks import Ranks
from sat_sr.inference.upscaler import Upscaler, default_settings
from sat_sr.model.attention_kernels import choose_kernel
from sat_sr.programs.release_flags import flag
from sat_sr.sampling import SETTING_NAMES, SamplingSettings


class Worker:
    """Does pictures one after the other, as the command line says.

    network     path of the weights
    seed        of all pictures
    local_rank  of this process on its host, of `local_ranks`: chooses among GPUs, divides what memory is free

    Raises ValueError or OSError for weights, a device or settings that cannot be.
    """

    def __init__(
        self, args: argparse.Namespace, network: Path, *, seed: int, local_rank: int = 0, local_ranks: int = 1
    ):
        self.args, self.seed = args, seed
        self.checkpoint = load(network)
        self.config = self.checkpoint.config
        self.device = resolve_device(args.device)
        if self.device.type not in BUSY_TOKENS:  # PyTorch knows more
            raise ValueError(f"device {args.device!r} is not used: use --device auto, cpu, cuda or mps")
        self.local_ranks = self.on_device = local_ranks
        if self.device == torch.device("cuda"):
            gpus = torch.cuda.device_count()
            self.device, self.on_device = torch.device("cuda", local_rank % gpus), math.ceil(local_ranks / gpus)
        if self.device.type == "cuda":  # what is not told another would be done on the first, for all ranks
            torch.cuda.set_device(self.device)
        self.dtype = default_dtype(self.device) if args.dtype == "auto" else getattr(torch, args.dtype)
        self.kernel, self.kernel_reason = choose_kernel(
            args.kernel, self.device, self.dtype, self.config.head_dim, self.config.tokens_per_block
        )
        self.settings = self._settings(default_settings(self.checkpoint, args.fast))
        self.clip_model = args.clip_model or DEFAULT_CLIP
        self.trim = Trim(args.lr_size, args.crop_size, args.round)
        self.mode, self.block_batch = args.inference_type, args.block_batch or BLOCK_BATCH
        self.ranks: Ranks | None = None  # that compute every picture together with this one

    def _settings(self, defaults: SamplingSettings) -> SamplingSettings:
        return defaults.replace(**{name: getattr(self.args, name) for name in SETTING_NAMES})

    @cached_property
    def upscaler(self) -> Upscaler:
        """The network with its weights, loaded on first use. Raises CannotRun."""
        try:
            return Upscaler.from_checkpoint(
                self.checkpoint,
                str(self.device),
                self.dtype,
                self.clip_model,
                compiled=self.args.compile,
            )
        except (ValueError, OSError) as error:
            raise CannotRun(str(error)) from error
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise CannotRun(
                f"{self.checkpoint.path} does not fit into the host's memory: free some, or use --dtype bfloat16"
            ) from error

    def load(self) -> None:
        """The weights, now: what comes next is measured."""
        _ = self.upscaler

    def clip_notes(self) -> tuple[str, ...]:
        """What was assumed about the CLIP tower, once it is loaded."""
        return () if self.upscaler.clip is None else self.upscaler.clip.notes

    def notes(self) -> list[str]:
        """What the weights and the flags about them do not agree on, and what is odd about the choices."""
        notes = list(self.checkpoint.notes)
        for name, given in self.args.given_architecture.items():
            if given != (actual := getattr(self.config, name)):
                notes.append(f"{flag(name)} {given}: the weights have {actual}, which is used")
        if self.args.clip_model and not self.config.vector_dim:
            notes.append("--clip-model is not used: the network of these weights has no CLIP input")
        if self.device.type == "cpu" and self.dtype != torch.float32:
            notes.append(f"{dtype_name(self.dtype)} on a CPU is usually slower than float32")
        return notes

    # --- planning -------------------------------------------------------------------------------------------------
    def name_fields(self, entry: Entry) -> dict[str, int | str]:
        """What the name of an entry's output may hold of its size, from the entry's header. PictureError when it cannot
        be."""
        try:
            source = self.trim.of(entry.size())
            width, height = self.args.target.of(source)
        except PictureError:
            raise
        except ValueError as error:
            raise PictureError(f"{entry.name}: {error}") from error
        return {"width": width, "height": height, "scale": self.args.target.scale_of(source)}

    def cost(self, entry: Entry) -> int:
        """Pixels that the network computes for an entry, from its header; 0 when it cannot be done."""
        try:
            trimmed = self.trim.of(entry.size())
            sizes = passes(trimmed, self.args.target.of(trimmed))
        except (ValueError, OSError):
            return 0
        return sum(math.prod(self._canvas(size)) for size in sizes)

    def plan(self, source: Size) -> Work:
        """How a picture of size `source` is done. ValueError or MemoryError when it cannot be."""
        trimmed = self.trim.of(source)
        target = self.args.target.of(trimmed)
        sizes = passes(trimmed, target)
        jobs, size = [], trimmed
        for number, after in enumerate(sizes, start=1):
            try:
                jobs.append(self._job(size, after))
            except MemoryError as error:
                if len(sizes) == 1:
                    raise
                raise MemoryError(f"pass {number} of {len(sizes)}, to {error}") from error
            size = after
        return Work(source, trimmed, target, tuple(jobs))

    def _canvas(self, size: Size) -> tuple[int, int]:
        """(height, width) of the canvas for an output of that size: whole blocks, with room for the grid to shift."""
        block, target = self.config.image_block_size, size[::-1]
        return Canvas.of(target, block, target=target, margin=self.settings.margin(block)).size

    def _job(self, source: Size, target: Size) -> Job:
        held = self.upscaler.weights.held() if "upscaler" in vars(self) else {}
        shared = {"on_host": self.local_ranks, "on_device": self.on_device}
        budget = measure_budget(self.device, memory=self.args.memory, **held, **shared)
        if self.ranks:  # they plan the same, or refuse the same: one that plans otherwise would be waited for
            budget = self.ranks.all_reduce_min(budget)
        return make_job(
            self.config,
            source[::-1],
            target=target[::-1],
            settings=self.settings,
            mode=self.mode,
            block_batch=self.block_batch,
            offload=self.args.offload,
            budget=budget,
            device=self.device,
            dtype=self.dtype,
            kernel=self.kernel,
            ranks=self._sharers(self._canvas(target)),
        )

    def _sharers(self, canvas: tuple[int, int]) -> Ranks | None:
        """The ranks that compute a canvas together: None when it has too few blocks: then the first does it."""
        blocks = max(canvas) // self.config.image_block_size
        return self.ranks if self.ranks and blocks >= self.ranks.world else None

    # --- doing ----------------------------------------------------------------------------------------------------
    def prepare(self, picture: Picture, path: Path) -> tuple[Picture, Work, list[str]]:
        """The picture as it will be upscaled, how, and what to tell. Raises PictureError, ValueError, MemoryError."""
        work = self.plan(picture.size)
        trimmed = self._trimmed(picture)
        notes = check_output(path, trimmed, work.target, quality=self.args.quality)
        written = WRITE_FORMATS[path.suffix.lower()]
        if self.args.format == "keep" and not self.args.output and written != picture.format:
            known = picture.format in WRITE_FORMATS.values()
            reason = "by its contents, but not by its suffix" if known else "is not written here"
            notes = [*notes, f"{picture.format} {reason}: {written} instead"]
        if len(work.jobs) > 1:
            sizes = " and ".join(by(job.canvas.target[::-1]) for job in work.jobs)
            notes = [*notes, f"above x{MAX_PASS:g}, so it is done in {len(work.jobs)} passes, to {sizes}"]
        return trimmed, work, [*picture.notes, *notes]

    def _trimmed(self, picture: Picture) -> Picture:
        """The part that is upscaled, after the release's resize and crops."""
        if (size := self.trim.resized(picture.size)) != picture.size:
            rgb = resize(picture.rgb[None], size[::-1])[0].clamp(-1, 1)
            alpha = None if picture.alpha is None else resize_alpha(picture.alpha, size)
            scale = size[0] / picture.size[0]
            dpi = picture.dpi and (picture.dpi[0] * scale, picture.dpi[1] * scale)
            picture = dataclasses.replace(picture, rgb=rgb, alpha=alpha, dpi=dpi)
        box = self.trim.box(picture.size)
        return picture if box == (0, 0, *picture.size) else picture.crop(box)

    def upscale(self, picture: Picture, work: Work, on_progress: Callable[[float], None]) -> torch.Tensor | None:
        """(3, H, W) float32 in [-1, 1]; of ranks that share it only the first gets it.

        Raises FloatingPointError, MemoryError.
        """
        image, done = picture.rgb[None], 0
        for number, job in enumerate(work.jobs):
            if number and self.ranks:
                image = self.ranks.broadcast(image, work.jobs[number - 1].canvas.target)

            def report(share: float, before: int = done, cost: int = job.flops) -> None:
                on_progress((before + share * cost) / work.flops)

            sharers = self._sharers(job.canvas.size)
            if self.ranks and self.ranks.rank and not sharers:
                image = None
                continue
            try:
                image = self.upscaler.run(image, job, seed=self.seed, on_progress=report, ranks=sharers)
            except FloatingPointError as error:
                raise FloatingPointError(
                    f"{error}: nothing is written; use --dtype float32 or other weights"
                ) from error
            done += job.flops
        return None if image is None else image[0]

    def write(
        self, path: Path, rgb: torch.Tensor, picture: Picture, origin: Mapping[str, Any], *, replace: bool
    ) -> list[str]:
        """To the disk; what was substituted or left out. NameTaken when a file is there that is not to be replaced.

        origin  `Entry.origin`, from before: the input may be gone when it is done
        """
        settings = None if self.args.no_metadata else {**self.stored_settings(), "source": origin}
        return write_picture(path, rgb, picture, quality=self.args.quality, settings=settings, replace=replace)

    def stored_settings(self) -> Mapping[str, Any]:
        """What outputs carry, and --from-picture repeats."""
        return {
            "version": __version__,
            "network": self.checkpoint.path.name,
            "checkpoint": self.checkpoint_hash,
            **self.args.target.to_dict(),
            "seed": self.seed,
            **self.settings.to_dict(),
            "dtype": dtype_name(self.dtype),
            "inference_type": self.mode,
            "block_batch": self.block_batch,
            **dataclasses.asdict(self.trim),
        }

    def different_in(self, stored: Mapping[str, Any]) -> list[str]:
        """What a finished output was made with that this run has otherwise: "num_steps 4 (now 12)", …"""
        mine = self.stored_settings()
        names = mine.keys() & stored.keys() | {*SIZES}
        names -= {"version", "network", "dtype", "inference_type", "block_batch"}  # the same picture, but for rounding
        if self.args.seed is None:
            names.discard("seed")
        return [
            f"{name} {stored.get(name)} (now {mine.get(name)})"
            for name in sorted(names)
            if stored.get(name) != mine.get(name)
        ]

    @cached_property
    def checkpoint_hash(self) -> str:
        return checkpoint_hash(self.checkpoint.path)
