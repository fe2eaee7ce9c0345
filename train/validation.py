"""Validation loss: held-out clips, every task, fixed noise levels and fixed noise. No sampling, so it is cheap."""

from collections import defaultdict

import numpy as np
import torch

from train.data import Loader
from train.flow_matching import sigma_at, stream_losses, velocity
from train.model import VideoModel
from train.plan import Sample, usable_clips
from train.tasks import TaskMix


class Validator:
    """The same question at every step: equal weights give an equal answer."""

    def __init__(self, loader: Loader, mix: TaskMix) -> None:
        """Takes the first `validation.clips` held-out clips (by clip_id) that have the streams of a task."""
        index, validation = loader.index, loader.recipe.validation
        self.loader, self.mix = loader, mix
        self.clips = np.flatnonzero(usable_clips(index, mix) & index.held_out)[: validation.clips]
        quantiles = (torch.arange(validation.quantiles) + 0.5) / validation.quantiles
        self.sigmas = sigma_at(quantiles, loader.recipe.flow.density, loader.recipe.flow.shift).tolist()

    @torch.no_grad()
    def losses(self, model: VideoModel, device: torch.device, autocast: torch.autocast) -> dict[str, float]:
        """Mean loss per task, and per task and noise level: `{"rgb->depth": 0.4, "rgb->depth at 0.83": 0.5, ...}`."""
        found: dict[str, list[float]] = defaultdict(list)
        present = self.loader.index.present
        for clip in self.clips.tolist():
            for task, _ in self.mix.possible(self.loader.index.streams(int(present[clip]))):
                name = ("validation", self.loader.index.clip_ids[clip])
                levels = [dict.fromkeys(task.made, sigma) for sigma in self.sigmas]
                samples = [Sample(clip, task)] * len(levels)
                batch = self.loader.batch(samples, levels, [name] * len(levels)).to(device)
                target = {stream: velocity(batch.clean[stream], batch.noise[stream]) for stream in batch.clean}
                with autocast:
                    predicted = model(batch.noisy(), batch.sigmas, batch.text)
                losses = stream_losses(predicted, target, batch.made).tolist()
                found[str(task)] += losses
                for sigma, loss in zip(self.sigmas, losses, strict=True):
                    found[f"{task} at {sigma:.2f}"].append(loss)
        return {name: sum(losses) / len(losses) for name, losses in found.items()}
