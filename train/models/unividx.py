"""UniVidX on diffusers' Wan transformer: a row per stream, a gated LoRA per modality, attention over all rows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from annotated_types import Ge, Interval
from torch import nn

from openuni.manifests.errors import OpenUniError
from openuni.training.backbone.lora import LoraRouting
from openuni.training.backbone.wan import WanModel, WanStreams, build_module
from openuni.training.model import Streams, TextCondition
from openuni.training.models._unividx_blocks import SHARED, UniVidXBlock
from openuni.training.models._unividx_channels import ChannelsTransformer
from openuni.training.tasks import Task

Lora = Literal["decoupled", "shared"]
Layout = Literal["rows", "channels"]
# Given all of one of these, RGB has nothing left that a caption could say (the published AIN2R; FB2RP and PFB2R)
DETERMINES_RGB = ({"albedo", "irradiance", "normal"}, {"foreground", "background"})


@dataclass(frozen=True)
class UniVidX(WanModel):
    """The paper's model: stochastic condition masking is the recipe's tasks; the rest is here.

    Every stream of a clip is a row of its own, with the same positions, through the base model's own input and output
    layers. In self-attention each row looks at the rows of all streams of its sample. What tells modalities apart is
    the LoRA alone: each has its own, on the self-attention and feed-forward layers of every block, at work in the rows
    where that modality is made and not where it is given. B is zero at the start: without cross-modal attention, or
    with one stream, the model then is the pretrained one on every row, bit for bit.
    """

    origin: ClassVar[str] = "UniVidX: A Unified Multimodal Framework for Versatile Video Generation (arXiv 2605.00658)"

    rank: Annotated[int, "of each LoRA; alpha is the same, so the scale is 1", Ge(1)] = 32
    train_base: Annotated[bool, "train all weights, not the LoRAs alone, such as when nothing is pretrained"] = False
    frozen_precision: Annotated[
        Literal["float32", "bfloat16"], "of the frozen base's weights, and then of matrix products; LoRAs stay float32"
    ] = "float32"
    condition_noise: Annotated[
        float, "sigma of given streams; the released code has 0.00498, the paper 0", Interval(ge=0, lt=0.5)
    ] = 0.0
    lora: Annotated[Lora, "a LoRA per modality, or (ablation) one for all"] = "decoupled"
    gated: Annotated[bool, "LoRAs rest where their stream is given; false (ablation): always at work"] = True
    cross_modal: Annotated[bool, "rows attend to all rows of their sample; false (ablation): to themselves"] = True
    layout: Annotated[Layout, "a row per stream, or (ablation) all on channels; then the last three are ignored"] = (
        "rows"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frozen_precision != "float32" and self.train_base:
            raise OpenUniError("unividx: frozen_precision is of a frozen base, and train_base = true trains it")

    @property
    def condition_sigma(self) -> float:
        """See `Model.condition_sigma`."""
        return self.condition_noise

    def text_condition(self, task: Task, stream: str) -> TextCondition:
        """The caption for every stream, in tasks that make RGB out of less than what determines it; else nothing.

        So the caption is told in the published Text->X and Text&X->X tasks and in no X->X one. For other sets of
        modalities the rule is the same: any task that makes rgb is told the caption, unless all of `DETERMINES_RGB`
        of one family is given.
        """
        determined = any(needed <= set(task.conditions) for needed in DETERMINES_RGB)
        return "caption" if "rgb" in task.targets and not determined else "nothing"

    def resolved(self) -> Self:
        """See `Model.resolved`. With a frozen base, `pretrained` stays: its weights are not saved with the run's."""
        spelled = super().resolved()
        return spelled if self.train_base else replace(spelled, pretrained=self.pretrained)

    def load(self, device: str) -> Any:
        """The model on `device` in float32, in training mode; only what is to be trained requires gradients."""

        def build() -> WanStreams:
            if self.layout == "channels":
                return ChannelsTransformer(self.modalities, self.rank, **self.base_options())
            adapters = self.modalities if self.lora == "decoupled" else (SHARED,)
            return UniVidXTransformer(
                self.modalities, adapters, self.rank, self.gated, self.cross_modal, **self.base_options()
            )

        module = build_module(build, self, device, getattr(torch, self.frozen_precision))
        module.condition_sigma = self.condition_noise
        if not self.train_base:
            base = set(module.base_tensors())
            for name, parameter in module.named_parameters():
                parameter.requires_grad_(name not in base)
            module.unsaved = frozenset(base) if self.pretrained else frozenset()
        return module


class UniVidXTransformer(WanStreams):
    """See `UniVidX` and `openuni.training.model.VideoModel`.

    Additions: `blocks.*.lora_A.MODALITY` and `blocks.*.lora_B.MODALITY`.

    A stream counts as given in a sample where its sigma is at most `condition_sigma` (0 unless conditions get noise),
    and as made above that; loader and sampler keep the sigmas of made streams above it.
    """

    _no_split_modules: ClassVar[list[str]] = ["UniVidXBlock"]
    _repeated_blocks: ClassVar[list[str]] = ["UniVidXBlock"]

    def __init__(
        self,
        modalities: Sequence[str] = ("rgb", "depth"),
        adapters: Sequence[str] = ("rgb", "depth"),
        rank: int = 32,
        gated: bool = True,
        cross_modal: bool = True,
        num_layers: int = 40,
        **base: Any,
    ) -> None:
        super().__init__(modalities, num_layers, **base)
        self.register_to_config(adapters=tuple(adapters), rank=rank, gated=gated, cross_modal=cross_modal)
        self.blocks = nn.ModuleList(
            UniVidXBlock(self.dim, *self.block_sizes, adapters=adapters, rank=rank) for _ in range(num_layers)
        )

    @classmethod
    def is_added(cls, name: str) -> bool:
        """See `WanStreams.is_added`."""
        return ".lora_A." in name or ".lora_B." in name

    def forward(self, streams: Streams, sigmas: dict[str, torch.Tensor], text: dict[str, torch.Tensor]) -> Streams:
        """Velocities of all streams, [B, C, T, H, W] by modality; see `openuni.training.model.VideoModel`."""
        names = self.check_streams(streams)
        stacked = torch.stack([streams[name] for name in names], dim=1)
        grid = self.grid(streams[names[0]])
        told = self.embed_conditioning([sigmas[name] for name in names], [text[name] for name in names])
        joint = len(names) if self.config.cross_modal else 1
        tokens = self.through_blocks(
            self.embed(stacked.flatten(0, 1)),
            told.text,
            told.table.flatten(0, 1),
            self.rows(names, sigmas),
            joint,
            *self.rotary(grid),
        )
        velocities = self.unembed(tokens, told.time.flatten(0, 1), grid).unflatten(0, (-1, len(names)))
        return dict(zip(names, velocities.unbind(1), strict=True))

    def rows(self, names: Sequence[str], sigmas: dict[str, torch.Tensor]) -> LoraRouting:
        """Which LoRAs are at work on the rows of these streams."""
        adapters = tuple(self.config.adapters)
        own = tuple(names) if adapters != (SHARED,) else adapters
        if not self.config.gated:
            return LoraRouting(own, None)
        made = torch.stack([sigmas[name] for name in names], dim=1).flatten() > self.condition_sigma
        return LoraRouting(own, made.float()[:, None, None])
