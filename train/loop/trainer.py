"""The training loop. Each step is a function of the recipe, the corpus and the step number only."""

import dataclasses
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from openuni.manifests.errors import OpenUniError
from openuni.manifests.graceful_shutdown import ShutdownEvent, graceful_shutdown
from openuni.training.data.batches import Loader, TrainingBatch, prefetched
from openuni.training.data.index import TensorError
from openuni.training.data.skipping import SkippedSamples
from openuni.training.estimate.throughput import Throughput, peak_tflops
from openuni.training.finite import NonFiniteError, all_finite, check_finite
from openuni.training.loop.guards import diverged_text, kept_text, run_lock, storage_errors, watchdog
from openuni.training.loop.log import NoLog, RunLog
from openuni.training.loop.ranks import DistributedRanks, Ranks, training_ranks
from openuni.training.loop.resume import init_from, resume
from openuni.training.loop.samples import Samples
from openuni.training.loop.saving import CheckpointSaver
from openuni.training.loop.setup import Setup, prepare_on
from openuni.training.loop.sharding import ShardedWeights, shard
from openuni.training.loop.step_log import StepLosses, loss_columns
from openuni.training.loop.training_checkpoint import list_checkpoints, optimizer_tensors, set_aside
from openuni.training.loop.validation import Validator
from openuni.training.loop.weights import Ema, Weights, check_equal_weights, clip_gradients, local_norm
from openuni.training.objectives.losses import Losses, compute_losses
from openuni.training.optimizers.adamw import build_optimizer, checked_state, lr_factor
from openuni.training.randomness import named_seed
from openuni.training.recipe import TrainingRecipe
from openuni.training.run import Run, autocast, pick_device
from openuni.training.tracker import TrackedRun, Tracking, parse_tracker

if TYPE_CHECKING:
    from openuni.manifests.corpus.corpus import Corpus

__all__ = ["Trainer", "lr_factor", "train"]

Progress = Callable[[dict[str, Any]], None]
STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP)  # treated as Ctrl-C
logger = logging.getLogger(__name__)


def train(
    recipe: str | Path | TrainingRecipe,
    corpus: "str | Path | Corpus",
    out: str | Path,
    progress: Progress | None = None,
    device: str = "auto",
    stop: ShutdownEvent | None = None,
    lock_wait_s: float = 0.0,
) -> Run:
    """Train, or resume the run in `out`. Returns the run.

    `recipe`: a name, a path or a `TrainingRecipe`. `progress` is called with every row of the log, on rank 0. Under
    torchrun, all processes train one model together: each calls this with the same arguments, and `out` must be on a
    file system that all of them see. Ctrl-C, SIGTERM and SIGHUP, to any of them, finish the step, save and raise
    KeyboardInterrupt; so does `stop`, once it is set on any rank. `lock_wait_s`: maximum time to wait for another
    training in `out` to end. Raises `OpenUniError` before the first step if recipe, corpus and the run in `out` are
    inconsistent or another training writes to `out`; later if loss, weights or validation become NaN or infinite,
    latents cannot be read, or the disk is full. The message says what is kept.
    """
    from openuni.manifests.corpus.corpus import Corpus

    folder = Path(out)
    with training_ranks() as ranks, ExitStack() as held:

        def opened() -> "tuple[TrainingRecipe, Corpus, str]":
            loaded = recipe if isinstance(recipe, TrainingRecipe) else TrainingRecipe.load(recipe)
            on = corpus if isinstance(corpus, Corpus) else Corpus.open(str(corpus))
            return loaded, on, ranks.device(pick_device(device))

        held.enter_context(storage_errors(folder))
        loaded, on, own_device = ranks.together(opened)
        ranks.first(lambda: held.enter_context(run_lock(folder, lock_wait_s)))
        setup = prepare_on(ranks, loaded, on, folder)
        trainer = Trainer(setup, folder, own_device, progress, ranks)
        trainer.stop = stop or ShutdownEvent()
        trainer.run()
        record = setup.record
    return Run(folder, record, device)


