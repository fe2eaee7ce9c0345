"""Common base of the models: diffusers' Wan transformer with named streams, and loading of pretrained weights."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

import torch
from annotated_types import Ge, MultipleOf
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel, WanTransformerBlock
from torch import nn

from openuni.manifests.contracts.checkpoint import Checkpoint, hub_or_path
from openuni.manifests.contracts.modality import find_modality
from openuni.manifests.errors import OpenUniError, unknown_name
from openuni.training.backbone.attention import (
    Attention,
    Rotary,
    WanProcessor,
    check_attention,
    check_precision,
    use_attention,
)
from openuni.training.backbone.checkpointing import recompute_selectively
from openuni.training.backbone.compilation import COMPILE, Compiler
from openuni.training.backbone.context import Context
from openuni.training.backbone.pretrained import (
    SIZES,
    base_device,
    defer_base_weights,
    plain_config,
    rope_tables,
    weight_shards,
)
from openuni.training.model import Model, Streams

# diffusers sets most attributes of its models from a configuration, which type checkers cannot follow
_Transformer: Any = WanTransformer3DModel
# and a block over several streams is called with more than the base class's
_Block: Any = WanTransformerBlock

POSITIONS = 1024  # RoPE positions per axis in all published models


@dataclass(frozen=True)
class WanModel(Model):
    """Base of models on Wan: options of the backbone."""

    divides_tokens: ClassVar[bool] = True

    modalities: Annotated[tuple[str, ...], "modalities of the model's streams"] = ("rgb", "depth")
    pretrained: Annotated[
        str, "hub name or folder of a diffusers Wan transformer or pipeline; empty: random weights"
    ] = ""
    num_layers: Annotated[
        int, "number of transformer blocks; ignored with pretrained, as are the options from heads to freq_dim", Ge(1)
    ] = 30
    heads: Annotated[int, "number of attention heads", Ge(1)] = 12
    head_dim: Annotated[int, "channels per head", Ge(6), MultipleOf(2)] = 128
    ffn_dim: Annotated[int, "hidden width of the feed-forward layers", Ge(1)] = 8960
    text_dim: Annotated[int, "width of the text embeddings", Ge(1)] = 4096
    channels: Annotated[int, "number of latent channels", Ge(1)] = 16
    patch: Annotated[tuple[int, int, int], "patch size per token: latent frames, rows, columns", Ge(1)] = (1, 2, 2)
    freq_dim: Annotated[int, "width of the sinusoidal embedding of sigma", Ge(2), MultipleOf(2)] = 256
    gradient_checkpointing: Annotated[
        bool | Literal["selective"],
        "recompute blocks in the backward pass: less memory, about a third slower; selective: all but attention",
    ] = False
    attention: Annotated[Attention, "attention kernel; auto: chosen by PyTorch (sdpa)"] = "auto"
    compile: Annotated[Compiler, "torch.compile backend for each block; aot_eager is for debugging only"] = "none"

    def __post_init__(self) -> None:
        # canonical order: initial weights are drawn in it, so the order in a recipe or folder must have no effect
        object.__setattr__(self, "modalities", tuple(sorted(self.modalities, key=lambda name: (name != "rgb", name))))
        object.__setattr__(self, "patch", tuple(self.patch))
        super().__post_init__()
        for name in self.modalities:
            find_modality(name)
        if len(self.patch) != 3:
            raise OpenUniError(f"{self.name()}: patch = {list(self.patch)}. Allowed: frames, rows, columns.")
        if not self.modalities or len(set(self.modalities)) != len(self.modalities):
            raise OpenUniError(f"{self.name()}: modalities must be distinct and at least one, got {self.modalities}")

    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """The pretrained base, if any."""
        return (hub_or_path(self.pretrained),) if self.pretrained else ()

    def resolved(self) -> Self:
        """See `Model.resolved`: sizes of the pretrained configuration as options, without pretrained weights."""
        options = self.base_options()
        sizes = {ours: options[theirs] for ours, theirs in SIZES.items()}
        return dataclasses.replace(self, pretrained="", **sizes)

    def machine_independent(self) -> Self:
        """See `Model.machine_independent`: resets attention, compile and gradient_checkpointing."""
        return dataclasses.replace(self, attention="auto", compile="none", gradient_checkpointing=False)

    def base_options(self) -> dict[str, Any]:
        """Arguments of `WanTransformer3DModel`, from the pretrained configuration or the options."""
        if not self.pretrained:
            sizes = {theirs: getattr(self, ours) for ours, theirs in SIZES.items()}
            return sizes | {"out_channels": self.channels}
        return plain_config(self.folder(), f'{self.name()}: "{self.pretrained}"')

    def max_latent_shape(self, streams: int, streams_on_width: int = 1) -> tuple[int, int, int]:
        """See `Model.max_latent_shape`: where RoPE's tables end.

        `streams_on_width`: number of streams whose positions continue on width.
        """
        frames, rows, columns = self.base_options()["patch_size"]
        return POSITIONS * frames, POSITIONS * rows, POSITIONS // streams_on_width * columns

    def folder(self) -> Path:
        """Folder of the pretrained transformer; for a pipeline its `transformer/`. Raises `OpenUniError` for two."""
        root = self.checkpoints()[0].resolve()
        if (root / "transformer_2").is_dir():
            raise OpenUniError(
                f'{self.name()}: "{self.pretrained}" has two transformers, one for high and one for low noise levels '
                f"(as Wan 2.2 A14B). Pass the folder of one: {root / 'transformer'} or {root / 'transformer_2'}"
            )
        return root / "transformer" if (root / "transformer").is_dir() else root


class WanBlock(_Block):
    """Base of blocks: diffusers' block, on the meta device within `defer_base_weights`, with `WanProcessor`."""

    def __init__(self, *sizes: Any, **options: Any) -> None:
        with base_device():
            super().__init__(*sizes, **options)
        self.attn1.set_processor(WanProcessor())
        self.attn2.set_processor(WanProcessor())


