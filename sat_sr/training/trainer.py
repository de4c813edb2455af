"""The training loop."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.distributed as dist

from sat_sr.checkpoint import DEFAULT_CLIP, load_image_encoder, save_safetensors
from sat_sr.checkpoint.run_folder import PICTURES
from sat_sr.data.shards import expand_shards
from sat_sr.diffusion.edm import edm_loss
from sat_sr.programs import exit_codes
from sat_sr.training import state
from sat_sr.training.batches import Batch, TrainingBatches, gather_counts, require_same_shards, validation_batches
from sat_sr.training.engine import build_engine, update
from sat_sr.training.error_norm import ErrorNorm
from sat_sr.training.interval import Interval
from sat_sr.training.logs import RunLog, duration
from sat_sr.training.noise import TrainingNoise
from sat_sr.training.optimizer import learning_rate
from sat_sr.training.preemption import Preemption
from sat_sr.training.ranks import gather, wait_for_all
from sat_sr.training.recipe import Recipe
from sat_sr.training.resume import changes, checkpoint_of, decisive_settings, fixed_settings, require_same
from sat_sr.training.run_claim import claim_folder, require_shared
from sat_sr.training.tf32 import tf32
from sat_sr.training.validation import SIGMAS, validate, write_picture
from sat_sr.training.weights import starting_point


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
            self._lock = claim_folder(self.folder, settings.model)  # for as long as this process lives
        wait_for_all()
        require_shared(self.folder)
        checkpoint = checkpoint_of(self.folder)
        saved = state.read_training(checkpoint) if checkpoint else {}
        require_same(self.folder, saved, fixed_settings(settings, recipe))
        if checkpoint:
            state.require_whole(checkpoint, saved["world_size"], partitioned=recipe.zero_stage > 0)
        self.step = self.saved_step = saved.get("step", 0)  # updates tried so far, skipped ones included
        self.bad_steps = saved.get("bad_steps", 0)
        seeds = gather(settings.seed)  # a launcher may draw --seed on each rank
        self.seed = saved.get("seed", seeds[0])  # a run keeps its seed: it may be drawn anew for each start

        start = starting_point(settings, checkpoint)
        # In float32, whatever the file has: as generation computes the embedding, too.
        self.clip = load_image_encoder(
            start or settings.model, settings.clip_model or DEFAULT_CLIP, device=device, dtype=torch.float32
        )
        self.clip_weights = start.clip_tensors if start else None  # go along into what is saved
        self.batches = TrainingBatches(
            settings, self.seed, self.rank, self.world_size, recipe.micro_batch, device, self.clip
        )
        require_same_shards("--train-data", self.batches.shards)
        require_same_shards("--valid-data", expand_shards(settings.valid_data) if settings.valid_data else [])
        self.decisive = decisive_settings(settings, recipe, self.batches.shards, self.clip)
        self.engine = build_engine(settings, recipe, self.seed, start)
        other_order = ""
        if checkpoint:
            state.load(self.engine, checkpoint, saved["world_size"])
            other_order = self.batches.resume(state.data_positions(checkpoint, saved["world_size"]))
        self.validation, note = [], "no --valid-data: there will be no validation and no pictures"
        if settings.valid_data:
            self.validation, note = validation_batches(
                settings, self.rank, self.world_size, recipe.micro_batch, device, self.clip
            )
        # Not earlier: it drops what the log has of later steps, which a start that is refused must not do.
        self.log = RunLog(self.folder, self.step, enabled=self.rank == 0)
        if saved and self.seed != settings.seed:
            self.log.line(f"--seed {settings.seed} is not used: this run started with seed {self.seed}")
        elif not saved and len(set(seeds)) > 1:
            others = ", ".join(map(str, dict.fromkeys(seeds[1:])))
            self.log.line(
                f"--seed is not the same on all ranks ({others} beside rank 0's): {self.seed}, rank 0's, is used"
            )
        if differing := changes(saved, self.decisive):
            self.log.line(f"differs from step {self.step} on: {differing}")
        if other_order:
            self.log.line(f"samples are read in another order from step {self.step} on: {other_order}")
        if (shards := len(self.batches.shards)) < self.batches.streams:
            self.log.line(
                f"{shards} shard(s) for {self.batches.streams} data workers: each of them reads all, in an order of "
                "its own; with as many shards or more, a pass would read each sample once"
            )
        for line in (note, *(self.clip.notes if self.clip else ())):
            self.log.line(line)
        self.noise = TrainingNoise(
            self.seed, self.rank, device, settings.p_mean, settings.p_std, settings.sigma_sampling == "stratified"
        )
        self.error_norm = ErrorNorm(settings.model.patch_size, settings.gradient_weight, settings.seam_weight)
        self.data_counts = gather_counts(self.batches.counts)
        self.grad_norm = 0.0
        self.interval = Interval(self.log, recipe.batch, settings.train_iters, device, self.step)
        if checkpoint:
            self.log.line(f"resuming {self.folder} at step {self.step}")

    def run(self) -> int:
        """Trains to the end, or until a signal asks to stop. Returns the exit code, DONE or SAVED."""
        self.preemption.watch()  # again, for who has built this without the program
        settings, total = self.settings, self.settings.train_iters
        if self._validation_missing():
            self.log.line(f"step {self.step} was saved, but its validation did not come to its end: it comes now")
            if not self._validate():
                return self._stopped()
        elif self.step >= total:
            self.log.line(f"nothing to do: {self.folder} is at step {self.step} of {total}")
        due = False
        while self.step < total:
            self.train_step()
            last = self.step == total
            if self.step % settings.log_interval == 0 or last:
                self._log_interval()
            stop = not last and self._stop_asked()
            due = due or self.step % settings.save_interval == 0
            # Not in the middle of bad steps: what came before may have spoiled the weights.
            if stop or last or (due and not self.bad_steps):
                self._save()
                due = False
            # After the checkpoint: validation takes time that a signal does not give, and may fail.
            if not stop and self._validation_due():
                stop = not self._validate()
                if stop and self.saved_step != self.step:
                    self._save()
            if stop:
                return self._stopped()
        self.log.close()
        return exit_codes.DONE

    def _stopped(self) -> int:
        self.log.line(f"stopped by a signal, saved at step {self.step}: run the same command again to resume")
        self.log.close()
        return exit_codes.SAVED

    def _validation_due(self) -> bool:
        settings = self.settings
        at_interval = self.step % settings.eval_interval == 0
        return bool(settings.valid_data) and (at_interval or self.step == settings.train_iters)

    def _validation_missing(self) -> bool:
        """Whether the step that this start begins at was saved, and then left out or broke off its validation."""
        if not self.step or not self._validation_due():  # the same on all ranks
            return False
        missing = [not self.log.has("valid", self.step)]
        dist.broadcast_object_list(missing)  # rank 0 has the log
        return missing[0]

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
            self.interval.timer.mark("data")
            with tf32(settings.tf32):
                loss, applied = self._learn(batch)
            losses.append(loss)
            keys += batch_keys
        self.step += 1
        loss = torch.stack(losses).mean()
        if applied:
            self.bad_steps = 0
            self.interval.add(loss)
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
        self.interval.timer.mark("forward")
        # An infinite loss may have finite gradients: make them NaN, then DeepSpeed's check of the gradient norm, which
        # all ranks share, skips the update everywhere.
        engine.backward(loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan))
        self.interval.timer.mark("backward")
        applied, self.grad_norm = update(engine, self.recipe)
        self.interval.timer.mark("step")
        return loss.detach(), applied

    def _count_bad_step(self, loss: torch.Tensor, keys: list[str]) -> None:
        self.bad_steps += 1
        reports = gather((loss.item(), keys))
        culprits = [report for report in reports if not torch.tensor(report[0]).isfinite()] or reports
        what = "; ".join(f"loss {value} on {', '.join(names)}" for value, names in culprits)
        self.log.line(f"step {self.step} skipped on all ranks, no finite gradient ({self.bad_steps} in a row): {what}")
        # A single one may be the sample's fault, and has changed nothing.
        last = self.step == self.settings.train_iters and self.bad_steps > 1
        if last or self.bad_steps >= self.settings.max_bad_steps:
            series = "1 step" if self.bad_steps == 1 else f"{self.bad_steps} steps in a row"
            end = ", the end of the run, which is not saved" if last else ""
            raise FloatingPointError(
                f"{series} without a finite gradient, the last is step {self.step}{end}: {what}; go on from the last "
                "checkpoint with a lower --lr, or look at these samples. If it fails there at once, its weights are "
                "spoiled already: write the name of an earlier one into `latest`"
            )

    def _stop_asked(self) -> bool:
        """Whether a signal has come to any rank; asked by all of them together."""
        if self.world_size == 1:
            return self.preemption.asked
        value = torch.tensor(int(self.preemption.asked), device=self.device)
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return bool(value)

    def _log_interval(self) -> None:
        lrs = dict.fromkeys(group["lr"] for group in self.engine.optimizer.param_groups)
        self.interval.write(self.step, self.grad_norm, [*lrs])
        self._log_data()
        self.interval.start(self.step)

    def _log_data(self) -> None:
        """Samples of all ranks that were skipped or converted, where there are more than at the last time."""
        counts = gather_counts(self.batches.counts)
        if counts != self.data_counts:
            self.data_counts = counts
            self.log.line("data so far: " + ", ".join(f"{count} {reason}" for reason, count in counts.most_common()))
            self.log.scalars("data", self.step, dict(counts))

    def _validate(self) -> bool:
        """Whether it came to its end: a signal may ask to stop."""
        start = time.perf_counter()
        self.engine.eval()
        with state.ema_weights(self.engine):
            result = validate(
                self.engine,
                self.validation,
                steps=self.settings.eval_steps,
                seed=self.seed,
                device=self.device,
                stop=self._stop_asked,
                asked=lambda: self.preemption.asked,
            )
        self.engine.train()
        if result is None:
            self.log.line(f"step {self.step} | validation given up, as a signal asks to stop")
            return False
        self.log.line(f"step {self.step} | validation loss {result.loss:.4f} | PSNR of samples {result.psnr:.2f} dB")
        if self.rank == 0 and result.grid is not None:
            write_picture(self.folder / PICTURES / f"{self.step:08d}.png", result.grid)
            self.log.picture(self.step, result.grid)
        by_sigma = {f"loss_sigma_{sigma}": loss for sigma, loss in zip(SIGMAS, result.by_sigma, strict=True)}
        # Last: a step with this record is not validated again.
        self.log.scalars("valid", self.step, {"loss": result.loss, "psnr": result.psnr} | by_sigma)
        self.interval.leave_out(time.perf_counter() - start)
        return True

    def _save(self) -> None:
        start = time.perf_counter()
        training = {
            "step": self.step,
            "seed": self.seed,
            "world_size": self.world_size,
            "micro_batch": self.recipe.micro_batch,
            "accumulation": self.recipe.accumulation,
            "bad_steps": self.bad_steps,
            "settings": self.decisive,
        } | fixed_settings(self.settings, self.recipe)
        keep = 0 if self.bad_steps else self.settings.keep_last  # a signal may come amid bad steps: others may be good
        state.save(
            self.engine,
            self.folder,
            self.step,
            training,
            self.batches.position(),
            self._write_ema,
            keep,
        )
        self.saved_step = self.step
        seconds = time.perf_counter() - start
        self.log.line(f"saved {self.folder / str(self.step)} in {duration(seconds)}")
        self.interval.leave_out(seconds)

    def _write_ema(self, path: Path, tensors: dict[str, torch.Tensor]) -> None:
        save_safetensors(path, tensors, self.settings.model, {"step": str(self.step)}, self.clip_weights)
