"""UniVidX ablation: streams concatenated on channels, in one sequence with the length of one stream."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import nn

from openuni.training.backbone.lora import LoraRouting
from openuni.training.backbone.wan import WanStreams
from openuni.training.model import Streams
from openuni.training.models._unividx_blocks import SHARED, UniVidXBlock


class ChannelsTransformer(WanStreams):
    """See `UniVidX` (`layout = "channels"`) and `openuni.training.model.VideoModel`.

    Base parameters keep their names. Additions: one shared, always active LoRA on every block, since streams share
    their tokens; the input and output layers of each non-rgb stream; and per stream a vector, added to all tokens
    times 1 - sigma, the signal fraction of the stream (a constant extra input channel). It lets the model distinguish
    condition, target and absent streams. B of the LoRA and all other additions are zero-initialized.
    """

    _no_split_modules: ClassVar[list[str]] = ["UniVidXBlock"]
    _repeated_blocks: ClassVar[list[str]] = ["UniVidXBlock"]

    def __init__(
        self, modalities: Sequence[str] = ("rgb", "depth"), rank: int = 32, num_layers: int = 40, **base: Any
    ) -> None:
        super().__init__(modalities, num_layers, **base)
        self.register_to_config(adapters=(SHARED,), rank=rank)
        patch = self.patch
        self.blocks = nn.ModuleList(
            UniVidXBlock(self.dim, *self.block_sizes, adapters=(SHARED,), rank=rank) for _ in range(num_layers)
        )
        others = [name for name in modalities if name != "rgb"]
        values = self.channels * patch[0] * patch[1] * patch[2]  # per token and stream
        self.channels_in = nn.ModuleDict(
            {name: nn.Conv3d(self.channels, self.dim, patch, patch, bias=False) for name in others}
        )
        self.channels_out = nn.ModuleDict({name: nn.Linear(self.dim, values) for name in others})
        self.signal = nn.ParameterDict({name: nn.Parameter(torch.zeros(self.dim)) for name in modalities})
        for parameter in (*self.channels_in.parameters(), *self.channels_out.parameters()):
            nn.init.zeros_(parameter)

    @classmethod
    def is_added(cls, name: str) -> bool:
        """See `WanStreams.is_added`."""
        return ".lora_" in name or name.startswith(("channels_in.", "channels_out.", "signal."))

    def forward(self, streams: Streams, sigmas: dict[str, torch.Tensor], text: dict[str, torch.Tensor]) -> Streams:
        """Velocities of all streams, [B, C, T, H, W] by modality; see `openuni.training.model.VideoModel`.

        The sequence has one modulation, that of the maximum sigma among a sample's streams (the target sigma if it is
        shared), and attends to one text, that of the first stream, since in UniVidX all streams have the same text.
        """
        names = self.check_streams(streams)
        grid = self.grid(streams[names[0]])
        highest = torch.stack([sigmas[name] for name in names]).amax(dim=0)
        conditioning = self.embed_conditioning([highest], [text[names[0]]])
        tokens = self.through_blocks(
            self.joint_tokens(streams, sigmas, names),
            conditioning.text,
            conditioning.table[:, 0],
            LoraRouting((SHARED,), None),
            1,
            *self.rotary(grid),
        )
        return {name: self.unembed(tokens, conditioning.time[:, 0], grid, self.output(name)) for name in names}

    def joint_tokens(self, streams: Streams, sigmas: dict[str, torch.Tensor], names: Sequence[str]) -> torch.Tensor:
        """Tokens [B, S, D] of all streams: one input layer over their concatenated channels, as a sum of parts.

        Absent streams are zeros in the concatenation, so their parts are omitted.
        """
        rgb = streams["rgb"] if "rgb" in names else torch.zeros_like(streams[names[0]])
        tokens = self.embed(rgb)
        for name in names:
            if name != "rgb":
                tokens = tokens + self.embed(streams[name], self.channels_in[name])
            tokens = tokens + ((1 - sigmas[name])[:, None] * self.signal[name])[:, None].to(tokens.dtype)
        return tokens

    def output(self, name: str) -> Any:
        """Output layer of one stream, for `unembed`; the modulation before it is shared."""
        if name == "rgb":
            return self
        return SimpleNamespace(scale_shift_table=self.scale_shift_table, proj_out=self.channels_out[name])
