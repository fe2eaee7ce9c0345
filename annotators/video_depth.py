"""Temporally consistent depth: from a video network with windows, or from single frames with stabilization."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from annotated_types import Ge

from openuni.annotators._depth_anything import PATCH_PX, DepthUnit, FrameDepth, original_pixels, without_zero_metres
from openuni.annotators._depth_stabilization import stabilize_depth
from openuni.annotators._depth_windows import WINDOW, stitch_depth, windows_of
from openuni.annotators._guide_flow import guide_flow_in_background
from openuni.annotators._temporal_consistency import depth_change_share
from openuni.manifests.contracts.checkpoint import Checkpoint
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.device_batches import each_batch
from openuni.manifests.contracts.inference import inference
from openuni.manifests.contracts.options import Formerly
from openuni.manifests.errors import OpenUniError
from openuni.manifests.modalities.depth import Depth

WIDEST = 1.78  # clips with a larger aspect ratio are processed at a smaller size, as in Video-Depth-Anything
MAX_UNSCALED_ASPECT = 1.777


class SteadyDepth(NamedTuple):
    """Depth with one scale for the whole clip, and temporal consistency scores."""

    depth: Depth
    flow_change_share: Annotated[
        float | None,
        "change of the disparity (1 / metres for metric depth) along the optical flow: median over pixels with valid "
        "flow, mean over adjacent frames, as a fraction of the clip's range (5th to 95th percentile); 0 is fully "
        "consistent; null without valid flow",
    ]
    raw_flow_change_share: Annotated[
        float | None, "flow_change_share before stabilization of single frames; null with window_network"
    ]
    aligned_share: Annotated[
        float | None,
        "fraction of adjacent frame pairs with a successful scale and shift fit, 0 to 1; null with window_network, "
        "without stabilization and for a clip of one frame",
    ]


@dataclass(frozen=True)
class VideoDepth(FrameDepth):
    """Depth of a clip with one scale, at the size of the frames, by one of two methods.

    With `window_network`, the TorchScript file of a network with a window of 32 frames (such as your own export of
    Video-Depth-Anything): windows start every 22 frames and repeat ten frames of the previous window. Two of these
    determine the scale and shift that align the window (least squares), the other eight are blended. The last window is
    padded with the last frame. The network maps float32 [1, 32, 3, h, w], with ImageNet normalization, to [1, 32, h,
    w]. Frames are resized by the authors' rule (`original`, and smaller for aspect ratios above 1.78), regardless of
    `resize`. TorchScript is executable: load only files from authors that you trust.

    Without it, Depth Anything V2 runs on every frame (see `depth_anything` for checkpoint and resizing). Each frame is
    then mapped to the average scale and shift (metric checkpoints: scale) of the frames around it, estimated along the
    optical flow. This removes global flicker only. Noise within a frame and changes slower than `stabilization_frames`
    remain. The mean scale of the clip is preserved, so metric depth remains metric.

    Disparity (larger is nearer, scale and shift unknown but the same in all frames; >= 0) or metres (> 0). Metres of
    exactly 0, as networks with a final ReLU predict, become 1 mm, or the smallest other value of the clip if less.
    """

    stabilization_frames: Annotated[
        float,
        "temporal smoothing of scale and shift (single frames): standard deviation of the Gaussian, frames; 0 disables",
        Ge(0),
        Formerly("steady_frames"),
    ] = 8.0
    window_network: Annotated[
        str, "path of the TorchScript file of a video network with windows; empty: single frames"
    ] = ""
    window_unit: Annotated[
        Literal["disparity", "metres"], "unit of the output of `window_network`; windows in metres are not aligned"
    ] = "disparity"

    licence: ClassVar[str] = "Apache-2.0"
    origin: ClassVar[str] = "windows: Chen et al. 2025, Video Depth Anything (arXiv:2501.12375); stabilization: OpenUni"

    def checkpoints(self) -> Sequence[Checkpoint]:
        """The TorchScript file, or the checkpoint of the single-frame network."""
        return (Checkpoint(self.window_network, "path"),) if self.window_network else super().checkpoints()

    def load(self, device: str) -> Any:
        """Load the network on `device`. Raises `OpenUniError` for a file that is not TorchScript."""
        if not self.window_network:
            return super().load(device)
        return load_torchscript(self.checkpoints()[0].resolve(), device)

    def run(self, model: Any, clip: DecodedClip) -> SteadyDepth:
        """Predict depth, float32 [T, H, W, 1] at the size of the frames."""
        with guide_flow_in_background(clip):  # for scores and stabilization
            values, unit = self._windows(model, clip) if self.window_network else self.each_frame(model, clip.frames)
        found = depth_change_share(clip, Depth(values[..., None], unit=unit))
        if self.window_network:
            return SteadyDepth(Depth(values[..., None], unit=unit), found, None, None)
        aligned = None
        if self.stabilization_frames and len(values) > 1:
            values, aligned = stabilize_depth(clip, values, self.stabilization_frames, scale_only=unit == "metres")
        depth = Depth(values[..., None], unit=unit)
        return SteadyDepth(depth, depth_change_share(clip, depth), found, aligned)

    def _windows(self, network: Any, clip: DecodedClip) -> tuple[np.ndarray, DepthUnit]:
        """Depth of a video network: values float32 [T, H, W], and their unit."""
        import torch

        count, height_px, width_px = clip.frames.shape[:3]
        input_size = window_input_size(height_px, width_px, self.input_size)
        device = next((value.device for value in network.parameters()), torch.device("cpu"))

        def pixels(numbers: np.ndarray) -> np.ndarray:
            once, places = np.unique(numbers, return_inverse=True)
            found: np.ndarray = original_pixels(clip.frames[once], input_size)[places]
            return found

        def compute(given: Any) -> Any:
            with inference(device.type, self.precision):
                return self._window(network, given[None], (height_px, width_px))

        align = self.window_unit == "disparity"
        batches = ((pixels(numbers),) for numbers in windows_of(count))
        values = stitch_depth(each_batch(device, batches, compute), count, align=align)
        return values if align else without_zero_metres(values), self.window_unit

    def _window(self, network: Any, pixels: Any, size_px: tuple[int, int]) -> Any:
        """Depth float32 [32, H, W] of the network's input, float32 [1, 32, 3, h, w]."""
        import torch

        raw = network(pixels)
        if not (isinstance(raw, torch.Tensor) and raw.shape[:2] == (1, WINDOW) and raw.ndim == 4):
            given = tuple(raw.shape) if isinstance(raw, torch.Tensor) else type(raw).__name__
            raise OpenUniError(
                f"{self.window_network} returned {given} for 1 x {WINDOW} frames; it must map "
                f"[1, {WINDOW}, 3, h, w] to [1, {WINDOW}, h, w]. Export the network with such a forward method."
            )
        interpolate = torch.nn.functional.interpolate
        return interpolate(raw[0][:, None].float(), size_px, mode="bilinear", align_corners=True)[:, 0]


def window_input_size(height_px: int, width_px: int, input_size: int) -> int:
    """Input size of a window: `input_size`, reduced for aspect ratios above 1.78 to a multiple of 14, at least 14."""
    ratio = max(height_px, width_px) / min(height_px, width_px)
    if ratio <= WIDEST:
        return input_size
    return max(PATCH_PX, round(int(input_size * MAX_UNSCALED_ASPECT / ratio) / PATCH_PX) * PATCH_PX)


def load_torchscript(path: Path, device: str) -> Any:
    """Load a TorchScript network on `device`. Raises `OpenUniError` for other files."""
    import torch

    try:
        return torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise OpenUniError(
            f"{path} is not a TorchScript file: {str(error).splitlines()[0][:200]}. Save the network with "
            "torch.jit.save."
        ) from error
