"""Depth from single frames by Depth Anything V2, in transformers' implementation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np

from manifests.checkpoint import Checkpoint, published_or_path
from manifests.clip import DecodedClip
from manifests.errors import OpenUniError
from manifests.inference import Precision, inference
from manifests.modalities.depth import Depth
from manifests.operator import Annotator

PATCH_PX = 14  # of the DINOv2 encoder
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406])
IMAGENET_STD = np.array([0.229, 0.224, 0.225])


class DepthOfClip(NamedTuple):
    """Depth of every frame as the network gives it, and how much it changes over time."""

    depth: Depth
    frame_change_ratio: Annotated[
        float | None,
        "mean absolute change between adjacent frames divided by the clip's mean value: flicker and true motion "
        "together; null for a clip of one frame",
    ]


SMALL_SHA256 = "3152477ce0d8d6978d76b995120de97cb5b928701fd0f817769f59e249a16b70"


@dataclass(frozen=True)
class DepthAnything(Annotator):
    """Depth of every frame on its own, at the size of the frames, never normalised per frame.

    Relative checkpoints give disparity: larger is nearer, 0 is infinitely far, scale and shift are unknown. Metric
    checkpoints give metres. Which one it is stands in the checkpoint's configuration.

    Two resize rules exist and differ visibly on frames whose short side is not 518. `transformers`: scaled as
    little as possible until one side is `input_size`, antialiased cubic. `original` (the authors' code): until the
    short side is at least `input_size`, cubic without antialiasing, at more cost for wide frames. The network is
    transformers' in both cases; it interpolates position codes to an exact size, which by itself moves the result
    by some tenths of a percent from the authors' code where the input is not square.
    """

    checkpoint: Annotated[str, "Hugging Face name or path of a Depth Anything checkpoint in transformers' format"] = (
        "depth-anything/Depth-Anything-V2-Small-hf"
    )
    resize: Annotated[Literal["transformers", "original"], "resize rule, see above"] = "transformers"
    input_size: Annotated[int, "side of the network's input that the rule aims at, pixels, a multiple of 14"] = 518
    frames_per_batch: Annotated[int, "frames in one forward pass, at least 1"] = 8
    precision: Annotated[Precision, "fp32, or bf16 autocast"] = "fp32"

    gpus: ClassVar[float] = 0.25
    licence: ClassVar[str] = "Apache-2.0"
    origin: ClassVar[str] = "Yang et al. 2024 (arXiv:2406.09414); transformers.DepthAnythingForDepthEstimation"

    def __post_init__(self) -> None:
        for option, allowed in (("resize", ("transformers", "original")), ("precision", ("fp32", "bf16"))):
            if getattr(self, option) not in allowed:
                given = f'depth_anything: {option} = "{getattr(self, option)}"'
                raise OpenUniError(f"{given}. Allowed: {', '.join(allowed)}.")
        if self.input_size < PATCH_PX or self.input_size % PATCH_PX:
            raise OpenUniError(f"depth_anything: input_size = {self.input_size}. Allowed: multiples of 14.")
        if self.frames_per_batch < 1:
            raise OpenUniError(f"depth_anything: frames_per_batch = {self.frames_per_batch}. Allowed: 1 and more.")

    def checkpoints(self) -> Sequence[Checkpoint]:
        """The one checkpoint."""
        return (published_or_path(self.checkpoint, self.published()),)

    @classmethod
    def published(cls) -> tuple[Checkpoint, ...]:
        """The authors' models; only the small ones are free for commercial use."""
        kinds = ("", "Metric-Indoor-", "Metric-Outdoor-")
        return tuple(
            Checkpoint(
                f"depth-anything/Depth-Anything-V2-{kind}{size}-hf",
                "hub",
                "Apache-2.0" if size == "Small" else "CC-BY-NC-4.0",
                size_mb={"Small": 99.2, "Base": 390.0, "Large": 1341.4}[size],
                sha256=SMALL_SHA256 if (kind, size) == ("", "Small") else "",
                only=("*.json", "model.safetensors"),
            )
            for kind in kinds
            for size in ("Small", "Base", "Large")
        )

    def load(self, device: str) -> Any:
        """Network on `device` and its image processor. Raises `OpenUniError` for another kind of checkpoint."""
        from transformers import AutoConfig, AutoImageProcessor, AutoModelForDepthEstimation

        folder = self.checkpoints()[0].resolve()
        only_data = {"local_files_only": True, "trust_remote_code": False}  # no download, no code from the folder
        try:
            kind = getattr(AutoConfig.from_pretrained(folder, **only_data), "depth_estimation_type", None)
            if kind not in ("relative", "metric"):
                raise ValueError('config.json has no `depth_estimation_type` of "relative" or "metric"')
            processor = AutoImageProcessor.from_pretrained(folder, **only_data)
            network = AutoModelForDepthEstimation.from_pretrained(folder, **only_data)
        except (OSError, ValueError) as error:
            raise OpenUniError(
                f"{folder} is not a Depth Anything checkpoint in transformers' format: {error}. Give one such as "
                "depth-anything/Depth-Anything-V2-Small-hf."
            ) from error
        return network.eval().to(device), processor

    def run(self, model: Any, clip: DecodedClip) -> DepthOfClip:
        """Raw depth, float32 [T, H, W, 1] at the size of the frames."""
        network, processor = model
        step = self.frames_per_batch
        starts = range(0, len(clip.frames), step)
        depth = np.concatenate([self._batch(network, processor, clip.frames[i : i + step]) for i in starts])
        unit: Literal["metres", "disparity"] = (
            "metres" if network.config.depth_estimation_type == "metric" else "disparity"
        )
        return DepthOfClip(Depth(depth[..., None], unit=unit), _frame_change_ratio(depth))

    def _batch(self, network: Any, processor: Any, frames: np.ndarray) -> np.ndarray:
        """uint8 [B, H, W, 3] -> float32 [B, H, W]."""
        import torch

        original = self.resize == "original"
        pixels = _original_pixels(frames, self.input_size) if original else self._processed(processor, frames)
        device = next(network.parameters()).device
        with inference(device.type, self.precision):
            raw = network(pixel_values=torch.from_numpy(pixels).to(device)).predicted_depth.float()
            # bilinear, as the authors: the cubic of transformers' post-processing overshoots below 0 at edges
            size = frames.shape[1:3]
            depth = torch.nn.functional.interpolate(raw[:, None], size, mode="bilinear", align_corners=original)
        result: np.ndarray = depth[:, 0].cpu().numpy()
        return result

    def _processed(self, processor: Any, frames: np.ndarray) -> np.ndarray:
        """uint8 [B, H, W, 3] -> float32 [B, 3, h, w] by the checkpoint's own image processor."""
        size = {"height": self.input_size, "width": self.input_size}
        # channels-last copies: the processor may not write to the clip, nor guess the layout
        images = processor(list(frames.copy()), size=size, input_data_format="channels_last", return_tensors="np")
        pixels: np.ndarray = images["pixel_values"]
        return pixels


def original_size(height_px: int, width_px: int, input_size: int) -> tuple[int, int]:
    """Height and width of the network's input by the authors' rule: both sides >= `input_size`, multiples of 14."""
    scale = max(input_size / height_px, input_size / width_px)

    def patches(side_px: int) -> int:
        nearest = round(scale * side_px / PATCH_PX) * PATCH_PX
        return nearest if nearest >= input_size else math.ceil(scale * side_px / PATCH_PX) * PATCH_PX

    return patches(height_px), patches(width_px)


def _original_pixels(frames: np.ndarray, input_size: int) -> np.ndarray:
    """uint8 [B, H, W, 3] -> float32 [B, 3, h, w], resized and normalised as the authors do it."""
    import cv2

    height_px, width_px = original_size(frames.shape[1], frames.shape[2], input_size)
    scaled = [
        cv2.resize(frame / 255.0, (width_px, height_px), interpolation=cv2.INTER_CUBIC) for frame in frames
    ]  # float64, as theirs until the very end
    normalised = (np.stack(scaled) - IMAGENET_MEAN) / IMAGENET_STD
    return np.ascontiguousarray(normalised.transpose(0, 3, 1, 2), dtype=np.float32)


def _frame_change_ratio(depth: np.ndarray) -> float | None:
    """Mean |d(t+1) - d(t)| over mean d of `depth`, float32 [T, H, W]; None when there is nothing to compare."""
    mean = float(depth.mean(dtype=np.float64))
    if len(depth) < 2 or mean == 0:
        return None
    changes = [float(np.abs(after - before).mean()) for before, after in pairwise(depth)]
    return float(np.mean(changes)) / mean
