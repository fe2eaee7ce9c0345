"""RAFT (torchvision's network) over the adjacent frames of a clip.

torchvision's `forward` takes two images. Over a clip with both directions it would encode every frame four times for
features and twice for context, predict an upsampling mask in every iteration though only the last one is used, and copy
coordinates from the host in every iteration, for which the host waits until the GPU is idle. Here every frame is
encoded once, the correlation of a pair serves both directions, and nothing is copied between device and host.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from openuni.manifests.contracts.device_batches import each_batch
from openuni.manifests.contracts.inference import Precision, inference

STRIDE_PX = 8  # of the feature maps
MIN_SIDE_PX = 128  # below this, the top of the correlation pyramid has fewer than two cells and gives NaN
CORRELATION_BYTES = 6e9  # of the pairs that are computed together; one pair of 1920 x 1080 has 5.6e9
PYRAMID_SHARE = 4 / 3  # size of a pyramid relative to its first level


class Encoded(NamedTuple):
    """What the network needs of frames: float tensors [n, C, h, w] at an eighth of the size."""

    features: Any
    hidden: Any  # initial state of the recurrent unit, if the frame is the first of a pair
    context: Any

    def part(self, start: int | None, stop: int | None) -> "Encoded":
        """The frames from `start` to `stop`, as in a slice."""
        return Encoded(*(value[start:stop] for value in self))


class RaftPairs:
    """Flow of a clip's adjacent frames, in batches; a network's pass over one clip.

    `both`: also the backward flow. `pairs_per_batch`: upper bound of the pairs in a forward pass. Fewer are computed
    together if their correlation would exceed `CORRELATION_BYTES`.
    """

    def __init__(self, network: Any, iterations: int, precision: Precision, both: bool, pairs_per_batch: int) -> None:
        self.network, self.iterations, self.precision = network, iterations, precision
        self.both, self.pairs_per_batch = both, pairs_per_batch
        self.last: Encoded | None = None  # of the last frame before

    def __call__(self, frames: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """See `AdjacentFlow`."""
        device = next(self.network.parameters()).device
        count, step = len(frames) - 1, self.pairs_per_batch
        size_px = frames.shape[1:3]
        known = self.last is not None
        batches = (
            (frames[start + (known or start > 0) : start + step + 1],) for start in range(0, count, step)
        )  # the first frame of a batch is the last one of the batch before

        def compute(images: Any) -> Any:
            with inference(device.type, self.precision):
                return self._batch(as_input(images, *size_px), *size_px)

        for found in each_batch(device, batches, compute):
            yield found if self.both else (found, None)

    def _batch(self, images: Any, height_px: int, width_px: int) -> Any:
        """Flow float32 [n, H, W, 2] between the frame before and the first of the images, the first and the second, ...

        With `both`: forward and backward flow.
        """
        import torch

        frames = self._encoded(images)
        if self.last is not None:
            frames = Encoded(*(torch.cat(pair) for pair in zip(self.last, frames, strict=True)))
        self.last = Encoded(*(value[-1:].clone() for value in frames))
        cells = frames.features.shape[-2] * frames.features.shape[-1]
        together = max(1, int(CORRELATION_BYTES // (cells**2 * 4 * PYRAMID_SHARE)))
        flows = [
            self._pairs(frames.part(start, start + together + 1))
            for start in range(0, len(frames.features) - 1, together)
        ]
        (left, _), (top, _) = split_padding(width_px), split_padding(height_px)

        def cropped(direction: tuple[Any, ...]) -> Any:
            flow = torch.cat(direction)[:, :, top : top + height_px, left : left + width_px]
            return flow.permute(0, 2, 3, 1).contiguous()

        found = tuple(cropped(direction) for direction in zip(*flows, strict=True))
        return found if self.both else found[0]

    def _encoded(self, images: Any) -> Encoded:
        """The network's encoders on float32 [n, 3, H, W]."""
        import torch

        split = self.network.update_block.hidden_state_size
        context = self.network.context_encoder(images)
        return Encoded(
            self.network.feature_encoder(images), torch.tanh(context[:, :split]), torch.relu(context[:, split:])
        )

    def _pairs(self, frames: Encoded) -> tuple[Any, ...]:
        """Forward flow of adjacent frames, and with `both` backward flow: float32 [n, 2, H, W] each, padded."""
        correlation = self.network.corr_block
        correlation.build_pyramid(frames.features[:-1], frames.features[1:])
        forward = self._iterated(frames.part(None, -1))
        if not self.both:
            return (forward,)
        correlation.transpose()
        return forward, self._iterated(frames.part(1, None))

    def _iterated(self, first: Encoded) -> Any:
        """Flow float32 [n, 2, H, W] from these frames, by the correlation that has been built."""
        import torch
        from torchvision.models.optical_flow._utils import make_coords_grid, upsample_flow

        network, hidden = self.network, first.hidden
        count, _, height, width = first.features.shape
        start = make_coords_grid(count, height, width, device=first.features.device)
        coords = start
        for _ in range(self.iterations):
            found = network.corr_block.index_pyramid(coords)
            hidden, change = network.update_block(hidden, first.context, found, coords - start)
            coords = coords + change
        mask = None if network.mask_predictor is None else network.mask_predictor(hidden)
        flow: torch.Tensor = upsample_flow(flow=coords - start, up_mask=mask)
        return flow.float()


