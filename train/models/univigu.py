"""Uni-ViGU on diffusers' Wan transformer: video and text tokens in one sequence, with one FFN expert each.

Differences between paper and released code, and the choices made here, are described in `train/models/README.md`.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt
from torch import nn

from openuni.manifests.contracts.options import Added, Formerly
from openuni.manifests.errors import OpenUniError
from openuni.training.backbone.attention import Rotary
from openuni.training.backbone.wan import WanBlock, WanModel, WanStreams, build_module
from openuni.training.model import Streams, TextCondition, UnrecordedDefault
from openuni.training.tasks import TEXT, Task

TextFlow = Literal["tokens", "embeddings"]
Tokens = tuple[torch.Tensor, ...]  # video [B, S, D], and text [B, L, D] where there is one


@dataclass(frozen=True)
class UniVigu(WanModel):
    """One video stream, rgb, and the caption as a second stream that can be a target.

    Video and text tokens share self-attention, cross-attention to the condition, and the modulation table of each
    block; the text has a separate FFN in every block, time embedding and head. Without a text stream, the initialized
    model reproduces the pretrained model bit for bit. With one it does not, since the video attends to text tokens.
    Text logits are 0 at initialization.
    """

    origin: ClassVar[str] = "Uni-ViGU (arXiv 2604.08121)"
    generates_text: ClassVar[bool] = True
    caption_option: ClassVar[str] = "model.captioning_prompt = true"
    supported_modalities: ClassVar[tuple[str, ...]] = ("rgb",)

    modalities: Annotated[tuple[str, ...], "only rgb"] = ("rgb",)
    vocabulary: Annotated[int, "vocabulary size of the tokenizer, including the mask token", Ge(2)] = 258
    text_flow: Annotated[
        TextFlow, "text objective: tokens (discrete flow matching) or embeddings (continuous flow matching)"
    ] = "tokens"
    text_conditioning: Annotated[
        bool,
        "also feed the clean caption as a text stream when text is a condition, as published",
        Formerly("given_text"),
    ] = True
    captioning_prompt: Annotated[
        bool, "condition captioning (rgb->text) on the prompt, which the caption then refines, as published", Added()
    ] = False
    text_head_eps: Annotated[
        float, "epsilon of the layer norm in the text head; 1e-5 as released", Gt(0), UnrecordedDefault(1e-6)
    ] = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.modalities != ("rgb",):
            raise OpenUniError(
                f'univigu has one stream of latents, rgb; got {list(self.modalities)}. Set model.modalities = ["rgb"]'
            )

    def load(self, device: str) -> "UniViguTransformer":
        """The model on `device` in float32, in training mode."""

        def build() -> UniViguTransformer:
            return UniViguTransformer(
                self.modalities,
                self.vocabulary,
                self.text_flow,
                text_head_eps=self.text_head_eps,
                **self.base_options(),
            )

        module: UniViguTransformer = build_module(build, self, device)
        return module

    def text_condition(self, task: Task, stream: str) -> TextCondition:
        """Text of both segments: the caption, in captioning only with `captioning_prompt`, else the empty one."""
        captions = task.generates_text and bool(task.conditions)
        return "nothing" if captions and not self.captioning_prompt else "caption"

    def has_text_stream(self, task: Task) -> bool:
        """True if text is a target, or a condition with `text_conditioning`."""
        return task.generates_text or self.text_conditioning

    @property
    def text_width(self) -> int:
        """See `Model.text_width`."""
        options = self.base_options()
        width: int = options["num_attention_heads"] * options["attention_head_dim"]
        return width if self.text_flow == "embeddings" else 0


class UniViguBlock(WanBlock):
    """Wan's block over a video segment and an optional text segment, with the base class's parameter names."""

    def __init__(self, *base: Any, **base_options: Any) -> None:
        super().__init__(*base, **base_options)
        self.ffn_text = copy.deepcopy(self.ffn)
        self.norm3_text = copy.deepcopy(self.norm3)  # has no parameters in Wan

    def forward(self, segments: Tokens, text: torch.Tensor, tables: Tokens, *rotary: Any) -> Tokens:
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
    """LayerNorm with a learnt scale, modulation by time, and a zero-initialized linear layer."""

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
    `text_flow = "embeddings"` also `text_velocity.*`; `text_head` then takes the estimate of the clean embeddings.
    """

    _no_split_modules: ClassVar[list[str]] = ["UniViguBlock"]
    _repeated_blocks: ClassVar[list[str]] = ["UniViguBlock"]

    def __init__(
        self,
        modalities: Sequence[str] = ("rgb",),
        vocabulary: int = 258,
        text_flow: TextFlow = "tokens",
        num_layers: int = 40,
        text_head_eps: float = 1e-5,
        **base: Any,
    ) -> None:
        super().__init__(modalities, num_layers, **base)
        self.register_to_config(vocabulary=vocabulary, text_flow=text_flow, text_head_eps=text_head_eps)
        self.vocabulary, self.text_flow = vocabulary, text_flow
        config, dim = self.config, self.dim
        self.blocks = nn.ModuleList(UniViguBlock(dim, *self.block_sizes) for _ in range(num_layers))
        self.vocabulary_embedding = nn.Embedding(vocabulary, dim)
        self.text_time_embedder = copy.deepcopy(self.condition_embedder.time_embedder)
        self.text_head = TextHead(dim, vocabulary, text_head_eps)
        if text_flow == "embeddings":
            self.text_velocity = TextHead(dim, dim, config.eps)

    @classmethod
    def is_added(cls, name: str) -> bool:
        """See `WanStreams.is_added`."""
        return name.startswith(("vocabulary_embedding.", "text_")) or ".ffn_text." in name

    @torch.no_grad()
    def after_base(self) -> None:
        """Initialize the text's FFNs, time embedding and output modulation as copies of the video's."""
        blocks: Any = self.blocks
        for block in blocks:
            block.ffn_text.load_state_dict(block.ffn.state_dict())
        self.text_time_embedder.load_state_dict(self.condition_embedder.time_embedder.state_dict())
        self.text_head.scale_shift_table.copy_(self.scale_shift_table)
        if self.text_flow == "embeddings":
            self.text_velocity.scale_shift_table.copy_(self.scale_shift_table)

    def embedded(self, tokens: torch.Tensor) -> torch.Tensor:
        """Token values int64 [B, L] -> clean embeddings float32 [B, L, D], each of mean square 1.

        The scale is fixed because a velocity loss alone would collapse learnt embeddings to zero.
        """
        rows = self.vocabulary_embedding(tokens).float()
        return rows * rows.square().mean(-1, keepdim=True).clamp(min=1e-12).rsqrt()

    def forward(self, streams: Streams, sigmas: dict[str, torch.Tensor], text: dict[str, torch.Tensor]) -> Streams:
        """Velocity of rgb [B, C, T, H, W]; if `streams` has "text", also the text outputs of a `TextModel`.

        `text["rgb"]` is the condition of both segments.
        """
        video = {name: tensor for name, tensor in streams.items() if name != TEXT}
        if not video:
            raise OpenUniError(f"univigu: streams must include rgb, got {sorted(streams)}")
        self.check_streams(video)
        grid = self.grid(video["rgb"])
        conditioning = self.embed_conditioning([sigmas["rgb"]], [text["rgb"]])
        segments: Tokens = (self.embed(video["rgb"]),)
        tables: Tokens = (conditioning.table[:, 0],)
        rotary = self.rotary(grid)
        if TEXT not in streams:
            (tokens,) = self.through_blocks(segments, conditioning.text, tables, *rotary)
            return {"rgb": self.unembed(tokens, conditioning.time[:, 0], grid)}
        time, table = self._text_time(sigmas[TEXT])
        words = self._text_tokens(streams[TEXT])
        segments = (*segments, self.own_tokens(words.to(segments[0])))
        rotary = _joined_rotary(rotary, self.own_rotary(*self.text_rotary(words.shape[1])))
        tokens, text_tokens = self.through_blocks(segments, conditioning.text, (*tables, table), *rotary)
        return {"rgb": self.unembed(tokens, conditioning.time[:, 0], grid)} | self._text_out(
            text_tokens, time, streams, sigmas
        )

    def text_rotary(self, length: int) -> Rotary:
        """1-D RoPE tables of positions 0..length - 1, base 10000, over all channels of a head, paired as in Wan."""
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

    def _text_tokens(self, values: torch.Tensor) -> torch.Tensor:
        """Input tokens of the text segment, [B, L, D]."""
        if values.is_floating_point():
            if self.text_flow == "tokens" or values.ndim != 3 or values.shape[-1] != self.dim:
                raise OpenUniError(
                    f"univigu ({self.text_flow}): text must be token values int64 [B, L], or for embeddings float "
                    f"[B, L, {self.dim}]; got {values.dtype} {list(values.shape)}"
                )
            return values
        if values.ndim != 2 or (values.numel() and (values.min() < 0 or values.max() >= self.vocabulary)):
            raise OpenUniError(
                f"univigu: text must be token values [B, L] in 0..{self.vocabulary - 1}, got {list(values.shape)} with "
                f"values up to {int(values.max())}"
            )
        return self.embedded(values) if self.text_flow == "embeddings" else self.vocabulary_embedding(values)

    def _text_out(
        self, text_tokens: torch.Tensor, time: torch.Tensor, streams: Streams, sigmas: dict[str, torch.Tensor]
    ) -> Streams:
        length = streams[TEXT].shape[1]
        if self.text_flow == "tokens":
            return {TEXT: self.all_tokens(self.text_head(text_tokens, time), length)}
        velocity = self.text_velocity(text_tokens, time).float()
        noisy = self.own_tokens(self._text_tokens(streams[TEXT])).float()
        clean = noisy - sigmas[TEXT].to(noisy)[:, None, None] * velocity
        logits = self.text_head(clean.type_as(text_tokens), time)
        return {"text_velocity": self.all_tokens(velocity, length), TEXT: self.all_tokens(logits, length)}


def _modulated(norm: nn.Module, tokens: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    normed: torch.Tensor = norm(tokens.float()) * (1 + scale) + shift
    return normed.type_as(tokens)


def _joined_rotary(video: Rotary, text: Rotary) -> Rotary:
    """RoPE tables of both segments, and with a context the tokens of both on each rank."""
    tables = [torch.cat([one, other], dim=1) for one, other in zip(video[:2], text[:2], strict=True)]
    lengths = [tuple(map(sum, zip(video[2], text[2], strict=True)))] if len(video) > 2 else []
    return *tables, *lengths


def _joined(segments: Sequence[torch.Tensor]) -> torch.Tensor:
    return segments[0] if len(segments) == 1 else torch.cat(list(segments), dim=1)
