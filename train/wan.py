"""What the models share: diffusers' Wan transformer taken over by streams, weights read shard by shard."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, Self

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel, WanTransformerBlock
from safetensors.torch import load_file
from torch import nn

from manifests.checkpoint import Checkpoint, hub_or_path
from manifests.errors import OpenUniError, unknown_name
from train.model import Model, Streams

# diffusers sets most attributes of its models from a configuration, which type checkers cannot follow
_Transformer: Any = WanTransformer3DModel
# and a block over several streams is called with more than the base class's
WanBlock: Any = WanTransformerBlock

Rotary = tuple[torch.Tensor, torch.Tensor]  # cosines and sines, float32 [1, tokens, 1, head_dim] each


@dataclass(frozen=True)
class WanModel(Model):
    """Base of models on Wan: the options that say which Wan it is."""

    modalities: Annotated[tuple[str, ...], "streams the model knows; rgb is the base model's own"] = ("rgb", "depth")
    pretrained: Annotated[str, "diffusers Wan transformer or pipeline, hub name or folder; empty: random weights"] = ""
    num_layers: Annotated[int, "transformer blocks (ignored with pretrained, as the next seven)"] = 30
    heads: Annotated[int, "attention heads"] = 12
    head_dim: Annotated[int, "channels per head"] = 128
    ffn_dim: Annotated[int, "hidden width of the feed-forward layers"] = 8960
    text_dim: Annotated[int, "width of the text embeddings"] = 4096
    channels: Annotated[int, "channels of the latents"] = 16
    patch: Annotated[tuple[int, int, int], "latent frames, rows, columns per token"] = (1, 2, 2)
    freq_dim: Annotated[int, "width of the sinusoids that carry sigma"] = 256
    gradient_checkpointing: Annotated[bool, "recompute blocks in the backward pass: less memory, a third slower"] = (
        False
    )

    def __post_init__(self) -> None:
        # in one order, which initial weights are drawn in: that of a recipe or a folder must not matter
        object.__setattr__(self, "modalities", tuple(sorted(self.modalities, key=lambda name: (name != "rgb", name))))
        object.__setattr__(self, "patch", tuple(self.patch))
        super().__post_init__()
        if not self.modalities or len(set(self.modalities)) != len(self.modalities):
            raise OpenUniError(f"{self.name()}: modalities must be distinct and at least one, got {self.modalities}")

    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """The pretrained base, when there is one."""
        return (hub_or_path(self.pretrained),) if self.pretrained else ()

    def resolved(self) -> Self:
        """With the sizes of the pretrained configuration written out, and no pretrained weights."""
        options = self.base_options()
        return dataclasses.replace(
            self,
            pretrained="",
            num_layers=options["num_layers"],
            heads=options["num_attention_heads"],
            head_dim=options["attention_head_dim"],
            ffn_dim=options["ffn_dim"],
            text_dim=options["text_dim"],
            channels=options["in_channels"],
            patch=tuple(options["patch_size"]),
            freq_dim=options["freq_dim"],
        )

    def base_options(self) -> dict[str, Any]:
        """Arguments of `WanTransformer3DModel`: the pretrained configuration, or that of the options."""
        if not self.pretrained:
            return {
                "patch_size": self.patch,
                "num_attention_heads": self.heads,
                "attention_head_dim": self.head_dim,
                "in_channels": self.channels,
                "out_channels": self.channels,
                "text_dim": self.text_dim,
                "freq_dim": self.freq_dim,
                "ffn_dim": self.ffn_dim,
                "num_layers": self.num_layers,
            }
        config = WanTransformer3DModel.load_config(str(self.folder()))
        if config.get("image_dim") or config.get("added_kv_proj_dim"):
            raise OpenUniError(
                f'{self.name()}: "{self.pretrained}" is an image-to-video model; give a text-to-video one'
            )
        if config["in_channels"] != (config.get("out_channels") or config["in_channels"]):
            raise OpenUniError(f'{self.name()}: "{self.pretrained}" has other channels at its input than at its output')
        return {key: value for key, value in config.items() if not key.startswith("_")}

    def folder(self) -> Path:
        """The folder of the pretrained transformer; a whole pipeline has it in its own."""
        root = self.checkpoints()[0].resolve()
        return root / "transformer" if (root / "transformer").is_dir() else root


def weight_shards(folder: Path) -> Iterator[dict[str, torch.Tensor]]:
    """The tensors of a diffusers model folder as they are stored, file by file: never all in memory at once."""
    name = "diffusion_pytorch_model.safetensors"
    listing = folder / f"{name}.index.json"
    files = {name} if not listing.is_file() else set(json.loads(listing.read_text())["weight_map"].values())
    odd = sorted(file for file in files if Path(file).name != file)
    if odd:
        raise OpenUniError(f"{listing} names files outside its folder: {', '.join(odd[:3])}")
    missing = sorted(file for file in files if not (folder / file).is_file())
    if missing:
        raise OpenUniError(f"{folder} lacks {', '.join(missing)}: give a diffusers folder with safetensors")
    for file in sorted(files):
        yield load_file(folder / file)


class Told(NamedTuple):
    """What all blocks are told of M segments, computed once per step. D: width of the model, L: rows of text."""

    text: torch.Tensor  # [B M, L, D], embedded
    time: torch.Tensor  # [B, M, D]: the embedding of sigma
    table: torch.Tensor  # [B, M, 6, D]: the modulation from it


class WanStreams(_Transformer):
    """A Wan transformer whose input is streams by name. Base parameters keep their names in the state dict.

    A subclass makes its blocks in `build_block`, names what it adds in `is_added`, and does the rest in `forward`.
    """

    _cp_plan: ClassVar[None] = None
    given_sigma: float = 0.0  # see `train.model.VideoModel`, as the next
    unsaved: frozenset[str] = frozenset()

    def __init__(self, modalities: Sequence[str], num_layers: int, **base: Any) -> None:
        super().__init__(num_layers=0, **base)
        self.register_to_config(num_layers=num_layers, modalities=tuple(modalities))
        self.streams = tuple(modalities)
        self.patch = tuple(self.config.patch_size)
        self.channels, self.text_dim = self.config.in_channels, self.config.text_dim
        self.dim: int = self.config.num_attention_heads * self.config.attention_head_dim

    @classmethod
    def is_added(cls, name: str) -> bool:
        """Whether a parameter of this name is one that the base model does not have."""
        raise NotImplementedError

    def after_base(self) -> None:
        """What begins as a copy of the base weights, once these are there."""

    def added_parameters(self) -> list[str]:
        """Names of the parameters that the base model does not have."""
        return [name for name, _ in self.named_parameters() if self.is_added(name)]

    def load_base(self, shards: Iterator[dict[str, torch.Tensor]]) -> None:
        """Take all weights of a `WanTransformer3DModel`; raises unless exactly the additions are left as they are."""
        expected = set(self.state_dict()) - set(self.added_parameters())
        seen: set[str] = set()
        for shard in shards:
            fitting = {name: tensor for name, tensor in shard.items() if name in expected}
            self.load_state_dict(fitting, strict=False)
            seen |= set(shard)
        odd = sorted(seen ^ expected)
        if odd:
            raise OpenUniError(f"pretrained weights do not fit the model; differing keys: {', '.join(odd[:8])}")
        self.after_base()

    # ------------------------------------------------------------------ what a forward pass is made of

    def checked(self, streams: Streams) -> list[str]:
        """Names of the streams, RGB first and then by name: the order of keys must not matter."""
        names = sorted(streams, key=lambda name: (name != "rgb", name))
        for name in names:
            if name not in self.streams:
                raise OpenUniError(unknown_name("stream", name, self.streams))
        shapes = {name: tuple(streams[name].shape) for name in names}
        if len(set(shapes.values())) != 1:
            raise OpenUniError(f"streams must be there and share one shape, got {shapes}")
        shape = shapes[names[0]]
        if shape[1] != self.channels or any(size % part for size, part in zip(shape[2:], self.patch, strict=True)):
            raise OpenUniError(
                f"latents must be [B, {self.channels}, T, H, W] in patches of {self.patch}, got {list(shape)}"
            )
        if self.rope.freqs_cos.dtype != torch.float32:
            raise OpenUniError("the model was cast to a lower precision, which ruins RoPE: keep float32, use autocast")
        return names

    def grid(self, latents: torch.Tensor) -> tuple[int, int, int]:
        """Frames, rows and columns of tokens of latents [B, C, T, H, W]."""
        frames, height, width = latents.shape[2:]
        return frames // self.patch[0], height // self.patch[1], width // self.patch[2]

    def embed(self, latents: torch.Tensor, layer: nn.Module | None = None) -> torch.Tensor:
        """[B, C, T, H, W] -> tokens [B, S, D], by the base model's input layer or another of its kind."""
        tokens: torch.Tensor = (layer or self.patch_embedding)(latents)
        return tokens.flatten(2).transpose(1, 2).contiguous()

    def unembed(
        self, tokens: torch.Tensor, time: torch.Tensor, grid: tuple[int, int, int], expert: Any = None
    ) -> torch.Tensor:
        """Tokens [B, S, D] -> velocity [B, C, T, H, W] by the base model's output layer or another; `time` [B, D]."""
        expert = expert or self
        shift, scale = (expert.scale_shift_table + time.unsqueeze(1)).chunk(2, dim=1)
        tokens = (self.norm_out(tokens.float()) * (1 + scale) + shift).type_as(tokens)
        patches = expert.proj_out(tokens).unflatten(1, grid).unflatten(-1, (*self.patch, self.channels))
        return patches.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)

    def told(self, sigmas: Sequence[torch.Tensor], texts: Sequence[torch.Tensor]) -> Told:
        """Per segment its sigma [B] and its text [B, L, text_dim], embedded by the base model's layers."""
        timesteps = torch.stack(list(sigmas), dim=1).flatten() * 1000.0
        text = torch.stack(list(texts), dim=1).flatten(0, 1)
        time, projected, embedded, _ = self.condition_embedder(timesteps, text)
        segments = (-1, len(sigmas))
        return Told(embedded, time.unflatten(0, segments), projected.unflatten(1, (6, -1)).unflatten(0, segments))

    def rotary(self, grid: tuple[int, int, int], segments: int = 1, continued: bool = False) -> Rotary:
        """Of tokens ordered by (segment, frame, row, column): positions anew in each segment, or running on on width.

        Attention does not see the order of tokens, only their positions; so streams stand in the sequence one after
        another, which keeps modulation per segment, and on width side by side by their positions.
        """
        wide = grid[2] * segments if continued else grid[2]
        size = [n * part for n, part in zip((*grid[:2], wide), self.patch, strict=True)]
        cosines, sines = self.rope(torch.empty(1, 1, *size, device="meta"))
        if not continued:
            return cosines.repeat(1, segments, 1, 1), sines.repeat(1, segments, 1, 1)
        split = (*grid[:2], segments, grid[2])

        def ordered(table: torch.Tensor) -> torch.Tensor:
            return table[0, :, 0].unflatten(0, split).permute(2, 0, 1, 3, 4).flatten(0, 3)[None, :, None]

        return ordered(cosines), ordered(sines)

    def through_blocks(self, tokens: Any, *arguments: Any) -> Any:
        """All blocks in turn, recomputed in the backward pass where the model is told to."""
        for block in self.blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                tokens = self._gradient_checkpointing_func(block, tokens, *arguments)
            else:
                tokens = block(tokens, *arguments)
        return tokens


def loaded(build: Callable[[], Any], options: WanModel, device: str) -> Any:
    """The module that `build` makes, with the pretrained base where there is one, on `device` in float32, training."""
    model = build()
    if options.pretrained:
        model.load_base(weight_shards(options.folder()))
    else:
        model.after_base()
    if options.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    return model.to(device).train()
