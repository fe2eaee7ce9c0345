"""Validation loss: held-out clips, every task, fixed noise levels and fixed noise. No sampling, so it is cheap."""

from collections import defaultdict

import numpy as np
import torch

from openuni.training.data.batches import Loader, TrainingBatch
from openuni.training.data.index import DamagedTensor, TensorError
from openuni.training.data.plan import Sample, usable_clips
from openuni.training.finite import NonFiniteError, all_finite
from openuni.training.loop.ranks import Ranks
from openuni.training.model import VideoModel
from openuni.training.objectives.flow_matching import sigma_at
from openuni.training.objectives.losses import compute_losses
from openuni.training.tasks import TEXT, Task, TaskMix


class Validator:
    """Deterministic validation: equal weights give equal losses at every step."""

    def __init__(self, loader: Loader, mix: TaskMix, ranks: Ranks | None = None) -> None:
        """Select the first `validation.clips` held-out clips (by clip_id) that have the streams of a task.

        Of a clip with several windows, the first one counts.
        """
        index, validation = loader.index, loader.recipe.validation
        self.loader, self.mix, self.ranks = loader, mix, ranks or Ranks()
        usable = usable_clips(index, mix) & index.held_out
        if index.window is not None:
            usable &= index.window == 0
        self.usable = np.flatnonzero(usable)
        self.clips = self.usable[: validation.clips]
        self.skipped: dict[str, str] = {}  # damaged samples of this rank, by id, that others replace; the reasons
        quantiles = (torch.arange(validation.quantiles) + 0.5) / validation.quantiles
        flow, text = loader.recipe.flow_matching, loader.recipe.text
        drawn = sigma_at(quantiles, flow.density, flow.shift).tolist()
        self.sigmas = [max(sigma, loader.min_target_sigma) for sigma in drawn]
        self.text_sigmas = sigma_at(quantiles, text.density, text.shift).tolist()

    @torch.no_grad()
    def losses(self, model: VideoModel, device: torch.device, autocast: torch.autocast) -> dict[str, float]:
        """Mean loss per task, and per task and noise level: `{"rgb->depth": 0.4, "rgb->depth at 0.83": 0.5, ...}`.

        Tasks with a text target: also "TASK text", the loss per token, and "TASK token accuracy"
        (`TextBatch.accuracy`); if they also have video targets, "TASK video". Raises `NonFiniteError` that names the
        task and the clip of a loss that is NaN or infinite. With several ranks each computes a part.
        """
        present = self.loader.index.present
        units = [
            (clip, task)
            for clip in self.clips.tolist()
            for task, _ in self.mix.available_tasks(self.loader.index.streams(int(present[clip])))
        ]
        world, rank = self.ranks.data_world, self.ranks.data_rank
        turns = -(-len(units) // world)  # equally many on all ranks, as they communicate in each; some in vain
        own = [units[number if number < len(units) else 0] for number in range(rank, turns * world, world)]
        results = [self._unit(model, device, autocast, *unit) for unit in own]

        def check() -> None:
            for _, odd in results:
                if odd:
                    raise NonFiniteError(odd)

        self.ranks.together(check)
        everyone = self.ranks.gathered([values for values, _ in results])[:: self.ranks.context_size]
        found: dict[str, list[float]] = defaultdict(list)
        for number in range(len(units)):
            for name, values in everyone[number % world][number // world]:
                found[name] += values
        return {name: sum(losses) / len(losses) for name, losses in found.items()}

    def _unit(
        self, model: VideoModel, device: torch.device, autocast: torch.autocast, clip: int, task: Task
    ) -> tuple[list[tuple[str, list[float]]], str]:
        """Values by name for a clip and a task, and what is not finite in them, or an empty text."""
        clip_id = self.loader.index.clip_ids[clip]
        levels = self._levels(task)
        batch = self.ranks.together(lambda: self._batch(clip, task, levels)).to(device)
        losses = compute_losses(model, batch, self.loader.recipe, autocast, weighted=False)
        if not all_finite([losses.total]):
            return [], f'validation loss of task "{task}" is not finite (clip {clip_id})'
        found = [(str(task), losses.total.tolist())]
        for level, loss in zip(levels, losses.total.tolist(), strict=True):
            found.append((f"{task} at {next(iter(level.values())):.2f}", [loss]))
        if task.generates_text and batch.text_stream and losses.logits is not None and self.loader.tokenizer:
            accuracy = batch.text_stream.accuracy(losses.logits, self.loader.tokenizer.end)
            found.append((f"{task} token accuracy", accuracy.tolist()))
            found += [(f"{task} {part}", values) for part, values in losses.split_by_target(batch.tasks).items()]
        return found, ""

    def _batch(self, clip: int, task: Task, levels: list[dict[str, float]]) -> TrainingBatch:
        """The batch of a clip; if it is damaged and may be skipped, of the next readable one with these streams."""
        name, present = ("validation", self.loader.index.clip_ids[clip]), self.loader.index.present
        for other in [clip, *self.usable[self.usable > clip].tolist(), *self.usable[self.usable < clip].tolist()]:
            if self.loader.index.streams(int(present[other])) >= task.required_streams:
                try:
                    return self.loader.batch([Sample(other, task)] * len(levels), levels, [name] * len(levels))
                except DamagedTensor as error:
                    self.loader.skip(error, self.skipped)
        raise TensorError(f'no held-out sample of task "{task}" is readable: {next(iter(self.skipped.values()))}')

    def _levels(self, task: Task) -> list[dict[str, float]]:
        """Sigmas of the targets, video first; in joint tasks video and text share one quantile."""
        levels = [dict.fromkeys(task.targets, sigma) for sigma in self.sigmas]
        if not task.generates_text:
            return levels
        shared = bool(task.targets) and self.loader.recipe.flow_matching.shared_sigma
        text_sigmas = self.sigmas if shared else self.text_sigmas
        return [level | {TEXT: sigma} for level, sigma in zip(levels, text_sigmas, strict=True)]
