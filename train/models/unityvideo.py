"""UnityVideo on diffusers' Wan transformer: streams side by side, a switcher in every block, text per stream."""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel, WanTransformerBlock
from safetensors.torch import load_file
from torch import nn

from manifests.checkpoint import Checkpoint, hub_or_path
from manifests.errors import OpenUniError, unknown_name
from train.model import Model, Streams

Rope = Literal["continued", "per_segment"]

# diffusers sets most attributes of its models from a configuration, which type checkers cannot follow
_Transformer: Any = WanTransformer3DModel


@dataclass(frozen=True)
class UnityVideo(Model):
    """The paper's model: modality experts at input and output, AdaLN switcher per block, in-context learner.

    All streams of a clip stand side by side on width in one sequence and share self-attention and FFN; the tokens of
    each stream cross-attend to its own text. Additions to the base model are the input and output layers of the
    modalities beside rgb (copies of the base layers) and the switcher (zero at the start): a single rgb stream is at
    the start the pretrained model, bit for bit.
    """

    origin: ClassVar[str] = "UnityVideo: Unified Multi-Modal Multi-Task Learning (arXiv 2512.07831)"

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
    switcher_dim: Annotated[int, "hidden width of each block's modality switcher"] = 256
    rope: Annotated[Rope, "width positions run on from stream to stream, or start anew in each"] = "continued"
    gradient_checkpointing: Annotated[bool, "recompute blocks in the backward pass: less memory, a third slower"] = (
        False
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "modalities", tuple(self.modalities))
        object.__setattr__(self, "patch", tuple(self.patch))
        if not self.modalities or len(set(self.modalities)) != len(self.modalities):
            raise OpenUniError(f"unityvideo: modalities must be distinct and at least one, got {self.modalities}")

    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """The pretrained base, when there is one."""
        return (hub_or_path(self.pretrained),) if self.pretrained else ()

    def load(self, device: str) -> "UnityVideoTransformer":
        """The model on `device` in float32, in training mode."""
        model: Any = UnityVideoTransformer(**self._module_options())
        if self.pretrained:
            model.load_base(read_weights(self._folder()))
        else:
            model.copy_base_to_experts()
        if self.gradient_checkpointing:
            model.enable_gradient_checkpointing()
        return model.to(device).train()

    def resolved(self) -> "UnityVideo":
        """With the sizes of the pretrained configuration written out, and no pretrained weights."""
        options = self._module_options()
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

    def _folder(self) -> Path:
        root = self.checkpoints()[0].resolve()
        return root / "transformer" if (root / "transformer").is_dir() else root

    def _module_options(self) -> dict[str, Any]:
        additions = {"modalities": self.modalities, "switcher_dim": self.switcher_dim, "rope_layout": self.rope}
        if not self.pretrained:
            return additions | {
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
        config = WanTransformer3DModel.load_config(str(self._folder()))
        if config.get("image_dim") or config.get("added_kv_proj_dim"):
            raise OpenUniError(f'unityvideo: "{self.pretrained}" is an image-to-video model; give a text-to-video one')
        if config["in_channels"] != (config.get("out_channels") or config["in_channels"]):
            raise OpenUniError(f'unityvideo: "{self.pretrained}" has other channels at its input than at its output')
        return additions | {key: value for key, value in config.items() if not key.startswith("_")}


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a diffusers model folder in float32, from one safetensors file or several with an index."""
    name = "diffusion_pytorch_model.safetensors"
    listing = folder / f"{name}.index.json"
    files = {name} if not listing.is_file() else set(json.loads(listing.read_text())["weight_map"].values())
    missing = sorted(file for file in files if not (folder / file).is_file())
    if missing:
        raise OpenUniError(f"unityvideo: {folder} lacks {', '.join(missing)}: give a diffusers folder with safetensors")
    return {key: tensor.float() for file in sorted(files) for key, tensor in load_file(folder / file).items()}


class Conditions(NamedTuple):
    """What every block is told, computed once per step. M: streams, S: tokens per stream, D: width of the model."""

    text: torch.Tensor  # [B M, L, D], embedded
    time: torch.Tensor  # [B, M, 6, D]: modulation from sigma, per segment
    switch: torch.Tensor  # [B, M, D]: modality embedding + time embedding, input of the switchers
    rotary: tuple[torch.Tensor, torch.Tensor]  # float32 [1, M S, 1, head_dim] each: cosines and sines


class UnityVideoBlock(WanTransformerBlock):
    """Wan's block over several segments. The base class's names and order of operations are kept.

    Modulation is per segment: [B, M, 1, D] against tokens [B, M, S, D], never one vector per token.
    """

    def __init__(self, *base: Any, dim: int, switcher_dim: int, **base_options: Any) -> None:
        super().__init__(dim, *base, **base_options)
        zero = nn.Linear(switcher_dim, 6 * dim)  # the one zero point of the switcher
        nn.init.zeros_(zero.weight)
        nn.init.zeros_(zero.bias)
        self.switcher = nn.Sequential(nn.Linear(dim, switcher_dim), nn.SiLU(), zero)

    def forward(
        self, tokens: torch.Tensor, text: torch.Tensor, time: torch.Tensor, switch: torch.Tensor, *rotary: torch.Tensor
    ) -> torch.Tensor:
        """`tokens` [B, M, S, D] -> the same shape; the rest as in `Conditions`."""
        batch, segments, length, dim = tokens.shape
        switched = self.switcher(switch).unflatten(-1, (6, dim)).float()
        table = self.scale_shift_table[:, None] + time.float() + switched
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = table.chunk(6, dim=2)  # [B, M, 1, D] each

        # all segments attend to one another
        normed = (self.norm1(tokens.float()) * (1 + scale_1) + shift_1).type_as(tokens)
        mixed = self.attn1(normed.flatten(1, 2), None, None, rotary).view(batch, segments, length, dim)
        tokens = (tokens.float() + mixed * gate_1).type_as(tokens)

        # each segment attends to its own text
        normed = self.norm2(tokens.float()).type_as(tokens)
        tokens = tokens + self.attn2(normed.flatten(0, 1), text, None, None).view(batch, segments, length, dim)

        normed = (self.norm3(tokens.float()) * (1 + scale_2) + shift_2).type_as(tokens)
        return (tokens.float() + self.ffn(normed).float() * gate_2).type_as(tokens)


class OutputExpert(nn.Module):
    """The output layer of one modality: a copy of the base model's modulation table and projection."""

    def __init__(self, dim: int, out_features: int) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.zeros(1, 2, dim))
        self.proj_out = nn.Linear(dim, out_features)


