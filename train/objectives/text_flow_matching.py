"""The text stream of a batch: drawn by name, noised for the model, and its loss.

After Uni-ViGU (arXiv 2604.08121). Which texts these are is up to the recipe's stage (`train/data/captions.py`):
Knowledge Recall, where the text to make is the prompt that the model is told, and Capability Refinement, where it is
told a brief prompt and makes a detailed caption.
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
    """The text stream of B samples. L: length of the texts, D: width of the embeddings."""

    clean: torch.Tensor  # int64 [B, L]
    start: torch.Tensor  # at sigma 1: source tokens int64 [B, L], or noise float32 [B, L, D] where embeddings flow
    draws: torch.Tensor  # float32 [B, L] in [0, 1): a token is clean while its draw is below kappa
    sigma: torch.Tensor  # float32 [B]; 0 exactly where the text is given
    is_target: torch.Tensor  # bool [B]

    def to(self, device: torch.device) -> "TextBatch":
        """The same on another device."""
        return TextBatch(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))

    def noisy(self, model: Any, degree: float) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What a `TextModel` sees, tokens int64 [B, L] or embeddings [B, L, D]; and the clean embeddings.

        Without a flow of embeddings the second is None.
        """
        if model.text_flow == "tokens":
            return add_token_noise(self.clean, self.start, self.draws, self.sigma, degree), None
        embedded = model.embedded(self.clean)
        return add_noise(embedded, self.start, self.sigma), embedded

    def losses(
        self,
        predicted: Mapping[str, torch.Tensor],
        seen: torch.Tensor,
        embedded: torch.Tensor | None,
        options: TextStreamOptions,
    ) -> torch.Tensor:
        """float32 [B], per token; 0 where the text is given. `seen`, `embedded`: as from `noisy`."""
        if embedded is not None:
            losses = embedding_losses(predicted, embedded, self.start, self.clean)
        else:
            losses = token_losses(predicted["text"], seen, self.clean, self.sigma, options.loss, options.degree)
        return torch.where(self.is_target, losses, 0.0)

    def accuracy(self, logits: torch.Tensor, end: int) -> torch.Tensor:
        """float32 [B]: share of a text's tokens, its first end among them, of which the likeliest value is right."""
        filling = (self.clean == end).cumsum(1) > 1
        right = (logits.argmax(-1) == self.clean) & ~filling
        return right.sum(1) / (~filling).sum(1)


@dataclass(frozen=True)
class TextSampler:
    """Makes text streams; all that is drawn is a function of the seed and of the sample's name."""

    tokenizer: Tokenizer
    options: TextStreamOptions
    width: int  # of the embeddings that flow; 0 where tokens do
    seed: int

    def start(self, *name: Name) -> torch.Tensor:
        """A text at sigma 1: source tokens int64 [L], or noise float32 [L, width].

        The mask is no token of the uniform source.
        """
        if self.width:
            return normal((self.options.length, self.width), self.seed, "noise", *name, "text")
        mask = self.tokenizer.vocabulary - 1
        return source_tokens((self.options.length,), self.options.source, mask, mask, self.seed, *name)

    def draw_batch(
        self, texts: Sequence[str], sigmas: Sequence[float], made: Sequence[bool], names: Sequence[tuple[Name, ...]]
    ) -> TextBatch:
        """The text stream of samples called `names`; row i depends on its own text, sigma and name only."""
        length = self.options.length
        return TextBatch(
            clean=torch.stack([self.tokenizer.encode(text, length) for text in texts]),
            start=torch.stack([self.start(*name) for name in names]),
            draws=torch.stack([uniforms((length,), self.seed, "kept", *name) for name in names]),
            sigma=torch.tensor(list(sigmas), dtype=torch.float32),
            is_target=torch.tensor(list(made)),
        )


def text_weight(video_tokens: int, text_tokens: int) -> float:
    """Weight of the text's mean loss against the video's: the ratio of their numbers of tokens."""
    if video_tokens < 1 or text_tokens < 1:
        raise OpenUniError(f"a text weight needs video and text tokens, got {video_tokens} and {text_tokens}")
    return video_tokens / text_tokens


def token_losses(
    logits: torch.Tensor,
    noisy: torch.Tensor,
    clean: torch.Tensor,
    sigma: torch.Tensor,
    loss: TextLoss = "cross_entropy",
    degree: float = 1.0,
) -> torch.Tensor:
    """Discrete flow: the mean over all positions, the filling ends too (so the length is learnt), float32 [B]."""
    if loss == "cross_entropy":
        return cross_entropy(logits, clean).mean(1)
    return generalised_kl(logits, noisy, clean, sigma, degree).mean(1)


def embedding_losses(
    predicted: Mapping[str, torch.Tensor], embedded: torch.Tensor, noise: torch.Tensor, clean: torch.Tensor
) -> torch.Tensor:
    """Continuous flow over embeddings [B, L, D]: mean squared error of the velocity plus cross-entropy, float32 [B].

    `predicted`: of a `TextModel`. The velocity's target lets no gradient into the embeddings, which learn
    through the logits and through what the network sees.
    """
    error = (predicted["text_velocity"].float() - (noise - embedded.detach()).float()).square().mean((1, 2))
    return error + cross_entropy(predicted["text"], clean).mean(1)