class Trainer:
    """A run in progress: model, EMA, optimizer and the number of finished steps. One per rank."""

    def __init__(
        self, setup: Setup, folder: Path, device: str, progress: Progress | None, ranks: Ranks | None = None
    ) -> None:
        self.setup, self.folder, self.progress = setup, folder, progress
        self.ranks = ranks or Ranks()
        self.recipe = setup.recipe
        self.device = torch.device(device)
        self.loader = Loader(
            *(setup.corpus, setup.index, setup.texts, self.recipe, setup.model, setup.tokenizer),
            rank=self.ranks.data_rank,
            world=self.ranks.data_world,
            pinned=self.device.type == "cuda",
        )
        self.plan = setup.plan
        self.weights = self._build()
        self.model = self.weights.model
        self.ema = Ema(self.weights)
        self.optimizer = build_optimizer(self.weights.local, set(self.model.added_parameters()), self.recipe.optimizer)
        self.step, state = resume(self.ranks, folder, self.weights, self.ema, self.optimizer)
        self.log_written = state.get("log")  # `RunLog.mark` of the checkpoint
        self.skipped = SkippedSamples(self.recipe.data.max_skipped_samples, state.get("skipped_samples"))
        self.saved_step = self.step
        self.saver = CheckpointSaver(self.ranks, folder, self.recipe.checkpoints)
        self.last_batch: TrainingBatch  # of the last step
        self.streams = tuple(setup.index.latents)
        peak = 0.0 if self.recipe.precision == "float32" else peak_tflops(self.device, self.recipe.peak_tflops)
        self.throughput = Throughput(setup, self.model, peak, self.ranks.world)
        self.stop = ShutdownEvent()  # besides signals, which set it in the main thread only

    def _build(self) -> Weights:
        """The model with its initial weights, divided among ranks if there are several."""
        if not isinstance(self.ranks, DistributedRanks):
            return Weights(self._initial_model(self.setup.model, str(self.device)))
        component: Any = self.setup.model
        # built as a whole in the memory of the host, which draws the same weights as on one device; then divided
        plain = {"attention": "auto", "compile": "none"}
        plain = {name: value for name, value in plain.items() if hasattr(component, name)}
        model = self.ranks.together(lambda: self._initial_model(dataclasses.replace(component, **plain), "cpu"))
        check_equal_weights(model, self.ranks)
        self.ranks.make_mesh(str(self.device))
        kernels = getattr(component, "attention", "auto"), getattr(component, "compile", "none")
        self.ranks.together(lambda: shard(model, self.ranks, str(self.device), *kernels))
        return ShardedWeights(model, self.ranks, self.recipe.optimizer.reduce_every_micro_batch)

    def _initial_model(self, component: Any, device: str) -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(named_seed(self.recipe.seed, "weights"))
            resuming = bool(list_checkpoints(self.folder))  # the checkpoint replaces all weights: none are read first
            model = (component.resolved() if resuming else component).load(device)
        if not resuming:
            init_from(model, self.setup)
        return model

    def run(self) -> None:
        """Run all remaining steps."""
        log = self.ranks.first(self._open_log) or NoLog()
        with closing(log), self.saver:
            try:
                samples = Samples(self.setup, self.loader, self.ranks, self.folder)
                self._run(log, Validator(self.loader, self.setup.mix, self.ranks), samples)
                if summary := self.skipped.summary():
                    logger.warning("%s", summary)
            except NonFiniteError as error:
                self.saver.finish()
                log.write({"step": self.step, "error": str(error)})
                raise OpenUniError(f"{error}. {diverged_text(self.folder)}") from error
            except TensorError as error:
                if self.step > self.saved_step:
                    self._save(log)  # finished steps are sound
                self.saver.finish()
                log.write({"step": self.step, "error": str(error)})
                kept = kept_text(self.folder)
                raise OpenUniError(f"training stopped after {self.step} steps: {error} {kept}") from error

    def _open_log(self) -> RunLog:
        tracked = TrackedRun(self.folder, self.recipe.to_dict(), self.step)
        is_finished = self.step >= self.recipe.optimizer.steps  # nothing is left to tell
        tracking = Tracking(None if is_finished else parse_tracker(self.recipe.tracking), tracked)
        return RunLog(self.folder, self.step, self.log_written, tracking)

    def _run(self, log: RunLog | NoLog, validator: Validator, samples: Samples) -> None:
        steps = range(self.step, self.recipe.optimizer.steps)
        validated = any("validation_loss" in row for row in log.kept if row["step"] == self.step)
        if self.step == 0:
            self._report(log, {"step": 0, "clips_by_task": self.setup.record["data"]["clips_by_task"]})
        elif not self.ranks.highest(int(validated))[0]:
            self._validate_resumed(log, validator)  # if it was due, Ctrl-C prevented it
        with (
            graceful_shutdown("this step", STOP_SIGNALS, self.stop) as interrupted,
            closing(prefetched(self.loader, self.plan, steps)) as batches,
        ):
            for _ in steps:
                with watchdog(self.recipe.watchdog_s):
                    row = self._one_step(batches, log)
                    if self.step % self.recipe.log_every_steps == 0 or self.step == self.recipe.optimizer.steps:
                        self._report(log, row)
                if not self._stop_signal(interrupted):
                    with watchdog(self.recipe.watchdog_s):
                        self._validate(log, validator)
                        if samples.is_due(self.step):
                            samples.write(self.step, self.ema, self.device, log)
                number = self._stop_signal(interrupted)
                last = self.step == self.recipe.optimizer.steps
                with watchdog(self.recipe.watchdog_s):
                    self.saver.poll()
                    if last or number or self.step % self.recipe.checkpoints.every_steps == 0:
                        self._save(log)
                    if last or number:
                        self.saver.finish()
                if number:
                    self.ranks.has_agreed_end = True
                    interrupted.number = number
                    raise interrupted.interrupt()

    def _stop_signal(self, interrupted: ShutdownEvent) -> int:
        """The signal that has stopped any rank; 0: none. All ranks get the same answer."""
        return self.ranks.highest(interrupted.number if interrupted.is_set() else 0)[0]

    def _one_step(self, batches: Iterator[list[list[TrainingBatch]]], log: RunLog | NoLog) -> dict[str, Any]:
        began = time.perf_counter()
        parts = self.ranks.together(lambda: next(batches))
        waited = time.perf_counter() - began
        self.last_batch = parts[0][0]
        rate = self._set_learning_rate()
        losses = StepLosses(self.recipe.optimizer.batch_size, self.streams)
        passes = [batch for part in parts for batch in part]
        self._count_skipped(log, self.step + 1, *(batch.skipped for batch in passes))
        for number, batch in enumerate(passes, start=1):
            self.weights.begin_pass(is_last=number == len(passes))
            found = self._losses(batch.to(self.device))
            if self.ranks.counts_losses:
                losses.add(batch, found)
            counted = found.total.sum() if batch.slots else found.total.sum() * 0.0
            (counted / self.recipe.optimizer.batch_size).backward()
        table, norm = self._clipped(losses)
        self._update_weights()
        self.weights.zero_gradients()
        self._update_ema()
        self._check_weights()
        self.step += 1
        took = time.perf_counter() - began
        samples = self.plan.step(self.step - 1)
        order = self.loader.step_order(samples)
        columns = loss_columns(table, [sample.task for sample in samples], order, self.streams)
        return {
            "step": self.step,
            **columns,
            "grad_norm": norm,
            "learning_rate": rate,
            **(self.throughput.columns(samples, took) if self.ranks.is_first else {}),
            "data_wait_share": waited / took,
        }

    def _count_skipped(self, log: RunLog | NoLog, step: int, *reasons: Mapping[str, str]) -> None:
        """Count and log the samples that any rank has skipped. Raises `TensorError` on all ranks above the limit."""
        own = {sample: reason for found in reasons for sample, reason in found.items()}
        if not self.skipped.limit or not self.ranks.highest(len(own))[0]:
            return
        found = {sample: reason for others in self.ranks.gathered(own) for sample, reason in others.items()}
        new = self.ranks.together(lambda: self.skipped.add(found, step))
        if new:
            self._report(log, {"step": step, "skipped_samples": len(self.skipped.reasons), "skipped": new})

    def _clipped(self, losses: StepLosses) -> tuple[np.ndarray, float]:
        """Clip the gradients by their norm over all ranks. Returns the losses of the step by slot, and the norm.

        Raises `NonFiniteError` before the weights are changed.
        """
        used = self.weights.used()
        if self.ranks.world > 1:
            used = self.ranks.total(used)
        gradients = self.weights.gradients(used)
        self.weights.check_synchronized(self.ranks)
        table, norm = losses.fetch(local_norm(gradients, self.device))
        if self.ranks.world > 1:
            total = self.ranks.total(np.append(table.ravel(), norm**2))
            table, norm = total[:-1].reshape(table.shape), math.sqrt(total[-1])
        self._check_gradient(norm, table)
        clip_gradients(gradients, norm, self.recipe.optimizer.max_grad_norm)
        return table, norm

    def _losses(self, batch: TrainingBatch) -> Losses:
        return compute_losses(self.model, batch, self.recipe, autocast(self.recipe, self.device))

    def _check_gradient(self, norm: float, table: np.ndarray) -> None:
        """Raise `NonFiniteError`, on all ranks, unless norm and losses are finite."""
        if math.isfinite(norm) and np.isfinite(table).all():
            return
        odd = np.flatnonzero(~np.isfinite(table).all(axis=1))
        what = "loss" if len(odd) else "gradient"
        raise self.ranks.agreed(
            NonFiniteError(f"{what} is not finite at step {self.step + 1} ({self._clips(odd.tolist())})")
        )

    def _clips(self, slots: Sequence[int] = ()) -> str:
        """Clips in these slots of the current step, all if none are given, for an error."""
        samples = self.plan.step(self.step)
        named = [self.setup.index.sample_ids[samples[slot].clip] for slot in slots or self.loader.step_order(samples)]
        return f"clips {', '.join(named[:8])}"

    def _update_weights(self) -> None:
        def update() -> None:
            try:
                self.optimizer.step()
            except RuntimeError as error:
                if "without overflow" not in str(error):  # PyTorch's words for a step size beyond float32
                    raise
                raise NonFiniteError(
                    f"weights not finite after step {self.step + 1} (the step size overflows; {self._clips()})"
                ) from error

        self.ranks.together(update)

    def _check_weights(self) -> None:
        """Raise `NonFiniteError` if the step made weights, EMA or optimizer state NaN or infinite."""
        groups = {
            "weights": self.weights.local,
            "EMA weights": self.ema.average,
            "optimizer state": checked_state(self.optimizer, self.weights.local),
        }

        self.ranks.together(lambda: check_finite(groups, f"after step {self.step + 1}, {self._clips()}"))

    def _set_learning_rate(self) -> float:
        factor = lr_factor(self.recipe.optimizer, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["full_rate"] * factor
        return self.recipe.optimizer.learning_rate * factor

    def _update_ema(self) -> None:
        self.ema.update(min(self.recipe.ema.decay, (1 + self.step) / (10 + self.step)))

    def _report(self, log: RunLog | NoLog, row: dict[str, Any]) -> None:
        def report() -> None:
            log.write(row)
            if self.progress:
                self.progress(row)

        self.ranks.first(report)

    def _validate_resumed(self, log: RunLog | NoLog, validator: Validator) -> None:
        """Validate the checkpoint that was resumed; one that has no finite loss is not resumed again."""
        try:
            self._validate(log, validator)
        except NonFiniteError:
            self.ranks.first(lambda: set_aside(list_checkpoints(self.folder)[-1]))
            raise

    def _validate(self, log: RunLog | NoLog, validator: Validator) -> None:
        """Run the validation if it is due at this step."""
        every, last = self.recipe.validation.every_steps, self.step == self.recipe.optimizer.steps
        if len(validator.clips) and every and (self.step % every == 0 or last):
            try:
                with self.ema.applied() as model:
                    losses = validator.losses(model, self.device, autocast(self.recipe, self.device))
                self._count_skipped(log, self.step, validator.skipped)
            except NonFiniteError as error:
                raise NonFiniteError(f"{error} at step {self.step}") from error
            self._report(log, {"step": self.step, "validation_loss": losses})

    @torch.no_grad()
    def _check_outputs(self) -> None:
        """Raise `NonFiniteError` if the weights are finite, but so large that the model's outputs are not."""
        batch = self.last_batch.to(self.device)
        clips = ", ".join(self.setup.index.clip_ids[clip] for clip in batch.clips[:8])
        odd = ""
        for what in ("weights", "EMA weights"):
            with ExitStack() as applied:
                if what != "weights":
                    applied.enter_context(self.ema.applied())
                losses = compute_losses(self.model, batch, self.recipe, autocast(self.recipe, self.device))
                if not odd and not all_finite([losses.total]):
                    odd = f"loss with the {what} after step {self.step} is not finite (clips {clips})"
        self.weights.changed()

        def check() -> None:
            if odd:
                raise NonFiniteError(odd)

        self.ranks.together(check)

    def _save(self, log: RunLog | NoLog) -> None:
        self._check_outputs()
        moments = optimizer_tensors(self.optimizer, self.weights.local)
        tensors = {
            "model": self.weights.saved(),
            "ema": self.weights.saved(self.ema.average),
            "optimizer": {
                key: value if value.ndim == 0 else self.weights.rows(key.partition("/")[2], value)
                for key, value in moments.items()
            },
        }
        state = {"data": self.setup.record["data"], "torch": torch.__version__, "log": log.mark()}
        if self.skipped.reasons:
            state["skipped_samples"] = self.skipped.reasons
        self.saver.save(self.step, tensors, state)
        self.saved_step = self.step