def as_input(frames: Any, height_px: int, width_px: int) -> Any:
    """Images float32 [n, 3, H, W] in -1..1, padded, from uint8 [n, H, W, 3]."""
    import torch

    images = frames.permute(0, 3, 1, 2).float().contiguous()
    images = images.div(255).sub(0.5).div(0.5)  # rounded in the same order as torchvision's transform
    return torch.nn.functional.pad(images, (*split_padding(width_px), *split_padding(height_px)), mode="replicate")


def split_padding(side_px: int) -> tuple[int, int]:
    """Padding before and after a side, to a multiple of 8 and at least 128 px; an odd pixel is added after."""
    padded_px = max(MIN_SIDE_PX, -(-side_px // STRIDE_PX) * STRIDE_PX)
    before = (padded_px - side_px) // 2
    return before, padded_px - side_px - before


def correlation_block(radius: int) -> Any:
    """torchvision's correlation block without copies between host and device, in float32 also under autocast."""
    import torch
    from torchvision.models.optical_flow.raft import CorrBlock

    class DeviceCorrBlock(CorrBlock):
        """Bit-identical to torchvision's block; 16 bits would not suffice for the correlation."""

        def build_pyramid(self, fmap1: torch.Tensor, fmap2: torch.Tensor) -> None:
            self.corr_pyramid: list[torch.Tensor] = []  # frees that of the pairs before
            with torch.autocast(fmap1.device.type, enabled=False):
                super().build_pyramid(fmap1.float(), fmap2.float())

        def _compute_corr_volume(self, fmap1: torch.Tensor, fmap2: torch.Tensor) -> torch.Tensor:
            count, channels, height, width = fmap1.shape
            volume = torch.matmul(fmap1.flatten(2).transpose(1, 2), fmap2.flatten(2))
            volume.div_(torch.sqrt(torch.tensor(channels)))  # in place: it is the largest tensor by far
            return volume.view(count, height, width, 1, height, width)

        def transpose(self) -> None:
            """Exchange first and second images."""
            volume = self.corr_pyramid[0]
            cells = volume.shape[-2] * volume.shape[-1]
            swapped = volume.view(-1, cells, cells).transpose(1, 2).contiguous().view(volume.shape)
            self.corr_pyramid = [swapped]
            for _ in range(self.num_levels - 1):
                self.corr_pyramid.append(torch.nn.functional.avg_pool2d(self.corr_pyramid[-1], 2, stride=2))

        def index_pyramid(self, centroids_coords: torch.Tensor) -> torch.Tensor:
            count, _, height, width = centroids_coords.shape
            side, device = 2 * self.radius + 1, centroids_coords.device
            offsets = torch.linspace(-self.radius, self.radius, side, device=device)
            centres = centroids_coords.permute(0, 2, 3, 1).reshape(-1, 2, 1)
            found = []
            for level in self.corr_pyramid:
                rows, columns = level.shape[-2:]
                places = (centres + offsets).mul_(2)  # [n, (x, y), side], scaled to -1..1 as in torchvision
                places[:, 0].div_(columns - 1)
                places[:, 1].div_(rows - 1)
                places.sub_(1)
                x = places[:, 0, :, None].expand(-1, side, side)
                y = places[:, 1, None, :].expand(-1, side, side)
                grid = torch.stack([x, y], dim=-1)
                sampled = torch.nn.functional.grid_sample(level, grid, mode="bilinear", align_corners=True)
                found.append(sampled.view(count, height, width, -1))
                centres = centres / 2
            return torch.cat(found, dim=-1).permute(0, 3, 1, 2).contiguous()

    return DeviceCorrBlock(num_levels=4, radius=radius)
