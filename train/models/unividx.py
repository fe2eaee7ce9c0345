"""UniVidX on diffusers' Wan transformer: one row per stream, one gated LoRA per modality, attention over all rows.

Differences between paper and released code, and the choices made here, are described in `train/models/README.md`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from annotated_types import Ge, Interval
from torch import nn

from openuni.manifests.contracts.options import Added, Formerly
from openuni.manifests.errors import OpenUniError
from openuni.training.backbone.lora import LoraRouting
from openuni.training.backbone.wan import WanModel, WanStreams, build_module
from openuni.training.model import Streams, TextCondition
from openuni.training.models._unividx_blocks import SHARED, UniVidXBlock
from openuni.training.models._unividx_channels import ChannelsTransformer
from openuni.training.tasks import Task

Lora = Literal["decoupled", "shared"]
Layout = Literal["rows", "channels"]
Captions = Literal["published", "all"]
# If all of one set are conditions, RGB is determined and the caption is not used (published AIN2R; FB2RP, PFB2R)
DETERMINES_RGB = ({"albedo", "irradiance", "normal"}, {"foreground", "background"})


@dataclass(frozen=True)
class UniVidX(WanModel):
    """The paper's model; its stochastic condition masking is expressed by the recipe's tasks.

    Every stream of a clip is a separate row with the same positions and uses the base model's input and output layers.
    In self-attention each row attends to the rows of all streams of its sample. Modalities differ only by their gated
    LoRAs on the self-attention and feed-forward layers of every block: a LoRA is active in rows where its modality is
    a target, not where it is a condition. B is zero-initialized: without cross-modal attention, or with one stream,
    the model reproduces the pretrained model on every row bit for bit.
    """

    origin: ClassVar[str] = "UniVidX: A Unified Multimodal Framework for Versatile Video Generation (arXiv 2605.00658)"

    rank: Annotated[int, "rank of each LoRA; alpha equals the rank, so the scale is 1", Ge(1)] = 32
    train_base: Annotated[bool, "train all weights instead of only the LoRAs, such as without pretrained weights"] = (
        False
    )
    frozen_dtype: Annotated[
        Literal["float32", "bfloat16"],
        "dtype of the frozen base and its matrix products; LoRAs stay float32",
        Formerly("frozen_precision"),
    ] = "float32"
    condition_noise: Annotated[
        float, "noise level (sigma) of condition streams; released code: 0.00498, paper: 0", Interval(ge=0, lt=0.5)
    ] = 0.0
    lora: Annotated[Lora, "one LoRA per modality, or (ablation) one shared LoRA"] = "decoupled"
    gated: Annotated[bool, "disable LoRAs on condition streams; false (ablation): always active"] = True
    cross_modal: Annotated[bool, "attention over all rows of a sample; false (ablation): within each row"] = True
    layout: Annotated[
        Layout,
        "one row per stream, or (ablation) streams concatenated on channels, which ignores lora, gated and cross_modal",
    ] = "rows"

    captions: Annotated[
        Captions, "tasks with the caption: those with rgb as an undetermined target as published, or all", Added()
    ] = "published"

    caption_option: ClassVar[str] = 'model.captions = "all"'

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frozen_dtype != "float32" and self.train_base:
            raise OpenUniError(
                "unividx: frozen_dtype requires a frozen base, but train_base = true. Remove one of them."
            )

    @property
    def condition_sigma(self) -> float:
        """See `Model.condition_sigma`."""
        return self.condition_noise

    def text_condition(self, task: Task, stream: str) -> TextCondition:
        """The caption for every stream if rgb is a target that the conditions do not determine; else the empty caption.

        This gives the published Text->X and Text&X->X tasks the caption, and X->X tasks none. The same rule applies to
        other sets of modalities: see `DETERMINES_RGB`. With `captions = "all"` every task has the caption.
        """
        if self.captions == "all":
            return "caption"
        determined = any(needed <= set(task.conditions) for needed in DETERMINES_RGB)
        return "caption" if "rgb" in task.targets and not determined else "nothing"

    def resolved(self) -> Self:
        """See `Model.resolved`. A frozen base keeps `pretrained`, since its weights are not saved in checkpoints."""
        spelled = super().resolved()
        return spelled if self.train_base else replace(spelled, pretrained=self.pretrained)

    def load(self, device: str) -> Any:
        """The model on `device` in float32, in training mode; only trained parameters require gradients."""

        def build() -> WanStreams:
            if self.layout == "channels":
                return ChannelsTransformer(self.modalities, self.rank, **self.base_options())
            adapters = self.modalities if self.lora == "decoupled" else (SHARED,)
            return UniVidXTransformer(
                self.modalities, adapters, self.rank, self.gated, self.cross_modal, **self.base_options()
            )

        module = build_module(build, self, device, getattr(torch, self.frozen_dtype))
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

    A stream is a condition in samples where its sigma is at most `condition_sigma` (0 unless `condition_noise` is set),
    else a target. Loader and sampler keep the sigmas of target streams above `condition_sigma`.
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
        conditioning = self.embed_conditioning([sigmas[name] for name in names], [text[name] for name in names])
        joint = len(names) if self.config.cross_modal else 1
        tokens = self.through_blocks(
            self.embed(stacked.flatten(0, 1)),
            conditioning.text,
            conditioning.table.flatten(0, 1),
            self.rows(names, sigmas),
            joint,
            *self.rotary(grid),
        )
        velocities = self.unembed(tokens, conditioning.time.flatten(0, 1), grid).unflatten(0, (-1, len(names)))
        return dict(zip(names, velocities.unbind(1), strict=True))

    def rows(self, names: Sequence[str], sigmas: dict[str, torch.Tensor]) -> LoraRouting:
        """The LoRAs that are active on the rows of these streams."""
        adapters = tuple(self.config.adapters)
        own = tuple(names) if adapters != (SHARED,) else adapters
        if not self.config.gated:
            return LoraRouting(own, None)
        is_target = torch.stack([sigmas[name] for name in names], dim=1).flatten() > self.condition_sigma
        return LoraRouting(own, is_target.float()[:, None, None])
