"""Uni-ViGU on diffusers' Wan transformer: video and text tokens in one sequence, an FFN expert for each."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge
from torch import nn

from openuni.manifests.errors import OpenUniError
from openuni.training.backbone.wan import Rotary, WanBlock, WanModel, WanStreams, build_module
from openuni.training.model import Streams, TextCondition
from openuni.training.tasks import TEXT, Task

TextFlow = Literal["tokens", "embeddings"]
Tokens = tuple[torch.Tensor, ...]  # video [B, S, D], and text [B, L, D] where there is one


@dataclass(frozen=True)
class UniVigu(WanModel):
    """One video stream, rgb, and the caption as a second one that can be made.

    Video and text tokens share self-attention, cross-attention to the condition, and the modulation table of each
    block; the text has its own FFN in every block, its own time embedding and its own head. Without text, the model is
    at the start the pretrained one, bit for bit. With it, the video attends to text tokens that the base model never
    had, so it is not; the logits of the text are 0 at the start.
    """

    origin: ClassVar[str] = "Uni-ViGU (arXiv 2604.08121)"
    generates_text: ClassVar[bool] = True
    supported_modalities: ClassVar[tuple[str, ...]] = ("rgb",)

    modalities: Annotated[tuple[str, ...], "only rgb"] = ("rgb",)
    vocabulary: Annotated[int, "token values, the mask included: those of the tokenizer", Ge(2)] = 258
    text_flow: Annotated[
        TextFlow, "tokens: discrete flow, the network gives logits; embeddings: continuous flow, a velocity and logits"
    ] = "tokens"
    given_text: Annotated[
        bool, "to make a video from its caption, have the caption in the text stream too, clean, as published"
    ] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.modalities != ("rgb",):
            raise OpenUniError(
                f'univigu has one stream of latents, rgb; got {list(self.modalities)}. Set model.modalities = ["rgb"]'
            )

    def load(self, device: str) -> "UniViguTransformer":
        """The model on `device` in float32, in training mode."""

        def build() -> UniViguTransformer:
            return UniViguTransformer(self.modalities, self.vocabulary, self.text_flow, **self.base_options())

        module: UniViguTransformer = build_module(build, self, device)
        return module

    def text_condition(self, task: Task, stream: str) -> TextCondition:
        """The condition of both segments: the caption, but nothing where a given video is to be described."""
        return "nothing" if task.generates_text and task.conditions else "caption"

    def has_text_stream(self, task: Task) -> bool:
        """Where text is made; and where it is given, with `given_text`."""
        return task.generates_text or self.given_text

    @property
    def text_width(self) -> int:
        """See `Model.text_width`."""
        options = self.base_options()
        width: int = options["num_attention_heads"] * options["attention_head_dim"]
        return width if self.text_flow == "embeddings" else 0


class UniViguBlock(WanBlock):
    """Wan's block over a video and, where there is one, a text segment. Base names and order of operations are kept."""

    def __init__(self, *base: Any, **base_options: Any) -> None:
        super().__init__(*base, **base_options)
        self.ffn_text = copy.deepcopy(self.ffn)
        self.norm3_text = copy.deepcopy(self.norm3)  # has no parameters in Wan

    def forward(self, segments: Tokens, text: torch.Tensor, tables: Tokens, *rotary: torch.Tensor) -> Tokens:
        """Segments -> the same shapes. `text` [B, L, D]: the condition, embedded; `tables` [B, 6, D] per segment."""
        modulations = [(self.scale_shift_table + table.float()).chunk(6, dim=1) for table in tables]
        lengths = [tokens.shape[1] for tokens in segments]

        # both segments attend to one another
        normed = _joined(
            [
                _modulated(self.norm1, tokens, shift, scale)
                for tokens, (shift, scale, *_) in zip(segments, modulations, strict=True)
            ]
        )
        mixed = self.attn1(normed, None, None, rotary).split(lengths, dim=1)
        segments = tuple(
            (tokens.float() + change * modulation[2]).type_as(tokens)
            for tokens, change, modulation in zip(segments, mixed, modulations, strict=True)
        )

        # both attend to the condition
        whole = _joined(segments)
        normed = self.norm2(whole.float()).type_as(whole)
        segments = (whole + self.attn2(normed, text, None, None)).split(lengths, dim=1)

        experts = ((self.norm3, self.ffn), (self.norm3_text, self.ffn_text))
        return tuple(
            (tokens.float() + ffn(_modulated(norm, tokens, shift, scale)).float() * gate).type_as(tokens)
            for tokens, (norm, ffn), (*_, shift, scale, gate) in zip(segments, experts, modulations, strict=False)
        )