class UnityVideoTransformer(_Transformer):
    """See `UnityVideo` and `train.model.VideoModel`. Base parameters keep their names in the state dict.

    Additions: `modality_embeddings.*`, `input_experts.*`, `output_experts.*`, `blocks.*.switcher.*`.
    """

    _no_split_modules: ClassVar[list[str]] = ["UnityVideoBlock"]
    _repeated_blocks: ClassVar[list[str]] = ["UnityVideoBlock"]
    _cp_plan: ClassVar[None] = None

    def __init__(
        self,
        modalities: tuple[str, ...] = ("rgb", "depth"),
        switcher_dim: int = 256,
        rope_layout: Rope = "continued",
        num_layers: int = 40,
        **base: Any,
    ) -> None:
        super().__init__(num_layers=0, **base)
        additions = {"modalities": tuple(modalities), "switcher_dim": switcher_dim, "rope_layout": rope_layout}
        self.register_to_config(num_layers=num_layers, **additions)
        config = self.config
        dim = config.num_attention_heads * config.attention_head_dim
        self.blocks = nn.ModuleList(
            UnityVideoBlock(
                config.ffn_dim,
                config.num_attention_heads,
                config.qk_norm,
                config.cross_attn_norm,
                config.eps,
                dim=dim,
                switcher_dim=switcher_dim,
            )
            for _ in range(num_layers)
        )
        self.streams = tuple(modalities)
        self.patch = tuple(config.patch_size)
        self.channels, self.text_dim = config.in_channels, config.text_dim
        self.modality_embeddings = nn.ParameterDict({name: nn.Parameter(torch.randn(dim)) for name in modalities})
        others = [name for name in modalities if name != "rgb"]
        self.input_experts = nn.ModuleDict(
            {name: nn.Conv3d(self.channels, dim, self.patch, self.patch) for name in others}
        )
        out_features = self.channels * math.prod(self.patch)
        self.output_experts = nn.ModuleDict({name: OutputExpert(dim, out_features) for name in others})

    @torch.no_grad()
    def copy_base_to_experts(self) -> None:
        """Start the input and output layers of every other modality as copies of the rgb ones."""
        inputs: Any = self.input_experts
        outputs: Any = self.output_experts
        for expert in inputs.values():
            expert.load_state_dict(self.patch_embedding.state_dict())
        for expert in outputs.values():
            expert.proj_out.load_state_dict(self.proj_out.state_dict())
            expert.scale_shift_table.copy_(self.scale_shift_table)

    def load_base(self, state: dict[str, torch.Tensor]) -> None:
        """Take all weights of a `WanTransformer3DModel`; raises unless exactly the additions are left as they are."""
        missing, unexpected = self.load_state_dict(state, strict=False)
        if unexpected or set(missing) != set(self.added_parameters()):
            odd = sorted(set(missing) ^ set(self.added_parameters()) | set(unexpected))
            raise OpenUniError(f"pretrained weights do not fit the model; differing keys: {', '.join(odd[:8])}")
        self.copy_base_to_experts()

    def added_parameters(self) -> list[str]:
        """Names of the parameters that the base model does not have."""
        prefixes = ("modality_embeddings.", "input_experts.", "output_experts.")
        names = (name for name, _ in self.named_parameters())
        return [name for name in names if name.startswith(prefixes) or ".switcher." in name]

    def forward(self, streams: Streams, sigmas: dict[str, torch.Tensor], text: dict[str, torch.Tensor]) -> Streams:
        """Velocities of all streams, [B, C, T, H, W] by modality; see `train.model.VideoModel`."""
        names = self._checked(streams)
        _, _, frames, height, width = streams[names[0]].shape
        grid = (frames // self.patch[0], height // self.patch[1], width // self.patch[2])
        tokens = torch.stack([self._embed(name, streams[name]) for name in names], dim=1)
        time_embedding, conditions = self._conditions(names, sigmas, text, grid)
        for block in self.blocks:
            arguments = (tokens, conditions.text, conditions.time, conditions.switch, *conditions.rotary)
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                tokens = self._gradient_checkpointing_func(block, *arguments)
            else:
                tokens = block(*arguments)
        return {
            name: self._unembed(name, tokens[:, index], time_embedding[:, index], grid)
            for index, name in enumerate(names)
        }

    def _checked(self, streams: Streams) -> list[str]:
        names = sorted(streams, key=lambda name: (name != "rgb", name))  # the order of keys must not matter
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

    def _embed(self, name: str, latents: torch.Tensor) -> torch.Tensor:
        """[B, C, T, H, W] -> tokens [B, S, D] by the modality's input layer."""
        layer = self.patch_embedding if name == "rgb" else self.input_experts[name]
        return layer(latents).flatten(2).transpose(1, 2).contiguous()

    def _conditions(
        self,
        names: list[str],
        sigmas: dict[str, torch.Tensor],
        text: dict[str, torch.Tensor],
        grid: tuple[int, int, int],
    ) -> tuple[torch.Tensor, Conditions]:
        """The time embedding [B, M, D] for the output layers, and what the blocks need."""
        timesteps = torch.stack([sigmas[name] for name in names], dim=1).flatten() * 1000.0
        texts = torch.stack([text[name] for name in names], dim=1).flatten(0, 1)
        time, projected, embedded, _ = self.condition_embedder(timesteps, texts)
        segments = (-1, len(names))
        time = time.unflatten(0, segments)
        modality = torch.stack([self.modality_embeddings[name] for name in names])
        return time, Conditions(
            text=embedded,
            time=projected.unflatten(1, (6, -1)).unflatten(0, segments),
            switch=nn.functional.silu(modality + time),
            rotary=self._rotary(len(names), grid),
        )

    def _rotary(self, segments: int, grid: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines, float32 [1, M S, 1, head_dim], tokens ordered by (stream, frame, row, column).

        Attention does not see the order of tokens, only their positions; so the streams stand in the sequence one
        after another, which keeps modulation per segment, and on width side by side by their positions.
        """
        continued = self.config.rope_layout == "continued"
        wide = grid[2] * segments if continued else grid[2]
        size = [n * part for n, part in zip((*grid[:2], wide), self.patch, strict=True)]
        tables = self.rope(torch.empty(1, 1, *size, device="meta"))
        if not continued:
            return tuple(table.repeat(1, segments, 1, 1) for table in tables)
        split = (*grid[:2], segments, grid[2])
        return tuple(
            table[0, :, 0].unflatten(0, split).permute(2, 0, 1, 3, 4).flatten(0, 3)[None, :, None] for table in tables
        )

    def _unembed(self, name: str, tokens: torch.Tensor, time: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
        """Tokens [B, S, D] -> velocity [B, C, T, H, W] by the modality's output layer; `time`: [B, D]."""
        expert: Any = self if name == "rgb" else self.output_experts[name]
        shift, scale = (expert.scale_shift_table + time.unsqueeze(1)).chunk(2, dim=1)
        tokens = (self.norm_out(tokens.float()) * (1 + scale) + shift).type_as(tokens)
        patches = expert.proj_out(tokens).unflatten(1, grid).unflatten(-1, (*self.patch, self.channels))
        return patches.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)
