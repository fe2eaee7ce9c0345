"""Aesthetic quality by LAION's aesthetic predictor."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np

from openuni.filters._clip import ClipFilter, Embedder
from openuni.manifests.contracts.checkpoint import Checkpoint, published_or_path
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.errors import OpenUniError

HEAD = "ttj/sac-logos-ava1-l14-linearMSE"
HEAD_WEIGHTS = "model.safetensors"
WIDTHS = {0: (768, 1024), 2: (1024, 128), 4: (128, 64), 6: (64, 16), 7: (16, 1)}  # the other indices are dropout layers
LENGTH_TOLERANCE = 1e-3


class Scores(NamedTuple):
    """Aesthetic scores of the sampled frames."""

    mean: Annotated[float | None, "mean score, about 1 (low) to 10 (high); photographs are around 5"]
    min: Annotated[float | None, "minimum score over the sampled frames, about 1 to 10"]


@dataclass(frozen=True)
class Aesthetic(ClipFilter):
    """LAION's improved aesthetic predictor: a linear head over L2-normalized CLIP ViT-L/14 embeddings.

    Trained on human ratings (1 to 10) of photographs and generated images (SAC, LAION-Logos, AVA). Typical thresholds
    in curation pipelines are 4 to 5. The head was trained on OpenAI's ViT-L/14 with QuickGELU. With GELU, scores shift
    by half a point, and without L2 normalization they are meaningless; both are rejected.
    """

    head: Annotated[str, "the predictor's five linear layers: Hugging Face name, folder or .safetensors file"] = HEAD

    licence: ClassVar[str] = "Apache-2.0"
    origin: ClassVar[str] = "christophschuhmann/improved-aesthetic-predictor, sac+logos+ava1-l14-linearMSE; open_clip"

    @classmethod
    def published(cls) -> Sequence[Checkpoint]:
        """CLIP and the head."""
        head = Checkpoint(HEAD, "hub", "Apache-2.0", size_mb=3.7, only=(HEAD_WEIGHTS,))
        return (*ClipFilter.published(), head)

    def checkpoints(self) -> Sequence[Checkpoint]:
        """CLIP and the head."""
        return (*ClipFilter.checkpoints(self), published_or_path(self.head, tuple(self.published())))

    def load(self, device: str) -> tuple[Embedder, Any]:
        """Load the shared CLIP network and the head. Raises `OpenUniError` for incompatible ones."""
        embedder = ClipFilter.load(self, device)
        if not embedder.quick_gelu or embedder.width != WIDTHS[0][0]:
            found = f"{embedder.width} dimensions, {'' if embedder.quick_gelu else 'no '}QuickGELU"
            raise OpenUniError(
                f"aesthetic: {self.checkpoint} has {found}. Allowed: {WIDTHS[0][0]} dimensions and QuickGELU, as in "
                "the head's training. Use OpenAI's ViT-L/14 (in open_clip: ViT-L-14-quickgelu)."
            )
        return embedder, load_head(self.checkpoints()[1].resolve()).to(device)

    def run(self, model: Any, clip: DecodedClip) -> Scores:
        """Mean and minimum score of the frames; null without frames."""
        if not len(clip.frames):
            return Scores(None, None)
        embedder, head = model
        scores = score(head, self.embed(embedder, clip.frames))
        return Scores(float(scores.mean()), float(scores.min()))


def score(head: Any, embeddings: np.ndarray) -> np.ndarray:
    """Aesthetic scores float64 [N] of L2-normalized CLIP embeddings float32 [N, 768].

    Raises `OpenUniError` for other lengths, for which the head would return scores of 20 and more.
    """
    import torch

    lengths = np.linalg.norm(embeddings, axis=1)
    if not np.allclose(lengths, 1, rtol=0, atol=LENGTH_TOLERANCE):
        worst = lengths[np.argmax(np.abs(lengths - 1))]
        raise OpenUniError(
            f"aesthetic: an embedding has length {worst:.4g}. Allowed: 1 within {LENGTH_TOLERANCE}. Apply L2 "
            "normalization first."
        )
    with torch.inference_mode():
        given = torch.from_numpy(embeddings).to(head[0].weight)
        scores: np.ndarray = head(given)[:, 0].double().cpu().numpy()
    return scores


def load_head(path: Path) -> Any:
    """Load the predictor's layers in float32. The published model has no activations between them.

    Raises `OpenUniError` for a file with other layers.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = path / HEAD_WEIGHTS if path.is_dir() else path
    shapes: dict[str, tuple[int, ...]] = {}
    for place, (narrow, wide) in WIDTHS.items():
        shapes |= {f"layers.{place}.weight": (wide, narrow), f"layers.{place}.bias": (wide,)}
    try:
        weights = load_file(file)
    except (OSError, SafetensorError) as error:
        raise OpenUniError(f"{file} is not a safetensors file: {error}. Use a head such as {HEAD}") from error
    if {name: tuple(value.shape) for name, value in weights.items()} != shapes:
        raise OpenUniError(
            f"{file} is not the aesthetic predictor for CLIP ViT-L/14: its layers are not 768-1024-128-64-16-1. Use a "
            f"head such as {HEAD}"
        )
    head = torch.nn.Sequential(*(torch.nn.Linear(narrow, wide) for narrow, wide in WIDTHS.values()))
    for layer, place in zip(head, WIDTHS, strict=True):
        layer.load_state_dict({"weight": weights[f"layers.{place}.weight"], "bias": weights[f"layers.{place}.bias"]})
    return head.eval().requires_grad_(False)
