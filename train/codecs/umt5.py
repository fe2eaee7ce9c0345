"""Text codec of Wan: the umT5 encoder from transformers."""

import html
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np

from openuni.manifests.contracts.checkpoint import Checkpoint, published_or_path
from openuni.manifests.contracts.inference import float32_arithmetic
from openuni.training.codec import TextCodec


class Loaded(NamedTuple):
    """Result of `Umt5.load`."""

    tokenizer: Any
    encoder: Any


@dataclass(frozen=True)
class Umt5(TextCodec):
    """Last hidden states of the encoder without padding (the end token is included).

    Text is cleaned as in diffusers' Wan pipeline: mojibake repaired, HTML entities resolved, whitespace collapsed.
    """

    gpus: ClassVar[float] = 1.0
    origin: ClassVar[str] = "UniMax (Chung et al., 2023), transformers UMT5EncoderModel"

    checkpoint: Annotated[str, "hub name or folder of the encoder, or of a pipeline that contains `text_encoder/`"] = (
        "google/umt5-xxl"
    )
    max_tokens: Annotated[int, "maximum length of a text in tokens; longer text is truncated"] = 512
    dtype: Annotated[Literal["float32", "bfloat16"], "dtype of weights and arithmetic"] = "bfloat16"

    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """The encoder's weights and its tokenizer."""
        return (published_or_path(self.checkpoint, self.published()),)

    @classmethod
    def published(cls) -> tuple[Checkpoint, ...]:
        """The encoder that Wan uses."""
        return (Checkpoint("google/umt5-xxl", "hub", "Apache-2.0"),)

    def load(self, device: str) -> Loaded:
        """Tokenizer and frozen encoder on `device`."""
        import torch
        from transformers import AutoTokenizer, UMT5EncoderModel

        root = self.checkpoints()[0].resolve()
        encoder: Any = UMT5EncoderModel.from_pretrained(_part(root, "text_encoder"), dtype=getattr(torch, self.dtype))
        tokenizer = AutoTokenizer.from_pretrained(_part(root, "tokenizer"))
        return Loaded(tokenizer, encoder.eval().requires_grad_(False).to(device))

    def encode(self, model: Loaded, text: str) -> np.ndarray:
        """Text of any length -> float32 [L, D], 1 <= L <= max_tokens."""
        import torch

        tokens = model.tokenizer(
            [cleaned(text)], truncation=True, max_length=self.max_tokens, add_special_tokens=True, return_tensors="pt"
        )
        with torch.no_grad(), float32_arithmetic("ieee", "ieee"):
            hidden = model.encoder(
                tokens.input_ids.to(model.encoder.device), tokens.attention_mask.to(model.encoder.device)
            ).last_hidden_state
        return hidden[0].float().cpu().numpy()


def cleaned(text: str) -> str:
    """Text with encodings repaired, HTML entities resolved and whitespace collapsed."""
    import ftfy  # a dependency of open-clip-torch

    return re.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(text)))).strip()


def _part(root: Path, name: str) -> str:
    return str(root / name if (root / name).is_dir() else root)
