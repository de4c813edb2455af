"""The training loop."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
from pydantic import ValidationError

from sat_sr import exit_codes
from sat_sr.checkpoint import Checkpoint, save_safetensors
from sat_sr.diffusion.edm import edm_loss
from sat_sr.release_flags import flag
from sat_sr.training import state
from sat_sr.training.batches import Batch, TrainingBatches, validation_batches
from sat_sr.training.error_norm import ErrorNorm
from sat_sr.training.logs import PHASES, PhaseTimer, RunLog, duration, peak_memory
from sat_sr.training.muon import MuonWithEMA, muon_parameter_groups
from sat_sr.training.noise import TrainingNoise
from sat_sr.training.optimizer import AdamWWithEMA, learning_rate, parameter_groups
from sat_sr.training.preemption import Preemption
from sat_sr.training.recipe import Recipe
from sat_sr.training.tf32 import tf32
from sat_sr.training.validation import SIGMAS, validate, write_picture
from sat_sr.training.weights import clip_tower, initial_model, starting_point

DECISIVE = (
    "train_data", "degradation", "degrade_on_device", "augment", "lr_dropout", "train_iters", "warmup",
    "lr_decay_style", "muon_lr", "ema_decay", "p_mean", "p_std", "sigma_sampling", "gradient_weight", "seam_weight",
    "random_position", "tf32",
)  # fmt: skip
UNUSED = ("transformer.position_embeddings.", ".k_layer_norm.")  # in every checkpoint, never in the computation


class Trainer:
    """One rank of a run: built, it has the model and the data where the last checkpoint left them; `run` trains."""

    def __init__(
        self, settings: argparse.Namespace, recipe: Recipe, device: torch.device, preemption: Preemption | None = None
    ) -> None:
        self.settings, self.recipe, self.device = settings, recipe, device
        self.preemption = preemption or Preemption()
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.folder = Path(settings.save, settings.experiment_name or "")
        if self.rank == 0:
            self._lock = state.claim_folder(self.folder, settings.model)  # for as long as this process lives
        dist.barrier()
        state.require_shared(self.folder)
        checkpoint = state.find_latest(self.folder)
        saved = state.read_training(checkpoint) if checkpoint else {}
        self.step = saved.get("step", 0)  # updates tried so far, skipped ones included
        self.bad_steps = saved.get("bad_steps", 0)
        self.log = RunLog(self.folder, self.step, enabled=self.rank == 0)
        self._require_same_engine(saved)
        self.seed = self._resumed_seed(saved)
        self._tell_changes(saved)

        start = starting_point(settings, checkpoint)
        self.clip = clip_tower(settings.model, start, settings.clip_model, device)
        self.clip_weights = start.clip_tensors if start else None  # go along into what is saved
        self.engine = self._build_engine(start)
        self.batches = TrainingBatches(settings, self.seed, self.rank, recipe.micro_batch, device, self.clip)
        if checkpoint:
            self.batches.load_position(state.load(self.engine, checkpoint))
        self.validation = []
        if settings.valid_data:
            self.validation = validation_batches(
                settings, self.rank, self.world_size, recipe.micro_batch, device, self.clip
            )
        else:
            self.log.line("no --valid-data: there will be no validation and no pictures")
        self.noise = TrainingNoise(
            self.seed, self.rank, device, settings.p_mean, settings.p_std, settings.sigma_sampling == "stratified"
        )
        self.error_norm = ErrorNorm(settings.model.patch_size, settings.gradient_weight, settings.seam_weight)
        self.timer = PhaseTimer(device.type == "cuda")
        self.data_counts = self._gather_counts()
        self.grad_norm = 0.0
        self._start_interval()
        if checkpoint:
            self.log.line(f"resuming {self.folder} at step {self.step}")

    def _require_same_engine(self, saved: dict) -> None:
        """Raises ValueError where the saved state of the optimizer cannot be this start's."""
        for name, here in self._engine_kind().items():
            if (there := saved.get(name, here)) != here:
                raise ValueError(
                    f"{self.folder} was trained with {name} {there}, this start has {here}: what the optimizer saved "
                    "does not fit, so start with the same; or begin a new run from the averaged weights: "
                    f"--load {self.folder / str(saved['step']) / 'ema.safetensors'} with another --save"
                )

    def _engine_kind(self) -> dict:
        """What a run cannot change on its way; ZeRO's stages 1 and 2 save the same."""
        return {
            "world_size": self.world_size,
            "optimizer": self.settings.optimizer,
            "precision": self.recipe.precision,
            "zero": "partitioned" if self.recipe.zero_stage else "stage 0",
        }

    def _resumed_seed(self, saved: dict) -> int:
        """A run keeps the seed it started with: launchers draw --seed anew for each start."""
        if saved.get("seed", self.settings.seed) != self.settings.seed:
            self.log.line(f"--seed {self.settings.seed} is not used: this run started with seed {saved['seed']}")
        return saved.get("seed", self.settings.seed)

    def _decisive_settings(self) -> dict:
        """What decides the result and may change on the way, by name; JSON values."""
        recipe = self.recipe
        shared = {"micro batch": recipe.micro_batch, "accumulation": recipe.accumulation, "lr": recipe.lr}
        shared |= {"betas": list(recipe.betas), "eps": recipe.eps, "weight decay": recipe.weight_decay}
        return shared | {"clipping": recipe.clip_grad} | {flag(name): vars(self.settings)[name] for name in DECISIVE}

    def _tell_changes(self, saved: dict) -> None:
        """One line where this start is of other settings than the one that saved the checkpoint."""
        there = saved.get("settings", {})
        changes = [
            f"{name} {value} (was {there[name]})"
            for name, value in self._decisive_settings().items()
            if name in there and there[name] != value
        ]
        if changes:
            self.log.line(f"differs from step {self.step} on: {', '.join(changes)}")

    def _build_engine(self, start: Checkpoint | None) -> deepspeed.DeepSpeedEngine:
        settings, recipe = self.settings, self.recipe
        model = initial_model(settings, self.seed, start)
        model.mixins["adaln_layer"].checkpoint_activations = settings.checkpoint_activations
        for name, parameter in model.named_parameters():
            # Without a gradient they would only be decayed to zero.
            parameter.requires_grad_(not any(unused in name for unused in UNUSED))
        if settings.optimizer == "muon":
            groups = muon_parameter_groups(model, recipe.lr, settings.muon_lr, recipe.weight_decay)
        else:
            groups = parameter_groups(model, recipe.lr, recipe.weight_decay)
        kind = MuonWithEMA if settings.optimizer == "muon" else AdamWWithEMA
        optimizer = kind(groups, betas=recipe.betas, eps=recipe.eps, ema_decay=settings.ema_decay)
        try:
            engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=recipe.engine)
        except ValidationError as error:  # of what our own table leaves to DeepSpeed
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise ValueError(
                f"--deepspeed-config {settings.deepspeed_config}: DeepSpeed does not accept {key} {first['input']!r} "
                f"({first['msg']}): correct it or leave it out"
            ) from error
        optimizer.start()
        return engine

    def run(self) -> int:
        """Trains to the end, or until a signal asks to stop. Returns the exit code, DONE or SAVED."""
        self.preemption.watch()  # again, for who has built this without the program
        total = self.settings.train_iters
        if self.step >= total:
            self.log.line(f"nothing to do: {self.folder} is at step {self.step} of {total}")
        due = False
        while self.step < total:
            self.train_step()
            if self.step % self.settings.log_interval == 0 or self.step == total:
                self._log_interval()
            if self.settings.valid_data and (self.step % self.settings.eval_interval == 0 or self.step == total):
                self._validate()
            stop = self._any_rank(self.preemption.asked) and self.step < total
            due = due or self.step % self.settings.save_interval == 0
            # Not in the middle of bad steps: what came before them may have spoiled the weights.
            if stop or self.step == total or (due and not self.bad_steps):
                self._save()
                due = False
            if stop:
                self.log.line(f"stopped by a signal, saved at step {self.step}: run the same command again to go on")
                self.log.close()
                return exit_codes.SAVED
        self.log.close()
        return exit_codes.DONE

    def train_step(self) -> None:
        """One update: `accumulation` micro batches. A non-finite loss on any rank makes all ranks skip it."""
        settings = self.settings
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate(
                self.step, settings.train_iters, group["peak_lr"], settings.warmup, settings.lr_decay_style
            )
        self.noise.start_step(self.step)
        losses, keys = [], []
        for _ in range(self.recipe.accumulation):
            batch, batch_keys = self.batches.next()
            self.timer.mark("data")
            with tf32(settings.tf32):
                loss, applied = self._learn(batch)
            losses.append(loss)
            keys += batch_keys
        self.step += 1
        loss = torch.stack(losses).mean()
        if applied:
            self.bad_steps = 0
            self.interval_loss += loss
            self.interval_steps += 1
        else:
            self._count_bad_step(loss, keys)

    def _learn(self, batch: Batch) -> tuple[torch.Tensor, bool]:
        """Forward, backward and the engine's step for a micro batch: its loss, and whether the weights were changed."""
        settings, engine, target = self.settings, self.engine, batch["target"]
        loss = edm_loss(
            engine,
            noise=self.noise.noise(target.shape),
            sigma=self.noise.sigmas(len(target)),
            position_offset=self.noise.position_offset(settings.model) if settings.random_position else (0, 0),
            norm=self.error_norm,
            **batch,
        ).mean()
        self.timer.mark("forward")
        # An infinite loss may have finite gradients: make them NaN, then DeepSpeed's check of the gradient norm, which
        # all ranks share, skips the update everywhere.
        engine.backward(loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan))
        self.timer.mark("backward")
        applied, self.grad_norm = self._update()
        self.timer.mark("step")
        return loss.detach(), applied

    def _update(self) -> tuple[bool, float]:
        """After a backward: the engine's step. Returns whether the weights were changed, and the gradients' norm."""
        engine = self.engine
        if self.recipe.zero_stage:
            engine.step()
            return engine.was_step_applied(), float(engine.get_global_grad_norm() or 0.0)
        # Without ZeRO the engine looks at no gradient norm: do here what ZeRO does.
        norm = torch.tensor(0.0)
        finite = True
        if engine.is_gradient_accumulation_boundary():
            parameters = list(engine.module.parameters())
            norm = torch.nn.utils.clip_grad_norm_(parameters, self.recipe.clip_grad or torch.inf)
            finite = bool(norm.isfinite())
            if not finite:
                engine.zero_grad()  # nothing is left for the optimizer to apply
        engine.step()
        return finite, float(norm)

    def _count_bad_step(self, loss: torch.Tensor, keys: list[str]) -> None:
        self.bad_steps += 1
        reports = [None] * self.world_size
        dist.all_gather_object(reports, (loss.item(), keys))
        culprits = [report for report in reports if not torch.tensor(report[0]).isfinite()] or reports
        what = "; ".join(f"loss {value} on {', '.join(names)}" for value, names in culprits)
        self.log.line(f"step {self.step} skipped on all ranks, no finite gradient ({self.bad_steps} in a row): {what}")
        if self.bad_steps >= self.settings.max_bad_steps:
            raise FloatingPointError(
                f"{self.bad_steps} steps in a row without a finite gradient, the last is step {self.step}: {what}; go "
                "on from the last checkpoint with a lower --lr, or look at these samples. If it fails there at once, "
                "its weights are spoiled already: write the name of an earlier one into `latest`"
            )

    def _any_rank(self, flag: bool) -> bool:
        if self.world_size == 1:
            return flag
        value = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return bool(value)

    def _start_interval(self) -> None:
        self.interval_loss = torch.zeros((), device=self.device)
        self.interval_steps = 0
        self.interval_first = self.step
        self.interval_start = time.perf_counter()
        self.timer.mark("other")
        self.timer.take()

    def _log_interval(self) -> None:
        if not self.interval_steps:  # the same on all ranks
            self.log.line(f"step {self.step}: no loss to show, all steps since the last line were skipped")
            self._start_interval()
            return
        mean = self.interval_loss / self.interval_steps
        dist.all_reduce(mean)
        loss = mean.item() / self.world_size
        steps = self.step - self.interval_first
        phases = {name: seconds / steps for name, seconds in self.timer.take().items()}
        seconds = (time.perf_counter() - self.interval_start) / steps
        # Muon's for the matrices, then AdamW's for the rest; one where it is the same for all.
        lrs = dict.fromkeys(group["lr"] for group in self.engine.optimizer.param_groups)
        rates, times = " ".join(f"{lr:.2e}" for lr in lrs), " ".join(f"{name} {phases[name]:.3f}" for name in PHASES)
        memory = peak_memory(self.device.type == "cuda")
        left = (self.settings.train_iters - self.step) * seconds
        rate = self.recipe.batch / seconds
        self.log.line(
            f"step {self.step}/{self.settings.train_iters} | loss {loss:.4f} | grad norm {self.grad_norm:.3f} | "
            f"lr {rates} | {rate:.2f} samples/s | {times} s | {memory:.2f} GiB | {duration(left)} left"
        )
        self.log.scalars(
            "train",
            self.step,
            {"loss": loss, "grad_norm": self.grad_norm, "samples_per_second": rate, "memory_gib": memory}
            | dict(zip(("lr", "lr_adamw"), lrs, strict=False))
            | {f"seconds_{name}": phases[name] for name in PHASES},
        )
        self._log_data()
        self._start_interval()

    def _log_data(self) -> None:
        """Samples of all ranks that were skipped or converted, where there are more than at the last time."""
        counts = self._gather_counts()
        if counts != self.data_counts:
            self.data_counts = counts
            self.log.line("data so far: " + ", ".join(f"{count} {reason}" for reason, count in counts.most_common()))
            self.log.scalars("data", self.step, dict(counts))

    def _gather_counts(self) -> Counter[str]:
        of_ranks = [None] * self.world_size
        dist.all_gather_object(of_ranks, self.batches.counts)
        return sum(of_ranks, Counter())

    def _validate(self) -> None:
        self.engine.eval()
        with state.ema_weights(self.engine):
            result = validate(
                self.engine, self.validation, steps=self.settings.eval_steps, seed=self.seed, device=self.device
            )
        self.engine.train()
        if self.rank == 0:
            write_picture(self.folder / "pictures" / f"{self.step:08d}.png", result.grid)
        self.log.line(f"step {self.step} | validation loss {result.loss:.4f} | PSNR of samples {result.psnr:.2f} dB")
        by_sigma = {f"loss_sigma_{sigma}": loss for sigma, loss in zip(SIGMAS, result.by_sigma, strict=True)}
        self.log.scalars("valid", self.step, {"loss": result.loss, "psnr": result.psnr} | by_sigma)
        self.log.picture(self.step, result.grid)
        self._start_interval()

    def _save(self) -> None:
        start = time.perf_counter()
        training = {
            "step": self.step,
            "seed": self.seed,
            "micro_batch": self.recipe.micro_batch,
            "accumulation": self.recipe.accumulation,
            "bad_steps": self.bad_steps,
            "settings": self._decisive_settings(),
        } | self._engine_kind()
        state.save(
            self.engine,
            self.folder,
            self.step,
            training,
            self.batches.position(),
            self._write_ema,
            self.settings.keep_last,
        )
        self.log.line(f"saved {self.folder / str(self.step)} in {duration(time.perf_counter() - start)}")
        self._start_interval()

    def _write_ema(self, path: Path, tensors: dict[str, torch.Tensor]) -> None:
        save_safetensors(path, tensors, self.settings.model, {"step": str(self.step)}, self.clip_weights)
