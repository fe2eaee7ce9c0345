"""How a model that makes text is trained: what it is told and what it shall say, and the loss of its text stream.

After Uni-ViGU (arXiv 2604.08121): Knowledge Recall, where the text to make is the prompt the model is told, and
Capability Refinement, where it is told a brief prompt and makes a detailed caption.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch

from manifests.errors import OpenUniError
from train.discrete_flow import cross_entropy, generalised_kl

Stage = Literal["recall", "refinement"]
TextLoss = Literal["cross_entropy", "generalised_kl"]
BRIEF_TOKENS = (0, 128)  # of the prompt in refinement, least and most
DETAILED_TOKENS = (128, 256)  # of the caption


class Texts(NamedTuple):
    """The texts of one sample."""

    condition: str  # what the network is told; empty where it was dropped
    target: str  # what its text stream shall become


def stage_texts(stage: Stage, brief: str, detailed: str, draw: float, condition_dropout: float) -> Texts:
    """The texts of a sample in a stage. `draw`: a uniform number in [0, 1), below `condition_dropout` to drop.

    "recall" knows one text, `brief`, and ignores `detailed`. With no condition left, the text can only come from the
    video: that is what makes describing possible at all.
    """
    target = brief if stage == "recall" else detailed
    return Texts("" if draw < condition_dropout else brief, target)


def fits_refinement(brief_tokens: int, detailed_tokens: int) -> bool:
    """Whether a clip's two captions have the lengths of Capability Refinement, in tokens without the end."""
    return BRIEF_TOKENS[0] <= brief_tokens <= BRIEF_TOKENS[1] and (
        DETAILED_TOKENS[0] <= detailed_tokens <= DETAILED_TOKENS[1]
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

    `predicted`: of `train.model.TextModel`. The velocity's target lets no gradient into the embeddings, which learn
    through the logits and through what the network sees.
    """
    error = (predicted["text_velocity"].float() - (noise - embedded.detach()).float()).square().mean((1, 2))
    return error + cross_entropy(predicted["text"], clean).mean(1)
