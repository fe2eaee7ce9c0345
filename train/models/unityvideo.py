"""UnityVideo on diffusers' Wan transformer: streams in one sequence, a switcher per block, one text per stream.

Differences between paper and released code, and the choices made here, are described in `train/models/README.md`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge
from torch import nn

from openuni.manifests.contracts.options import Added
from openuni.training.backbone.wan import WanBlock, WanModel, WanStreams, build_module
from openuni.training.model import Streams, TextCondition
from openuni.training.tasks import Task

Rope = Literal["continued", "per_segment"]
Switcher = Literal["per_block", "released", "none"]
Layers = Literal["per_modality", "shared"]


@dataclass(frozen=True)
class UnityVideo(WanModel):
    """The paper's model: modality experts at input and output, an AdaLN switcher per block, in-context learning.

    All streams of a clip are concatenated on width in one sequence and share self-attention and FFN; the tokens of
    each stream cross-attend to their own text. Newly added parameters: input and output layers of non-rgb modalities
    (copies of the base layers) and the switcher (zero-initialized). At initialization, a single rgb stream reproduces
    the pretrained model bit for bit. The released switcher is one zero-initialized vector per non-rgb modality, added
    to the stream's tokens after the input layer; its blocks are Wan's. Ablations: no switcher, no modality-type
    prompts, rgb's input or output layer for all streams. At initialization they change nothing of the above.
    """

    origin: ClassVar[str] = "UnityVideo: Unified Multi-Modal Multi-Task Learning (arXiv 2512.07831)"

    switcher: Annotated[
        Switcher,
        "modality switcher: AdaLN in every block, one vector per modality as released, or (ablation) none",
    ] = "per_block"
    switcher_dim: Annotated[int, "hidden width of the switcher in each block", Ge(1)] = 256
    rope: Annotated[Rope, "RoPE width positions: continued across streams, or restarted per stream"] = "continued"
    in_context: Annotated[
        bool, "modality-type prompts for non-rgb streams; false (ablation): all streams have the caption", Added()
    ] = True
    input_layers: Annotated[Layers, "input layers: one per modality, or (ablation) rgb's for all streams", Added()] = (
        "per_modality"
    )
    output_layers: Annotated[
        Layers, "output layers: one per modality, or (ablation) rgb's for all streams", Added()
    ] = "per_modality"

    def text_condition(self, task: Task, stream: str) -> TextCondition:
        """See `Model.text_condition`; without in-context learning, the caption for every stream."""
        return super().text_condition(task, stream) if self.in_context else "caption"

    def max_latent_shape(self, streams: int, streams_on_width: int = 1) -> tuple[int, int, int]:
        """See `Model.max_latent_shape`."""
        return super().max_latent_shape(streams, streams if self.rope == "continued" else streams_on_width)

    def load(self, device: str) -> "UnityVideoTransformer":
        """The model on `device` in float32, in training mode."""

        def build() -> UnityVideoTransformer:
            options = {name: getattr(self, name) for name in ("switcher", "input_layers", "output_layers")}
            return UnityVideoTransformer(
                self.modalities, self.switcher_dim, self.rope, **options, **self.base_options()
            )

        module: UnityVideoTransformer = build_module(build, self, device)
        return module


class UnityVideoBlock(WanBlock):
    """Wan's block over several segments. Parameter names and order of operations are those of the base class.

    Modulation is per segment, [B, M, 1, D] for tokens [B, M, S, D]. `switcher_dim` 0: no switcher.
    """

    def __init__(self, *base: Any, dim: int, switcher_dim: int, **base_options: Any) -> None:
        super().__init__(dim, *base, **base_options)
        if not switcher_dim:
            self.switcher = None
            return
        zero = nn.Linear(switcher_dim, 6 * dim)  # the only zero-initialized layer of the switcher
        nn.init.zeros_(zero.weight)
        nn.init.zeros_(zero.bias)
        self.switcher = nn.Sequential(nn.Linear(dim, switcher_dim), nn.SiLU(), zero)

    def forward(
        self,
        tokens: torch.Tensor,
        text: torch.Tensor,
        time: torch.Tensor,
        switch: torch.Tensor | None,
        *rotary: Any,
    ) -> torch.Tensor:
        """`tokens` [B, M, S, D] -> the same shape; `text` and `time` as in `SegmentConditioning` of backbone.wan.

        `switch`: [B, M, D], modality plus time embedding, input of the switcher. `rotary`: tables of all M S tokens.
        """
        batch, segments, length, dim = tokens.shape
        table = self.scale_shift_table[:, None] + time.float()
        if self.switcher is not None:
            assert switch is not None  # the model provides it for blocks with a switcher
            with torch.autocast(tokens.device.type, enabled=False):  # like all modulation by sigma
                table = table + self.switcher(switch.float()).unflatten(-1, (6, dim))
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


class UnityVideoTransformer(WanStreams):
    """See `UnityVideo` and `openuni.training.model.VideoModel`.

    Additions: `modality_embeddings.*`, `input_experts.*`, `output_experts.*`, `blocks.*.switcher.*`.
    """

    _no_split_modules: ClassVar[list[str]] = ["UnityVideoBlock"]
    _repeated_blocks: ClassVar[list[str]] = ["UnityVideoBlock"]

    def __init__(
        self,
        modalities: Sequence[str] = ("rgb", "depth"),
        switcher_dim: int = 256,
        rope_layout: Rope = "continued",
        switcher: Switcher = "per_block",
        num_layers: int = 40,
        input_layers: Layers = "per_modality",
        output_layers: Layers = "per_modality",
        **base: Any,
    ) -> None:
        super().__init__(modalities, num_layers, **base)
        self.register_to_config(switcher_dim=switcher_dim, rope_layout=rope_layout, switcher=switcher)
        self.register_to_config(input_layers=input_layers, output_layers=output_layers)
        dim = self.dim
        self.blocks = nn.ModuleList(
            UnityVideoBlock(*self.block_sizes, dim=dim, switcher_dim=switcher_dim if switcher == "per_block" else 0)
            for _ in range(num_layers)
        )
        others = [name for name in modalities if name != "rgb"]
        embeddings = {}
        if switcher == "released":
            embeddings = {name: nn.Parameter(torch.zeros(dim)) for name in others}
        elif switcher == "per_block":
            embeddings = {name: nn.Parameter(torch.randn(dim)) for name in modalities}
        self.modality_embeddings = nn.ParameterDict(embeddings)
        own = others if input_layers == "per_modality" else []
        self.input_experts = nn.ModuleDict(
            {name: nn.Conv3d(self.channels, dim, self.patch, self.patch) for name in own}
        )
        own = others if output_layers == "per_modality" else []
        out_features = self.channels * math.prod(self.patch)
        self.output_experts = nn.ModuleDict({name: OutputExpert(dim, out_features) for name in own})

    @classmethod
    def is_added(cls, name: str) -> bool:
        """See `WanStreams.is_added`."""
        return name.startswith(("modality_embeddings.", "input_experts.", "output_experts.")) or ".switcher." in name

    @torch.no_grad()
    def after_base(self) -> None:
        """Initialize the input and output layers of every non-rgb modality as copies of the rgb layers."""
        inputs: Any = self.input_experts
        outputs: Any = self.output_experts
        for expert in inputs.values():
            expert.load_state_dict(self.patch_embedding.state_dict())
        for expert in outputs.values():
            expert.proj_out.load_state_dict(self.proj_out.state_dict())
            expert.scale_shift_table.copy_(self.scale_shift_table)

    def forward(self, streams: Streams, sigmas: dict[str, torch.Tensor], text: dict[str, torch.Tensor]) -> Streams:
        """Velocities of all streams, [B, C, T, H, W] by modality; see `openuni.training.model.VideoModel`."""
        names = self.check_streams(streams)
        grid = self.grid(streams[names[0]])
        layers, experts = dict(self.input_experts.items()), dict(self.output_experts.items())
        embedded = [self.embed(streams[name], layers.get(name)) for name in names]
        conditioning = self.embed_conditioning([sigmas[name] for name in names], [text[name] for name in names])
        if self.config.switcher == "released":
            embedded = [
                tokens if name == "rgb" else tokens + self.modality_embeddings[name].type_as(tokens)
                for name, tokens in zip(names, embedded, strict=True)
            ]
        switch = None
        if self.config.switcher == "per_block":
            modality = torch.stack([self.modality_embeddings[name] for name in names])
            switch = nn.functional.silu(modality + conditioning.time)
        rotary = self.rotary(grid, len(names), self.config.rope_layout == "continued")
        tokens = self.through_blocks(
            torch.stack(embedded, dim=1), conditioning.text, conditioning.table, switch, *rotary
        )
        return {
            name: self.unembed(tokens[:, place], conditioning.time[:, place], grid, experts.get(name))
            for place, name in enumerate(names)
        }
