"""What is minimised: the losses of a batch, of its streams of latents and of its text."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from openuni.training.data.batches import TrainingBatch
from openuni.training.objectives.flow_matching import loss_weight, stream_losses, velocity
from openuni.training.objectives.text_flow_matching import text_weight
from openuni.training.recipe import TrainingRecipe
from openuni.training.tasks import Task


class Losses(NamedTuple):
    """Per sample, float32 [B]."""

    total: torch.Tensor  # video + weight times text
    video: torch.Tensor  # summed over the made streams of latents; 0 where there is none
    text: torch.Tensor | None  # per token; 0 where it is given; None without a text stream
    logits: torch.Tensor | None  # [B, L, vocabulary], of the text

    def split_by_target(self, tasks: Sequence[Task]) -> dict[str, list[float]]:
        """By "video" and "text" the losses of the samples that make it; nothing where there is no text stream."""
        if self.text is None:
            return {}
        video = [loss for loss, task in zip(self.video.tolist(), tasks, strict=True) if task.targets]
        text = [loss for loss, task in zip(self.text.tolist(), tasks, strict=True) if task.generates_text]
        return {name: losses for name, losses in (("video", video), ("text", text)) if losses}


def compute_losses(
    model: Any, batch: TrainingBatch, recipe: TrainingRecipe, autocast: torch.autocast, *, weighted: bool = True
) -> Losses:
    """One forward pass. `weighted`: by noise level, as `flow.weighting` says; the text never is."""
    target = {name: velocity(batch.clean[name], batch.noise[name]) for name in batch.clean}
    streams, sigmas, words = batch.noisy(), batch.sigmas, batch.text_stream
    embedded = None
    with autocast:
        if words is not None:
            seen, embedded = words.noisy(model, recipe.text.degree)
            streams, sigmas = streams | {"text": seen}, sigmas | {"text": words.sigma}
        predicted = model(streams, sigmas, batch.text)
    weights = None
    if weighted:
        weights = {name: loss_weight(sigma, recipe.flow_matching.weighting) for name, sigma in batch.sigmas.items()}
    video = stream_losses(predicted, target, batch.targets, weights)
    if words is None:
        return Losses(video, video, None, None)
    text = words.losses(predicted, streams["text"], embedded, recipe.text)
    ratio = recipe.text.weight or text_weight(_video_tokens(model, batch), words.clean.shape[1])
    return Losses(video + ratio * text, video, text, predicted["text"])


def _video_tokens(model: Any, batch: TrainingBatch) -> int:
    """Tokens of a sample's streams of latents, all together."""
    shape = next(iter(batch.clean.values())).shape[2:]
    return len(batch.clean) * math.prod(size // part for size, part in zip(shape, model.patch, strict=True))
