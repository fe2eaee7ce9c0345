"""Losses of a batch: of its latent streams and of its text."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from openuni.training.data.batches import TrainingBatch
from openuni.training.objectives.flow_matching import loss_weight, losses_by_stream, summed, velocity
from openuni.training.objectives.text_flow_matching import text_weight
from openuni.training.recipe import TrainingRecipe
from openuni.training.tasks import Task


class Losses(NamedTuple):
    """Per sample, float32 [B]."""

    total: torch.Tensor  # video + weight * text
    video: torch.Tensor  # sum over the target latent streams; 0 if there are none
    text: torch.Tensor | None  # mean per token; 0 if text is a condition; None without a text stream
    logits: torch.Tensor | None  # text logits [B, L, vocabulary]
    by_stream: dict[str, torch.Tensor]  # the parts of `video`; 0 where the stream is a condition

    def split_by_target(self, tasks: Sequence[Task]) -> dict[str, list[float]]:
        """Losses of the samples with a video target ("video") and a text target ("text"); empty without text stream."""
        if self.text is None:
            return {}
        video = [loss for loss, task in zip(self.video.tolist(), tasks, strict=True) if task.targets]
        text = [loss for loss, task in zip(self.text.tolist(), tasks, strict=True) if task.generates_text]
        return {name: losses for name, losses in (("video", video), ("text", text)) if losses}


def compute_losses(
    model: Any, batch: TrainingBatch, recipe: TrainingRecipe, autocast: torch.autocast, *, weighted: bool = True
) -> Losses:
    """Run one forward pass. `weighted`: weight the video loss by noise level (`flow_matching.weighting`)."""
    target = {name: velocity(batch.clean[name], batch.noise[name]) for name in batch.clean}
    streams, sigmas, text_stream = batch.noisy(), batch.sigmas, batch.text_stream
    embedded = None
    with autocast:
        if text_stream is not None:
            noisy, embedded = text_stream.noisy(model, recipe.text.degree)
            streams, sigmas = streams | {"text": noisy}, sigmas | {"text": text_stream.sigma}
        predicted = model(streams, sigmas, batch.text)
    weights = None
    if weighted:
        weights = {name: loss_weight(sigma, recipe.flow_matching.weighting) for name, sigma in batch.sigmas.items()}
    by_stream = losses_by_stream(predicted, target, batch.targets, weights)
    video = summed(by_stream)
    if text_stream is None:
        return Losses(video, video, None, None, by_stream)
    text = text_stream.losses(predicted, streams["text"], embedded, recipe.text)
    ratio = recipe.text.weight or text_weight(_video_tokens(model, batch), text_stream.clean.shape[1])
    return Losses(video + ratio * text, video, text, predicted["text"], by_stream)


def _video_tokens(model: Any, batch: TrainingBatch) -> int:
    """Total number of tokens of a sample's latent streams."""
    shape = next(iter(batch.clean.values())).shape[2:]
    return len(batch.clean) * math.prod(size // part for size, part in zip(shape, model.patch, strict=True))
