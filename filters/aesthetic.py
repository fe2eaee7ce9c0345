"""How pleasing a clip looks, by LAION's aesthetic predictor."""

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
WIDTHS = {0: (768, 1024), 2: (1024, 128), 4: (128, 64), 6: (64, 16), 7: (16, 1)}  # between them, dropouts in training
LENGTH_TOLERANCE = 1e-3


class Scores(NamedTuple):
    """Aesthetic scores of the sampled frames."""

    mean: Annotated[float | None, "mean score, about 1 (ugly) to 10 (beautiful); photographs lie around 5"]
    min: Annotated[float | None, "score of the worst sampled frame, about 1 to 10"]


@dataclass(frozen=True)
class Aesthetic(ClipFilter):
    """LAION's improved aesthetic predictor: a linear head over CLIP ViT-L/14 embeddings of length 1.

    The scores are what people gave to photographs and generated pictures (SAC, LAION-Logos, AVA), 1 to 10. Curators
    keep clips above 4 to 5. The head was trained on OpenAI's ViT-L/14 with its QuickGELU: with GELU in its place scores
    shift by half a point, and with embeddings that are not of length 1 they mean nothing, so both are refused.
    """

    head: Annotated[str, "Hugging Face name, folder or .safetensors file of the predictor's five linear layers"] = HEAD

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
        """The shared network and the head. Raises `OpenUniError` for other kinds of either."""
        embedder = ClipFilter.load(self, device)
        if not embedder.quick_gelu or embedder.width != WIDTHS[0][0]:
            found = f"{embedder.width} numbers per embedding, {'' if embedder.quick_gelu else 'no '}QuickGELU"
            raise OpenUniError(
                f"aesthetic: {self.checkpoint} has {found}. Allowed: what the head was trained with, {WIDTHS[0][0]} "
                "numbers and QuickGELU. Give OpenAI's ViT-L/14 (in open_clip: ViT-L-14-quickgelu)."
            )
        return embedder, load_head(self.checkpoints()[1].resolve()).to(device)

    def run(self, model: Any, clip: DecodedClip) -> Scores:
        """Mean and least score of the frames given; null where there are none."""
        if not len(clip.frames):
            return Scores(None, None)
        embedder, head = model
        scores = score(head, self.embed(embedder, clip.frames))
        return Scores(float(scores.mean()), float(scores.min()))


def score(head: Any, embeddings: np.ndarray) -> np.ndarray:
    """Aesthetic scores, float64 [N], of float32 [N, 768] CLIP embeddings of length 1.

    Raises `OpenUniError` for embeddings of any other length: the head would give them scores of 20 and more.
    """
    import torch

    lengths = np.linalg.norm(embeddings, axis=1)
    if not np.allclose(lengths, 1, rtol=0, atol=LENGTH_TOLERANCE):
        worst = lengths[np.argmax(np.abs(lengths - 1))]
        raise OpenUniError(
            f"aesthetic: an embedding has length {worst:.4g}. Allowed: 1 within {LENGTH_TOLERANCE}. Divide embeddings "
            "by their length (L2 norm) first."
        )
    with torch.inference_mode():
        given = torch.from_numpy(embeddings).to(head[0].weight)
        scores: np.ndarray = head(given)[:, 0].double().cpu().numpy()
    return scores


def load_head(path: Path) -> Any:
    """The predictor's layers in float32. Between them stands nothing: the published weights have no activations.

    Raises `OpenUniError` when the file has other layers.
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
        raise OpenUniError(f"{file} is not a safetensors file: {error}. Give one such as {HEAD}") from error
    if {name: tuple(value.shape) for name, value in weights.items()} != shapes:
        raise OpenUniError(
            f"{file} is not the aesthetic predictor for CLIP ViT-L/14: its layers are other than 768-1024-128-64-16-1. "
            f"Give one such as {HEAD}"
        )
    head = torch.nn.Sequential(*(torch.nn.Linear(narrow, wide) for narrow, wide in WIDTHS.values()))
    for layer, place in zip(head, WIDTHS, strict=True):
        layer.load_state_dict({"weight": weights[f"layers.{place}.weight"], "bias": weights[f"layers.{place}.bias"]})
    return head.eval().requires_grad_(False)