class SegmentConditioning(NamedTuple):
    """Conditioning of M segments, shared by all blocks. D: width of the model, L: text length."""

    text: torch.Tensor  # [B M, L, D], embedded
    time: torch.Tensor  # [B, M, D]: the embedding of sigma
    table: torch.Tensor  # [B, M, 6, D]: the modulation from it


class WanStreams(_Transformer):
    """A Wan transformer whose input is streams by name. Base parameters keep their names in the state dict.

    A subclass creates `blocks` after the base constructor, identifies its added parameters in `is_added`, and
    implements `forward`.
    """

    _cp_plan: ClassVar[None] = None
    condition_sigma: float = 0.0  # see `openuni.training.model.VideoModel`, as the next
    unsaved: frozenset[str] = frozenset()
    rope: Any  # the base class's tables of positions
    attention: str = "auto"
    base_precision: torch.dtype = torch.float32  # dtype of the weights in `castable`
    context: Context | None = None  # ranks that share the tokens of each sample

    def __init__(self, modalities: Sequence[str], num_layers: int, **base: Any) -> None:
        with base_device():
            super().__init__(num_layers=0, **base)
        if self.rope.freqs_cos.is_meta and self.patch_embedding.weight.is_meta:
            self.rope = rope_tables(self)
        self.register_to_config(num_layers=num_layers, modalities=tuple(modalities))
        self.streams = tuple(modalities)
        self.patch = tuple(self.config.patch_size)
        self.channels, self.text_dim = self.config.in_channels, self.config.text_dim
        self.dim: int = self.config.num_attention_heads * self.config.attention_head_dim

    @classmethod
    def is_added(cls, name: str) -> bool:
        """Whether the parameter with this name is newly added, not part of the base model."""
        raise NotImplementedError

    def after_base(self) -> None:
        """Initialize copies of base weights; called after these are loaded."""

    def added_parameters(self) -> list[str]:
        """Names of the newly added parameters."""
        return [name for name, _ in self.named_parameters() if self.is_added(name)]

    def base_tensors(self) -> dict[str, torch.Tensor]:
        """The state dict without the additions: names and tensors of the base model."""
        added = set(self.added_parameters())
        return {name: tensor for name, tensor in self.state_dict().items() if name not in added}

    @property
    def block_sizes(self) -> tuple[Any, ...]:
        """Arguments of `WanTransformerBlock` after the width of the model."""
        config = self.config
        return config.ffn_dim, config.num_attention_heads, config.qk_norm, config.cross_attn_norm, config.eps

    def castable(self) -> list[str]:
        """Names of the base parameters that can be stored in bfloat16.

        These are linear layers and convolutions, which autocast casts anyway. Norms, modulation tables and the layers
        that compute the modulation from sigma stay float32.
        """
        added = set(self.added_parameters())
        names = [
            f"{name}.{leaf}"
            for name, module in self.named_modules()
            if isinstance(module, nn.Linear | nn.Conv3d) and not name.startswith("condition_embedder.time_")
            for leaf, _ in module.named_parameters(recurse=False)
        ]
        return [name for name in names if name not in added]

    @torch.no_grad()
    def load_base(self, shards: Iterable[dict[str, torch.Tensor]], device: str = "cpu", share: bool = False) -> None:
        """Load all weights of a `WanTransformer3DModel`. Raises `OpenUniError` if names or shapes differ.

        Weights on the meta device are allocated on `device` one by one. `share`: use the tensors without copying if
        device and dtype match.
        """
        parameters = dict(self.named_parameters())
        expected = set(self.base_tensors())
        castable = set(self.castable())
        seen: set[str] = set()
        for name, tensor in (item for shard in shards for item in shard.items()):
            seen.add(name)
            if name not in expected:
                continue
            if tensor.shape != parameters[name].shape:
                found, wanted = list(tensor.shape), list(parameters[name].shape)
                raise OpenUniError(f"pretrained weights do not match the model: {name} is {found}, expected {wanted}")
            if parameters[name].is_meta:
                dtype = self.base_precision if name in castable else torch.float32
                self._put(name, tensor.to(device, dtype, copy=not share))
            else:
                parameters[name].copy_(tensor)
        odd = sorted(seen ^ expected)
        if odd:
            raise OpenUniError(f"pretrained weights do not match the model; differing keys: {', '.join(odd[:8])}")
        copies = [name for name in self.added_parameters() if parameters[name].is_meta]
        for name in copies:
            self._put(name, torch.full(parameters[name].shape, torch.nan, device=device))
        self.after_base()
        if unset := [name for name in copies if self.get_parameter(name).isnan().any()]:
            raise RuntimeError(f"{type(self).__name__}.after_base leaves {unset[0]} without a value")

    def _put(self, name: str, tensor: torch.Tensor) -> None:
        place, _, leaf = name.rpartition(".")
        trained = self.get_parameter(name).requires_grad
        setattr(self.get_submodule(place), leaf, nn.Parameter(tensor, requires_grad=trained))

    def set_base_precision(self, precision: torch.dtype) -> None:
        """Cast the parameters in `castable`; matrix products then use the same precision."""
        self.base_precision = precision
        for name in self.castable():
            parameter = self.get_parameter(name)
            parameter.data = parameter.data.to(precision)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Call the model. A bfloat16 base runs under autocast even if the caller does not enable it."""
        device = self.proj_out.weight.device
        if self.base_precision == torch.float32 or torch.is_autocast_enabled(device.type):
            return super().__call__(*arguments, **named)
        with torch.autocast(device.type, dtype=self.base_precision):
            return super().__call__(*arguments, **named)

    # ------------------------------------------------------------------ parts of a forward pass

    def check_streams(self, streams: Streams) -> list[str]:
        """Validate the streams and return their names in canonical order, RGB first. Raises `OpenUniError`."""
        names = sorted(streams, key=lambda name: (name != "rgb", name))
        for name in names:
            if name not in self.streams:
                raise OpenUniError(unknown_name("stream", name, self.streams))
        shapes = {name: tuple(streams[name].shape) for name in names}
        if len(set(shapes.values())) != 1:
            raise OpenUniError(f"streams must not be empty and must share one shape, got {shapes}")
        shape = shapes[names[0]]
        if shape[1] != self.channels or any(size % part for size, part in zip(shape[2:], self.patch, strict=True)):
            raise OpenUniError(
                f"latents must be [B, {self.channels}, T, H, W] in patches of {self.patch}, got {list(shape)}"
            )
        if self.rope.freqs_cos.dtype != torch.float32:
            raise OpenUniError(
                "RoPE tables must be float32, but the model was cast. Keep float32 weights and use autocast."
            )
        check_precision(self.attention, self.rope.freqs_cos.device)
        return names

    def grid(self, latents: torch.Tensor) -> tuple[int, int, int]:
        """Frames, rows and columns of tokens of latents [B, C, T, H, W]."""
        frames, height, width = latents.shape[2:]
        return frames // self.patch[0], height // self.patch[1], width // self.patch[2]

    def embed(self, latents: torch.Tensor, layer: nn.Module | None = None) -> torch.Tensor:
        """[B, C, T, H, W] -> tokens [B, S, D], with the base model's input layer or `layer`.

        With a context: the tokens of this rank, as in all of the blocks.
        """
        tokens: torch.Tensor = (layer or self.patch_embedding)(latents)
        return self.own_tokens(tokens.flatten(2).transpose(1, 2).contiguous())

    def own_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """The tokens of this rank, of all those of a segment [B, S, ...]."""
        return tokens if self.context is None else self.context.part(tokens)

    def all_tokens(self, tokens: torch.Tensor, count: int) -> torch.Tensor:
        """All tokens of a segment [B, `count`, ...], of those of this rank; only for outputs."""
        return tokens if self.context is None else self.context.whole(tokens, count)

    def unembed(
        self, tokens: torch.Tensor, time: torch.Tensor, grid: tuple[int, int, int], expert: Any = None
    ) -> torch.Tensor:
        """Tokens [B, S, D] -> velocity [B, C, T, H, W] by the base model's output layer or `expert`; `time` [B, D]."""
        expert = expert or self
        shift, scale = (expert.scale_shift_table + time.unsqueeze(1)).chunk(2, dim=1)
        tokens = (self.norm_out(tokens.float()) * (1 + scale) + shift).type_as(tokens)
        values = self.all_tokens(expert.proj_out(tokens), math.prod(grid))
        patches = values.unflatten(1, grid).unflatten(-1, (*self.patch, self.channels))
        return patches.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)

    def embed_conditioning(self, sigmas: Sequence[torch.Tensor], texts: Sequence[torch.Tensor]) -> SegmentConditioning:
        """Embed per segment its sigma [B] and its text [B, L, text_dim] with the base model's layers."""
        time, table = self.embed_time(torch.stack(list(sigmas), dim=1).flatten())
        text = self.condition_embedder.text_embedder(torch.stack(list(texts), dim=1).flatten(0, 1))
        segments = (-1, len(sigmas))
        return SegmentConditioning(text, time.unflatten(0, segments), table.unflatten(0, segments))

    def embed_time(self, sigma: torch.Tensor, embedder: nn.Module | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Sigma [N] -> its embedding [N, D] and the modulation from it [N, 6, D], in float32 also under autocast."""
        layers = self.condition_embedder
        with torch.autocast(sigma.device.type, enabled=False):
            time = (embedder or layers.time_embedder)(layers.timesteps_proj(sigma.float() * 1000.0))
            return time, layers.time_proj(layers.act_fn(time)).unflatten(1, (6, -1))

    def rotary(self, grid: tuple[int, int, int], segments: int = 1, continued: bool = False) -> Rotary:
        """RoPE tables of tokens ordered by (segment, frame, row, column).

        Width positions restart in each segment, or with `continued` run on across segments. Attention depends only on
        positions, not on token order, so segments are stored one after another, which keeps modulation per segment.
        With a context: those of the tokens of this rank, which has a part of each segment.
        """
        wide = grid[2] * segments if continued else grid[2]
        size = [n * part for n, part in zip((*grid[:2], wide), self.patch, strict=True)]
        cosines, sines = self.rope(torch.empty(1, 1, *size, device="meta"))
        if continued:  # [segments, tokens of a segment, 1, head_dim]
            split = (*grid[:2], segments, grid[2])
            cosines, sines = (
                table[0].unflatten(0, split).permute(2, 0, 1, 3, 4, 5).flatten(1, 3) for table in (cosines, sines)
            )
        own = self.own_rotary(cosines, sines)
        repeats = 1 if continued else segments
        tables = [table.flatten(0, 1).repeat(repeats, 1, 1)[None] for table in own[:2]]
        return *tables, *(tuple(segments * length for length in lengths) for lengths in own[2:])

    def own_rotary(self, cosines: torch.Tensor, sines: torch.Tensor) -> Rotary:
        """The tables of this rank's tokens, of those of a segment, whose tokens are the second dimension."""
        if self.context is None:
            return cosines, sines
        lengths = self.context.lengths(cosines.shape[1])
        return self.context.part(cosines), self.context.part(sines), lengths

    def through_blocks(self, tokens: Any, *arguments: Any) -> Any:
        """Run all blocks, with gradient checkpointing if enabled."""
        for block in self.blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                tokens = self._gradient_checkpointing_func(block, tokens, *arguments)
            else:
                tokens = block(tokens, *arguments)
        return tokens


def build_module(
    build: Callable[[], Any], options: WanModel, device: str, base_precision: torch.dtype = torch.float32
) -> Any:
    """Build the module, load the pretrained base if any, and move it to `device` in training mode.

    Weights are float32, or `base_precision` for those in `WanStreams.castable`. Pretrained weights are never in memory
    twice: the base is built on the meta device, then read tensor by tensor to its final place.
    """
    check_attention(options.attention, device)
    if options.pretrained:
        with defer_base_weights():
            model = build()
        model.base_precision = base_precision
        model.load_base(weight_shards(options.folder()), device, share=True)
    else:
        model = build()
        model.after_base()
        model.set_base_precision(base_precision)
    if options.gradient_checkpointing == "selective":
        for block in model.blocks:
            recompute_selectively(block)
    elif options.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    if {tensor.device for tensor in (*model.parameters(), *model.buffers())} != {torch.device(device)}:
        model = model.to(device)  # fake tensors, which have a device but no values, cannot be moved
    model.train()
    model.attention = options.attention
    use_attention(model, options.attention)
    if options.compile != "none":
        for block in model.blocks:
            block.compile(backend=options.compile, **COMPILE)
    return model
