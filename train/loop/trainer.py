"""The training loop. Each step is a function of the recipe, the corpus and the step number only."""

import copy
import logging
import math
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from openuni.manifests.errors import OpenUniError
from openuni.manifests.graceful_shutdown import graceful_shutdown
from openuni.training.data.batches import Loader, TrainingBatch, prefetched
from openuni.training.data.index import TensorError
from openuni.training.finite import NonFiniteError, all_finite, non_finite
from openuni.training.loop.guards import kept_text, run_lock, storage_errors
from openuni.training.loop.log import RunLog
from openuni.training.loop.setup import Setup, prepare
from openuni.training.loop.training_checkpoint import (
    DamagedCheckpoint,
    TrainingCheckpoint,
    check_sizes,
    list_checkpoints,
    load_model,
    load_optimizer,
    model_tensors,
    optimizer_tensors,
    save,
    set_aside,
    unsaved,
)
from openuni.training.loop.validation import Validator
from openuni.training.objectives.losses import Losses, compute_losses
from openuni.training.randomness import named_seed
from openuni.training.recipe import OptimizerOptions, TrainingRecipe
from openuni.training.run import Run, autocast, pick_device

if TYPE_CHECKING:
    from openuni.manifests.corpus.corpus import Corpus

Progress = Callable[[dict[str, Any]], None]
STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP)  # treated as Ctrl-C
logger = logging.getLogger(__name__)


def train(
    recipe: str | Path | TrainingRecipe,
    corpus: "str | Path | Corpus",
    out: str | Path,
    progress: Progress | None = None,
    device: str = "auto",
) -> Run:
    """Train, or resume the run in `out`. Returns the run.

    `recipe`: a name, a path or a `TrainingRecipe`. `progress` is called with every row of the log. Ctrl-C, SIGTERM and
    SIGHUP finish the step, save and raise KeyboardInterrupt. Raises `OpenUniError` before the first step if recipe,
    corpus and the run in `out` are inconsistent or another training writes to `out`; later if loss, weights or
    validation become NaN or infinite, latents cannot be read, or the disk is full. The message says what is kept.
    """
    from openuni.manifests.corpus.corpus import Corpus

    recipe = recipe if isinstance(recipe, TrainingRecipe) else TrainingRecipe.load(recipe)
    corpus = corpus if isinstance(corpus, Corpus) else Corpus.open(str(corpus))
    folder = Path(out)
    with storage_errors(folder), run_lock(folder):
        setup = prepare(recipe, corpus, folder)
        trainer = Trainer(setup, folder, pick_device(device), progress)
        trainer.run()
    return Run(folder, setup.record, device)


