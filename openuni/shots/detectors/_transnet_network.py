"""The TransNetV2 network, with the parameter names of its published PyTorch weights."""

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor

HEIGHT_PX, WIDTH_PX = 27, 48
DILATIONS = (1, 2, 4, 8)  # temporal dilations of the four parallel convolutions
FILTERS = (16, 32, 64)  # of each of the four, by stage
LOOKUP_FRAMES = 101  # number of surrounding frames that a frame is compared with
BINS = 8  # histogram bins per channel


class SeparableConv(nn.Module):
    """A spatial 3 x 3 convolution, then a temporal one over 3 frames with `dilation`."""

    def __init__(self, channels: int, filters: int, dilation: int) -> None:
        super().__init__()
        space = nn.Conv3d(channels, 2 * filters, (1, 3, 3), padding=(0, 1, 1), bias=False)
        time = nn.Conv3d(
            2 * filters, filters, (3, 1, 1), dilation=(dilation, 1, 1), padding=(dilation, 0, 0), bias=False
        )
        self.layers = nn.ModuleList([space, time])

    def forward(self, x: "Tensor") -> "Tensor":
        """[B, channels, T, H, W] -> [B, filters, T, H, W]."""
        return self.layers[1](self.layers[0](x))


class DilatedConvs(nn.Module):
    """Four parallel convolutions of different temporal extent, normalized together."""

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        for dilation in DILATIONS:
            self.add_module(f"Conv3D_{dilation}", SeparableConv(channels, filters, dilation))
        self.bn = nn.BatchNorm3d(len(DILATIONS) * filters, eps=1e-3)

    def forward(self, x: "Tensor") -> "Tensor":
        """[B, channels, T, H, W] -> [B, 4 * filters, T, H, W]."""
        reaches = [self.get_submodule(f"Conv3D_{dilation}")(x) for dilation in DILATIONS]
        return functional.relu(self.bn(torch.cat(reaches, dim=1)))


class Stage(nn.Module):
    """Two `DilatedConvs`, the second with a shortcut, then pooling to half the height and width."""

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        wide = len(DILATIONS) * filters
        self.DDCNN = nn.ModuleList([DilatedConvs(channels, filters), DilatedConvs(wide, filters)])

    def forward(self, x: "Tensor") -> "Tensor":
        """[B, channels, T, H, W] -> [B, 4 * filters, T, H / 2, W / 2], rounded down."""
        first = self.DDCNN[0](x)
        return functional.avg_pool3d(self.DDCNN[1](first) + first, (1, 2, 2))


class Similarity(nn.Module):
    """Similarities of a frame to the 101 around it, as 128 features."""

    def __init__(self, channels: int | None = None) -> None:
        super().__init__()
        if channels is not None:
            self.projection = nn.Linear(channels, 128)
        self.fc = nn.Linear(LOOKUP_FRAMES, 128)

    def forward(self, x: "Tensor") -> "Tensor":
        """[B, T, channels] -> [B, T, 128]; similarities to frames beyond the ends are 0."""
        x = functional.normalize(self.projection(x) if hasattr(self, "projection") else x, dim=2)
        count, half = x.shape[1], LOOKUP_FRAMES // 2
        similarities = functional.pad(x @ x.transpose(1, 2), (half, half))
        around = torch.arange(count, device=x.device)[:, None] + torch.arange(LOOKUP_FRAMES, device=x.device)
        return functional.relu(self.fc(similarities.gather(2, around.expand(len(x), -1, -1))))


class TransNetV2(nn.Module):
    """TransNetV2 (Soucek and Lokoc 2020). Two logits per frame: last frame of a shot; part of a transition."""

    def __init__(self) -> None:
        super().__init__()
        wide = [len(DILATIONS) * filters for filters in FILTERS]
        self.SDDCNN = nn.ModuleList(
            Stage(channels, filters) for channels, filters in zip((3, *wide[:-1]), FILTERS, strict=True)
        )
        self.frame_sim_layer = Similarity(sum(wide))
        self.color_hist_layer = Similarity()
        self.fc1 = nn.Linear(wide[-1] * 3 * 6 + 128 + 128, 1024)  # 27 x 48 halved three times is 3 x 6
        self.cls_layer1 = nn.Linear(1024, 1)
        self.cls_layer2 = nn.Linear(1024, 1)

    def forward(self, frames: "Tensor") -> tuple["Tensor", "Tensor"]:
        """uint8 [B, T, 27, 48, 3] RGB -> two float32 [B, T]. Raises `ValueError` for other input."""
        if frames.dtype != torch.uint8 or frames.ndim != 5 or frames.shape[2:] != (HEIGHT_PX, WIDTH_PX, 3):
            raise ValueError(f"frames must be uint8 [B, T, 27, 48, 3], got {frames.dtype} {list(frames.shape)}")
        x = frames.permute(0, 4, 1, 2, 3).float() / 255
        means = []
        for stage in self.SDDCNN:
            x = stage(x)
            means.append(x.mean(dim=(3, 4)).transpose(1, 2))
        pixels = x.permute(0, 2, 3, 4, 1).flatten(2)
        similarities, coloured = (
            self.frame_sim_layer(torch.cat(means, dim=2)),
            self.color_hist_layer(histograms(frames)),
        )
        x = functional.relu(self.fc1(torch.cat([coloured, similarities, pixels], dim=2)))
        return self.cls_layer1(x)[..., 0], self.cls_layer2(x)[..., 0]


def histograms(frames: "Tensor") -> "Tensor":
    """Pixel counts per colour, uint8 [B, T, H, W, 3] -> float32 [B, T, 512]."""
    levels = (frames // (256 // BINS)).long()
    colours = ((levels[..., 0] * BINS + levels[..., 1]) * BINS + levels[..., 2]).flatten(2)
    counts = torch.zeros(*colours.shape[:2], BINS**3, device=frames.device)
    return counts.scatter_add_(2, colours, torch.ones_like(colours, dtype=counts.dtype))