class TextHead(nn.Module):
    """LayerNorm with a learnt scale, modulation by time, and a linear layer that is zero at the start."""

    def __init__(self, dim: int, out_features: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps, bias=False)
        self.scale_shift_table = nn.Parameter(torch.zeros(1, 2, dim))
        self.proj_out = nn.Linear(dim, out_features)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, tokens: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """Tokens [B, L, D], time [B, D] -> [B, L, out_features]."""
        shift, scale = (self.scale_shift_table + time.unsqueeze(1)).chunk(2, dim=1)
        normed = nn.functional.layer_norm(tokens.float(), tokens.shape[-1:], self.norm.weight, None, self.norm.eps)
        out: torch.Tensor = self.proj_out((normed * (1 + scale) + shift).type_as(tokens))
        return out


class UniViguTransformer(WanStreams):
    """See `UniVigu` and `openuni.training.model.VideoModel`; the stream "text" of `openuni.training.model.TextModel`.

    Additions: `vocabulary_embedding.*`, `text_time_embedder.*`, `text_head.*`, `blocks.*.ffn_text.*`; with
    `text_flow = "embeddings"` also `text_velocity.*` and a `text_head` that reads the estimate of the clean embeddings.
    """

    _no_split_modules: ClassVar[list[str]] = ["UniViguBlock"]
    _repeated_blocks: ClassVar[list[str]] = ["UniViguBlock"]

    def __init__(
        self,
        modalities: Sequence[str] = ("rgb",),
        vocabulary: int = 258,
        text_flow: TextFlow = "tokens",
        num_layers: int = 40,
        **base: Any,
    ) -> None:
        super().__init__(modalities, num_layers, **base)
        self.register_to_config(vocabulary=vocabulary, text_flow=text_flow)
        self.vocabulary, self.text_flow = vocabulary, text_flow
        config, dim = self.config, self.dim
        self.blocks = nn.ModuleList(UniViguBlock(dim, *self.block_sizes) for _ in range(num_layers))
        self.vocabulary_embedding = nn.Embedding(vocabulary, dim)
        self.text_time_embedder = copy.deepcopy(self.condition_embedder.time_embedder)
        self.text_head = TextHead(dim, vocabulary, config.eps)
        if text_flow == "embeddings":
            self.text_velocity = TextHead(dim, dim, config.eps)

    @classmethod
    def is_added(cls, name: str) -> bool:
        """See `WanStreams.is_added`."""
        return name.startswith(("vocabulary_embedding.", "text_")) or ".ffn_text." in name

    @torch.no_grad()
    def after_base(self) -> None:
        """Start the text's FFNs, time embedding and output modulation as copies of the video's."""
        blocks: Any = self.blocks
        for block in blocks:
            block.ffn_text.load_state_dict(block.ffn.state_dict())
        self.text_time_embedder.load_state_dict(self.condition_embedder.time_embedder.state_dict())
        self.text_head.scale_shift_table.copy_(self.scale_shift_table)
        if self.text_flow == "embeddings":
            self.text_velocity.scale_shift_table.copy_(self.scale_shift_table)

    def embedded(self, tokens: torch.Tensor) -> torch.Tensor:
        """Token values int64 [B, L] -> clean embeddings float32 [B, L, D], each of mean square 1.

        The scale is fixed because a velocity loss alone would shrink learnt embeddings to nothing.
        """
        rows = self.vocabulary_embedding(tokens).float()
        return rows * rows.square().mean(-1, keepdim=True).clamp(min=1e-12).rsqrt()

    def forward(self, streams: Streams, sigmas: dict[str, torch.Tensor], text: dict[str, torch.Tensor]) -> Streams:
        """Velocity of rgb [B, C, T, H, W]; where `streams` has "text", also what `TextModel` of training.model says.

        `text["rgb"]` is the condition of both segments.
        """
        video = {name: tensor for name, tensor in streams.items() if name != TEXT}
        if not video:
            raise OpenUniError(f"univigu: streams must have rgb, got {sorted(streams)}")
        self.check_streams(video)
        grid = self.grid(video["rgb"])
        told = self.embed_conditioning([sigmas["rgb"]], [text["rgb"]])
        segments: Tokens = (self.embed(video["rgb"]),)
        tables: Tokens = (told.table[:, 0],)
        rotary = self.rotary(grid)
        if TEXT not in streams:
            (tokens,) = self.through_blocks(segments, told.text, tables, *rotary)
            return {"rgb": self.unembed(tokens, told.time[:, 0], grid)}
        time, table = self._text_time(sigmas[TEXT])
        segments = (*segments, self._text_tokens(streams[TEXT]).to(segments[0]))
        cosines, sines = self.text_rotary(segments[1].shape[1])
        rotary = torch.cat([rotary[0], cosines], dim=1), torch.cat([rotary[1], sines], dim=1)
        tokens, words = self.through_blocks(segments, told.text, (*tables, table), *rotary)
        return {"rgb": self.unembed(tokens, told.time[:, 0], grid)} | self._text_out(words, time, streams, sigmas)

    def text_rotary(self, length: int) -> Rotary:
        """1-D RoPE of positions 0..length - 1 over all channels of a head, base 10000, pairs as in Wan's tables."""
        width = self.config.attention_head_dim
        device = self.rope.freqs_cos.device
        rates = 10000.0 ** -(torch.arange(0, width, 2, dtype=torch.float64, device=device) / width)
        angles = torch.arange(length, dtype=torch.float64, device=device)[:, None] * rates
        cosines, sines = (
            table.float().repeat_interleave(2, dim=1)[None, :, None] for table in (angles.cos(), angles.sin())
        )
        return cosines, sines

    def _text_time(self, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[B] -> the embedding of the text's sigma [B, D] and the modulation from it [B, 6, D]."""
        return self.embed_time(sigma, self.text_time_embedder)

    def _text_tokens(self, given: torch.Tensor) -> torch.Tensor:
        """What stands in the sequence for the text, [B, L, D]."""
        if given.is_floating_point():
            if self.text_flow == "tokens" or given.ndim != 3 or given.shape[-1] != self.dim:
                raise OpenUniError(
                    f"univigu ({self.text_flow}): text must be token values int64 [B, L], or under embeddings float "
                    f"[B, L, {self.dim}]; got {given.dtype} {list(given.shape)}"
                )
            return given
        if given.ndim != 2 or (given.numel() and (given.min() < 0 or given.max() >= self.vocabulary)):
            raise OpenUniError(
                f"univigu: text must be token values [B, L] in 0..{self.vocabulary - 1}, got {list(given.shape)} with "
                f"values up to {int(given.max())}"
            )
        return self.embedded(given) if self.text_flow == "embeddings" else self.vocabulary_embedding(given)

    def _text_out(
        self, words: torch.Tensor, time: torch.Tensor, streams: Streams, sigmas: dict[str, torch.Tensor]
    ) -> Streams:
        if self.text_flow == "tokens":
            return {TEXT: self.text_head(words, time)}
        velocity = self.text_velocity(words, time).float()
        noisy = self._text_tokens(streams[TEXT]).float()
        clean = noisy - sigmas[TEXT].to(noisy)[:, None, None] * velocity
        return {"text_velocity": velocity, TEXT: self.text_head(clean.type_as(words), time)}


def _modulated(norm: nn.Module, tokens: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    normed: torch.Tensor = norm(tokens.float()) * (1 + scale) + shift
    return normed.type_as(tokens)


def _joined(segments: Sequence[torch.Tensor]) -> torch.Tensor:
    return segments[0] if len(segments) == 1 else torch.cat(list(segments), dim=1)