class Trainer:
    """A run in progress: model, EMA, optimizer and the number of finished steps."""

    def __init__(self, setup: Setup, folder: Path, device: str, progress: Progress | None) -> None:
        self.setup, self.folder, self.progress = setup, folder, progress
        self.recipe = setup.recipe
        self.device = torch.device(device)
        self.loader = Loader(
            setup.corpus,
            setup.index,
            setup.texts,
            self.recipe,
            setup.model,
            setup.tokenizer,
            pinned=self.device.type == "cuda",
        )
        self.plan = setup.plan
        with torch.random.fork_rng():
            torch.manual_seed(named_seed(self.recipe.seed, "weights"))
            resuming = bool(list_checkpoints(folder))  # the checkpoint replaces all weights: none are read first
            self.model = (setup.model.resolved() if resuming else setup.model).load(device)
        self._init_from()
        self.ema_model = ema_copy(self.model)
        self.optimizer = build_optimizer(self.model, self.recipe.optimizer)
        self.log_written: dict[str, Any] | None = None  # `RunLog.mark` of the checkpoint
        self.step = self.saved_step = self._resume()
        self.last_batch: TrainingBatch  # of the last step

    def run(self) -> None:
        """Run all remaining steps."""
        with closing(RunLog(self.folder, self.step, self.log_written)) as log:
            try:
                self._run(log, Validator(self.loader, self.setup.mix))
            except NonFiniteError as error:
                log.write({"step": self.step, "error": str(error)})
                raise OpenUniError(f"{error}. {self._advice()}") from error
            except TensorError as error:
                if self.step > self.saved_step:
                    self._save(log)  # finished steps are sound
                log.write({"step": self.step, "error": str(error)})
                kept = kept_text(self.folder)
                raise OpenUniError(f"training stopped after {self.step} steps: {error} {kept}") from error

    def _advice(self) -> str:
        """What to do about a run that diverged."""
        advice = f"Lower optimizer.learning_rate or optimizer.max_grad_norm. {kept_text(self.folder)}"
        if not list_checkpoints(self.folder):
            return f"{advice} Rerun to start again."
        return (
            f"{advice} A rerun resumes from it and repeats the same steps. To continue with other options, pass "
            "another --out and set init_from to this run."
        )

    def _run(self, log: RunLog, validator: Validator) -> None:
        steps = range(self.step, self.recipe.optimizer.steps)
        if self.step == 0:
            self._report(log, {"step": 0, "clips_by_task": self.setup.record["data"]["clips_by_task"]})
        elif not any("validation_loss" in row for row in log.kept if row["step"] == self.step):
            self._validate_resumed(log, validator)  # if it was due, Ctrl-C prevented it
        with (
            graceful_shutdown("this step", STOP_SIGNALS) as interrupted,
            closing(prefetched(self.loader, self.plan, steps)) as batches,
        ):
            for _ in steps:
                self._report(log, self._one_step(batches))
                if not interrupted.is_set():
                    self._validate(log, validator)
                stopping = interrupted.is_set()
                last = self.step == self.recipe.optimizer.steps
                if last or stopping or self.step % self.recipe.checkpoints.every_steps == 0:
                    self._save(log)
                if stopping:
                    raise interrupted.interrupt()

    def _one_step(self, batches: Iterator[list[list[TrainingBatch]]]) -> dict[str, Any]:
        began = time.perf_counter()
        parts = next(batches)
        waited = time.perf_counter() - began
        self.last_batch = parts[0][0]
        rate = self._set_learning_rate()
        by_task: dict[str, list[float]] = defaultdict(list)
        apart: dict[str, list[float]] = defaultdict(list)
        for part in parts:
            for batch in part:
                losses = self._losses(batch.to(self.device))
                (losses.total.sum() / self.recipe.optimizer.batch_size).backward()
                for task, loss in zip(batch.tasks, losses.total.tolist(), strict=True):
                    by_task[str(task)].append(loss)
                for name, values in losses.split_by_target(batch.tasks).items():
                    apart[name] += values
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.optimizer.max_grad_norm)
        losses_seen = [loss for task_losses in by_task.values() for loss in task_losses]
        self._check_gradient(float(norm), losses_seen, parts)
        self._update_weights()
        self.optimizer.zero_grad(set_to_none=True)
        self._update_ema()
        self._check_weights()
        self.step += 1
        took = time.perf_counter() - began
        return {
            "step": self.step,
            "loss": sum(losses_seen) / len(losses_seen),
            "task_loss": {task: sum(losses) / len(losses) for task, losses in sorted(by_task.items())},
            **{f"{name}_loss": sum(losses) / len(losses) for name, losses in sorted(apart.items())},
            "grad_norm": float(norm),
            "learning_rate": rate,
            "samples_per_s": len(losses_seen) / took,
            "data_wait_share": waited / took,
        }

    def _losses(self, batch: TrainingBatch) -> Losses:
        return compute_losses(self.model, batch, self.recipe, autocast(self.recipe, self.device))

    def _check_gradient(self, norm: float, losses: list[float], parts: list[list[TrainingBatch]]) -> None:
        """Raise `NonFiniteError` before the weights are changed."""
        loss_is_finite = all(map(math.isfinite, losses))
        if math.isfinite(norm) and loss_is_finite:
            return
        clips = [self.setup.index.sample_ids[clip] for part in parts for batch in part for clip in batch.clips]
        what = "gradient" if loss_is_finite else "loss"
        raise NonFiniteError(f"{what} is not finite at step {self.step + 1} (clips {', '.join(clips[:8])})")

    def _update_weights(self) -> None:
        try:
            self.optimizer.step()
        except RuntimeError as error:
            if "without overflow" not in str(error):  # PyTorch's words for a step size beyond float32
                raise
            raise NonFiniteError(f"weights not finite after step {self.step + 1} (the step size overflows)") from error

    def _check_weights(self) -> None:
        """Raise `NonFiniteError` if the step made weights, EMA or optimizer state NaN or infinite."""
        trained = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        average = dict(self.ema_model.named_parameters())
        groups = {
            "weights": trained,
            "EMA weights": {name: average[name] for name in trained},
            "optimizer state": optimizer_tensors(self.optimizer, self.model),
        }
        if all_finite(tensor for group in groups.values() for tensor in group.values()):
            return
        for what, group in groups.items():
            if odd := non_finite(group):
                raise NonFiniteError(
                    f"{what} not finite after step {self.step + 1} ({len(odd)} of {len(group)} tensors, first {odd[0]})"
                )

    def _set_learning_rate(self) -> float:
        factor = lr_factor(self.recipe.optimizer, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["full_rate"] * factor
        return self.recipe.optimizer.learning_rate * factor

    @torch.no_grad()
    def _update_ema(self) -> None:
        decay = min(self.recipe.ema.decay, (1 + self.step) / (10 + self.step))
        for average, current in zip(self.ema_model.parameters(), self.model.parameters(), strict=True):
            if average is not current:
                average.lerp_(current, 1.0 - decay)

    def _report(self, log: RunLog, row: dict[str, Any]) -> None:
        log.write(row)
        if self.progress:
            self.progress(row)

    def _validate_resumed(self, log: RunLog, validator: Validator) -> None:
        """Validate the checkpoint that was resumed; one that has no finite loss is not resumed again."""
        try:
            self._validate(log, validator)
        except NonFiniteError:
            set_aside(list_checkpoints(self.folder)[-1])
            raise

    def _validate(self, log: RunLog, validator: Validator) -> None:
        """Run the validation if it is due at this step."""
        every, last = self.recipe.validation.every_steps, self.step == self.recipe.optimizer.steps
        if len(validator.clips) and every and (self.step % every == 0 or last):
            try:
                losses = validator.losses(self.ema_model, self.device, autocast(self.recipe, self.device))
            except NonFiniteError as error:
                raise NonFiniteError(f"{error} at step {self.step}") from error
            self._report(log, {"step": self.step, "validation_loss": losses})

    @torch.no_grad()
    def _check_outputs(self) -> None:
        """Raise `NonFiniteError` if the weights are finite, but so large that the model's outputs are not."""
        for what, model in (("weights", self.model), ("EMA weights", self.ema_model)):
            batch = self.last_batch.to(self.device)
            losses = compute_losses(model, batch, self.recipe, autocast(self.recipe, self.device))
            if not all_finite([losses.total]):
                raise NonFiniteError(f"loss with the {what} after step {self.step} is not finite")

    def _save(self, log: RunLog) -> None:
        self._check_outputs()
        tensors = {
            "model": model_tensors(self.model),
            "ema": model_tensors(self.ema_model),
            "optimizer": optimizer_tensors(self.optimizer, self.model),
        }
        state = {"data": self.setup.record["data"], "torch": torch.__version__, "log": log.mark()}
        save(self.folder, self.step, tensors, state, self.recipe.checkpoints.keep)
        self.saved_step = self.step

    def _resume(self) -> int:
        """Load the latest sound checkpoint and return its step; 0 if there are no checkpoints.

        Damaged ones are renamed. Raises `OpenUniError` if there are only damaged ones.
        """
        damaged: list[tuple[TrainingCheckpoint, DamagedCheckpoint]] = []
        for checkpoint in reversed(list_checkpoints(self.folder)):
            try:
                self._load(checkpoint)
            except DamagedCheckpoint as error:
                damaged.append((checkpoint, error))
                continue
            for other, reason in damaged:
                logger.warning("%s Renamed to %s; resuming from step %d.", reason, set_aside(other), checkpoint.step)
            return checkpoint.step
        if damaged:
            reasons = "\n  ".join(str(reason) for _, reason in damaged)
            raise OpenUniError(f"no checkpoint of {self.folder} can be used:\n  {reasons}")
        return 0

    def _load(self, checkpoint: TrainingCheckpoint) -> None:
        self.log_written = checkpoint.state().get("log")
        load_model(self.model, checkpoint.tensors("model"), checkpoint.path)
        load_model(self.ema_model, checkpoint.tensors("ema"), checkpoint.path)
        load_optimizer(self.optimizer, self.model, checkpoint.tensors("optimizer"), checkpoint.path)

    def _init_from(self) -> None:
        """Initialize from the EMA weights of an earlier run; newly added parameters keep their initial weights."""
        if not self.recipe.init_from or list_checkpoints(self.folder):
            return
        run = Run.open(self.recipe.init_from)
        earlier = run.checkpoint
        if run.record.get("tokens") != self.setup.record.get("tokens"):
            raise OpenUniError(
                f"init_from: {run.folder} was trained with a different tokenizer: {run.record.get('tokens')}, this run "
                f"has {self.setup.record.get('tokens')}. Use the [text] tokenizer and checkpoint of that run."
            )
        tensors = earlier.tensors("ema")
        check_sizes(self.model, tensors, earlier.path)
        own = self.model.state_dict()
        if any(
            not torch.equal(tensors[name].to(own[name].dtype), own[name].cpu())
            for name in unsaved(self.model) & set(tensors)
        ):
            raise OpenUniError(
                f"init_from: {run.folder} has a trained base, but this run uses the frozen base of "
                f'"{self.setup.recipe.model.get("pretrained")}". Set model.train_base = true, or remove init_from.'
            )
        missing, unexpected = self.model.load_state_dict(tensors, strict=False)
        foreign = sorted(set(missing) - set(self.model.added_parameters()) - unsaved(self.model) | set(unexpected))
        if foreign:
            raise OpenUniError(
                f"init_from: {earlier.path} is a checkpoint of a different model; differing keys: "
                f"{', '.join(foreign[:6])}. Use the model of that run, or remove init_from."
            )


def ema_copy(model: Any) -> Any:
    """The EMA model. Frozen parameters are shared with the model, since they do not change."""
    frozen = {id(parameter): parameter for parameter in model.parameters() if not parameter.requires_grad}
    return copy.deepcopy(model, frozen).eval().requires_grad_(False)


def build_optimizer(model: Any, options: OptimizerOptions) -> torch.optim.AdamW:
    """AdamW over the trained parameters in four groups: base or added, with weight decay (matrices) or without."""
    added = set(model.added_parameters())
    groups: dict[tuple[bool, bool], list[torch.Tensor]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[name in added, parameter.ndim >= 2 and "table" not in name].append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "full_rate": options.learning_rate * (options.new_parameter_lr_scale if is_added else 1.0),
                "weight_decay": options.weight_decay if is_matrix else 0.0,
            }
            for (is_added, is_matrix), parameters in groups.items()
        ],
        betas=(0.9, options.beta2),
    )


def lr_factor(options: OptimizerOptions, step: int) -> float:
    """Learning-rate factor at `step` (from 0): linear warm-up, constant, linear decay over `decay_steps`."""
    up = min(1.0, (step + 1) / options.warmup_steps) if options.warmup_steps else 1.0
    down = min(1.0, (options.steps - step) / options.decay_steps) if options.decay_steps else 1.0
    return min(up, down)
