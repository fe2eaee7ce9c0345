"""Depth Anything V2 on single frames, in transformers' implementation: for `depth_anything` and `video_depth`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from annotated_types import Ge, MultipleOf

from openuni.manifests.contracts.checkpoint import Checkpoint, published_or_path
from openuni.manifests.contracts.inference import Precision, inference
from openuni.manifests.contracts.operator import Annotator
from openuni.manifests.errors import OpenUniError

PATCH_PX = 14  # of the DINOv2 encoder
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406])
IMAGENET_STD = np.array([0.229, 0.224, 0.225])
SMALL_SHA256 = "3152477ce0d8d6978d76b995120de97cb5b928701fd0f817769f59e249a16b70"

DepthUnit = Literal["disparity", "metres"]


@dataclass(frozen=True)
class FrameDepth(Annotator):
    """What the annotators that run Depth Anything share: checkpoint, resize rule, batches."""

    checkpoint: Annotated[str, "Hugging Face name or path of a Depth Anything checkpoint in transformers' format"] = (
        "depth-anything/Depth-Anything-V2-Small-hf"
    )
    resize: Annotated[Literal["transformers", "original"], "resize rule, see above"] = "transformers"
    input_size: Annotated[
        int, "side of the network's input that the rule aims at, pixels", Ge(PATCH_PX), MultipleOf(PATCH_PX)
    ] = 518
    frames_per_batch: Annotated[int, "frames in one forward pass", Ge(1)] = 8
    precision: Annotated[Precision, "fp32, or bf16 autocast"] = "fp32"

    gpus: ClassVar[float] = 0.25
    licence: ClassVar[str] = "Apache-2.0"

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

    def each_frame(self, model: Any, frames: np.ndarray) -> tuple[np.ndarray, DepthUnit]:
        """uint8 [T, H, W, 3] -> raw depth float32 [T, H, W] of every frame on its own, and its unit."""
        network, processor = model
        step = self.frames_per_batch
        starts = range(0, len(frames), step)
        depth = np.concatenate([self._batch(network, processor, frames[i : i + step]) for i in starts])
        return depth, "metres" if network.config.depth_estimation_type == "metric" else "disparity"

    def _batch(self, network: Any, processor: Any, frames: np.ndarray) -> np.ndarray:
        """uint8 [B, H, W, 3] -> float32 [B, H, W]."""
        import torch

        original = self.resize == "original"
        pixels = original_pixels(frames, self.input_size) if original else self._processed(processor, frames)
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


def original_pixels(frames: np.ndarray, input_size: int) -> np.ndarray:
    """uint8 [B, H, W, 3] -> float32 [B, 3, h, w], resized and normalised as the authors do it."""
    import cv2

    height_px, width_px = original_size(frames.shape[1], frames.shape[2], input_size)
    scaled = [
        cv2.resize(frame / 255.0, (width_px, height_px), interpolation=cv2.INTER_CUBIC) for frame in frames
    ]  # float64, as theirs until the very end
    normalised = (np.stack(scaled) - IMAGENET_MEAN) / IMAGENET_STD
    return np.ascontiguousarray(normalised.transpose(0, 3, 1, 2), dtype=np.float32)
