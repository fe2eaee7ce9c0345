"""The text stream of a batch: named random draws, noising, and the loss.

After Uni-ViGU (arXiv 2604.08121). The recipe's `text.stage` selects the texts (`train/data/captions.py`): in Knowledge
Recall the target text is the prompt itself; in Capability Refinement the prompt is a brief caption and the target a
detailed one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch

from openuni.manifests.errors import OpenUniError
from openuni.training.data.tokenizer import Tokenizer
from openuni.training.objectives.discrete_flow_matching import (
    add_token_noise,
    cross_entropy,
    generalised_kl,
    source_tokens,
)
from openuni.training.objectives.flow_matching import add_noise
from openuni.training.randomness import Name, normal, uniforms
from openuni.training.recipe import TextStreamOptions

TextLoss = Literal["cross_entropy", "generalised_kl"]


@dataclass(frozen=True, eq=False)
class TextBatch:
    """The text stream of B samples. L: number of tokens, D: width of the embeddings."""

    clean: torch.Tensor  # int64 [B, L]
    start: torch.Tensor  # at sigma 1: source tokens int64 [B, L], or noise float32 [B, L, D] for embeddings
    draws: torch.Tensor  # float32 [B, L] in [0, 1): a token is clean if its draw is below kappa
    sigma: torch.Tensor  # float32 [B]; exactly 0 where the text is a condition
    is_target: torch.Tensor  # bool [B]

    def to(self, device: torch.device) -> "TextBatch":
        """The same batch on another device."""
        return TextBatch(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))

    def noisy(self, model: Any, degree: float) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Inputs of a `TextModel`, tokens int64 [B, L] or embeddings [B, L, D]; and the clean embeddings.

        The second is None under discrete flow matching.
        """
        if model.text_flow == "tokens":
            return add_token_noise(self.clean, self.start, self.draws, self.sigma, degree), None
        embedded = model.embedded(self.clean)
        return add_noise(embedded, self.start, self.sigma), embedded

    def losses(
        self,
        predicted: Mapping[str, torch.Tensor],
        noisy: torch.Tensor,
        embedded: torch.Tensor | None,
        options: TextStreamOptions,
    ) -> torch.Tensor:
        """Mean loss per token, float32 [B]; 0 where the text is a condition. `noisy`, `embedded`: see `noisy`."""
        if embedded is not None:
            losses = embedding_losses(predicted, embedded, self.start, self.clean)
        else:
            losses = token_losses(predicted["text"], noisy, self.clean, self.sigma, options.loss, options.degree)
        return torch.where(self.is_target, losses, 0.0)

    def accuracy(self, logits: torch.Tensor, end: int) -> torch.Tensor:
        """Fraction of correctly predicted tokens up to and including the first end token, float32 [B]."""
        filling = (self.clean == end).cumsum(1) > 1
        right = (logits.argmax(-1) == self.clean) & ~filling
        return right.sum(1) / (~filling).sum(1)


@dataclass(frozen=True)
class TextSampler:
    """Draws text streams; all draws are functions of the seed and the sample's name."""

    tokenizer: Tokenizer
    options: TextStreamOptions
    width: int  # of the embeddings under continuous flow matching; 0 under discrete flow matching
    seed: int

    def start(self, *name: Name) -> torch.Tensor:
        """Text at sigma 1: source tokens int64 [L], or noise float32 [L, width].

        The uniform source excludes the mask token.
        """
        if self.width:
            return normal((self.options.length, self.width), self.seed, "noise", *name, "text")
        mask = self.tokenizer.vocabulary - 1
        return source_tokens((self.options.length,), self.options.source, mask, mask, self.seed, *name)

    def draw_batch(
        self, texts: Sequence[str], sigmas: Sequence[float], targets: Sequence[bool], names: Sequence[tuple[Name, ...]]
    ) -> TextBatch:
        """The text stream of the samples with these names; row i depends only on its text, sigma and name."""
        length = self.options.length
        return TextBatch(
            clean=torch.stack([self.tokenizer.encode(text, length) for text in texts]),
            start=torch.stack([self.start(*name) for name in names]),
            draws=torch.stack([uniforms((length,), self.seed, "kept", *name) for name in names]),
            sigma=torch.tensor(list(sigmas), dtype=torch.float32),
            is_target=torch.tensor(list(targets)),
        )


def text_weight(video_tokens: int, text_tokens: int) -> float:
    """Weight of the text loss relative to the video loss: the ratio of their token counts."""
    if video_tokens < 1 or text_tokens < 1:
        raise OpenUniError(
            f"text weight: video and text must each have at least 1 token, got {video_tokens} and {text_tokens}"
        )
    return video_tokens / text_tokens


def token_losses(
    logits: torch.Tensor,
    noisy: torch.Tensor,
    clean: torch.Tensor,
    sigma: torch.Tensor,
    loss: TextLoss = "cross_entropy",
    degree: float = 1.0,
) -> torch.Tensor:
    """Discrete flow matching loss, float32 [B]: mean over all positions, including the padding of end tokens.

    The padding teaches the model the length of the text.
    """
    if loss == "cross_entropy":
        return cross_entropy(logits, clean).mean(1)
    return generalised_kl(logits, noisy, clean, sigma, degree).mean(1)


def embedding_losses(
    predicted: Mapping[str, torch.Tensor], embedded: torch.Tensor, noise: torch.Tensor, clean: torch.Tensor
) -> torch.Tensor:
    """Continuous flow matching loss of embeddings [B, L, D], float32 [B]: velocity error plus cross-entropy.

    `predicted`: output of a `TextModel`. The velocity target is detached, so the embeddings are trained only through
    the logits and the network's input.
    """
    error = (predicted["text_velocity"].float() - (noise - embedded.detach()).float()).square().mean((1, 2))
    return error + cross_entropy(predicted["text"], clean).mean(1)
