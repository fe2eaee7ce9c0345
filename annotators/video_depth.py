"""Depth that does not flicker: of a network that sees windows of frames, or of single frames that are steadied."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from annotated_types import Ge

from openuni.annotators._depth_anything import PATCH_PX, FrameDepth, original_pixels
from openuni.annotators._depth_stabilization import stabilize_depth
from openuni.annotators._depth_windows import WINDOW, stitch_depth
from openuni.annotators._temporal_consistency import depth_change_share
from openuni.manifests.contracts.checkpoint import Checkpoint
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.inference import inference
from openuni.manifests.errors import OpenUniError
from openuni.manifests.modalities.depth import Depth

WIDEST = 1.78  # clips with longer sides than this ratio go in smaller, as Video-Depth-Anything does it
MAX_UNSCALED_ASPECT = 1.777


class SteadyDepth(NamedTuple):
    """Depth on one scale for the whole clip, and how steady it is."""

    depth: Depth
    flow_change_share: Annotated[
        float | None,
        "change of the disparity (metres: 1 / metres) along the motion: median over the pixels that can be followed, "
        "mean over adjacent frames, as a share of the clip's range (5th to 95th percentile). 0 is steady; null where "
        "nothing can be followed",
    ]
    raw_flow_change_share: Annotated[
        float | None, "the same before single frames were steadied; null for a network that sees windows"
    ]
    aligned_share: Annotated[
        float | None,
        "share of adjacent frames between which scale and shift were found, 0 to 1; null for windows and one frame",
    ]


@dataclass(frozen=True)
class VideoDepth(FrameDepth):
    """Depth of a clip on one scale, at the size of the frames, in one of two ways.

    With `window_network`, a TorchScript file of a network that sees 32 frames at once (such as Video-Depth-Anything,
    exported by you): windows start every 22 frames and are given ten frames of the window before again; scale and
    shift that bring two of these to what they were (least squares) align the window, the other eight are blended, the
    tail is filled up with the last frame. The network maps float32 [1, 32, 3, h, w], normalised as for ImageNet, to
    [1, 32, h, w]; frames go in by the authors' rule (`original`, and smaller where one side is over 1.78 times the
    other), whatever `resize` says. A TorchScript file is a program: use only files of authors you trust.

    Without it, Depth Anything V2 (see `depth_anything` for checkpoint and resize) on every frame, where windows would
    change nothing. Each frame is then brought to the scale and shift (metric checkpoints: the scale) that the frames
    around it have on average, found along the motion of the picture. That removes what changes from frame to frame
    over the whole picture, and nothing else: noise within a frame, and changes slower than `steady_frames`, true or
    false, stay. The mean scale of the clip stays as well, so metres remain metres.

    Disparity (larger is nearer, scale and shift unknown but the same in all frames) or metres; >= 0.
    """

    steady_frames: Annotated[
        float,
        "single frames: over how many frames scale and shift are averaged, standard deviation; 0: not at all",
        Ge(0),
    ] = 8.0
    window_network: Annotated[str, "TorchScript file of a network that sees windows; empty: single frames"] = ""
    window_unit: Annotated[
        Literal["disparity", "metres"], "what `window_network` gives; windows in metres are not aligned"
    ] = "disparity"

    licence: ClassVar[str] = "Apache-2.0"
    origin: ClassVar[str] = "windows: Chen et al. 2025, Video Depth Anything (arXiv:2501.12375); steadying: OpenUni"

    def checkpoints(self) -> Sequence[Checkpoint]:
        """The TorchScript file, or the checkpoint of the network for single frames."""
        return (Checkpoint(self.window_network, "path"),) if self.window_network else super().checkpoints()

    def load(self, device: str) -> Any:
        """The network on `device`. Raises `OpenUniError` for a file that is no TorchScript."""
        if not self.window_network:
            return super().load(device)
        return load_torchscript(self.checkpoints()[0].resolve(), device)

    def run(self, model: Any, clip: DecodedClip) -> SteadyDepth:
        """Depth float32 [T, H, W, 1] at the size of the frames."""
        if self.window_network:
            align = self.window_unit == "disparity"
            values = stitch_depth(
                lambda numbers: self._window(model, clip.frames, numbers), len(clip.frames), align=align
            )
            depth = Depth(values[..., None], unit=self.window_unit)
            return SteadyDepth(depth, depth_change_share(clip, depth), None, None)
        values, unit = self.each_frame(model, clip.frames)
        raw = depth_change_share(clip, Depth(values[..., None], unit=unit))
        aligned = None
        if self.steady_frames and len(values) > 1:
            values, aligned = stabilize_depth(clip, values, self.steady_frames, scale_only=unit == "metres")
        depth = Depth(values[..., None], unit=unit)
        return SteadyDepth(depth, depth_change_share(clip, depth), raw, aligned)

    def _window(self, network: Any, frames: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Frames of these numbers, int64 [32], of uint8 [T, H, W, 3] -> float32 [32, H, W]."""
        import torch

        size = window_input_size(frames.shape[1], frames.shape[2], self.input_size)
        once, places = np.unique(numbers, return_inverse=True)
        pixels = torch.from_numpy(original_pixels(frames[once], size)[places])[None]
        device = next((value.device for value in network.parameters()), torch.device("cpu"))
        with inference(device.type, self.precision):
            raw = network(pixels.to(device))
            if not (isinstance(raw, torch.Tensor) and raw.shape[:2] == (1, WINDOW) and raw.ndim == 4):
                given = tuple(raw.shape) if isinstance(raw, torch.Tensor) else type(raw).__name__
                raise OpenUniError(
                    f"{self.window_network} gave {given} for 1 x {WINDOW} frames; it must map [1, {WINDOW}, 3, h, w] "
                    f"to [1, {WINDOW}, h, w]. Export the network with such a forward."
                )
            shape = frames.shape[1:3]
            depth = torch.nn.functional.interpolate(raw[0][:, None].float(), shape, mode="bilinear", align_corners=True)
        result: np.ndarray = depth[:, 0].cpu().numpy()
        return result


def window_input_size(height_px: int, width_px: int, input_size: int) -> int:
    """`input_size`, or less for clips with one side over 1.78 times the other: a multiple of 14, at least 14."""
    ratio = max(height_px, width_px) / min(height_px, width_px)
    if ratio <= WIDEST:
        return input_size
    return max(PATCH_PX, round(int(input_size * MAX_UNSCALED_ASPECT / ratio) / PATCH_PX) * PATCH_PX)


def load_torchscript(path: Path, device: str) -> Any:
    """A TorchScript network on `device`; raises `OpenUniError` for any other file."""
    import torch

    try:
        return torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise OpenUniError(
            f"{path} is not a TorchScript file: {str(error).splitlines()[0][:200]}. Save one with torch.jit.save."
        ) from error
