"""Depth Anything V2 on single frames (transformers), shared by `depth_anything` and `video_depth`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from annotated_types import Ge, MultipleOf

from openuni.annotators import _depth_input
from openuni.annotators._threads import in_threads
from openuni.manifests.contracts.checkpoint import Checkpoint, published_or_path
from openuni.manifests.contracts.device_batches import each_batch, on_device
from openuni.manifests.contracts.inference import Precision, inference
from openuni.manifests.contracts.operator import Annotator
from openuni.manifests.errors import ClipError, OpenUniError

PATCH_PX = 14  # of the DINOv2 encoder
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406])
IMAGENET_STD = np.array([0.229, 0.224, 0.225])
SMALL_SHA256 = "3152477ce0d8d6978d76b995120de97cb5b928701fd0f817769f59e249a16b70"

HEAD_BYTES = 8e9  # of the frames whose full-size features are computed together
HEAD_COPIES = 3  # of full-size features, float32: before and after a layer, and the workspace

MIN_METRES = 0.001
DepthUnit = Literal["disparity", "metres"]


@dataclass(frozen=True)
class FrameDepth(Annotator):
    """Base of the annotators that run Depth Anything: checkpoint, resizing, batching."""

    checkpoint: Annotated[str, "Depth Anything checkpoint in transformers format: Hugging Face name or folder"] = (
        "depth-anything/Depth-Anything-V2-Small-hf"
    )
    resize: Annotated[
        Literal["transformers", "original"],
        "resizing of the network input: as in transformers, or as in the authors' code",
    ] = "transformers"
    input_size: Annotated[
        int, "target side length of the network input, pixels", Ge(PATCH_PX), MultipleOf(PATCH_PX)
    ] = 518
    frames_per_batch: Annotated[int, "frames per forward pass", Ge(1)] = 8
    precision: Annotated[Precision, "numerical precision: fp32, tf32 (on CPUs fp32), bf16 or fp16 autocast"] = "fp32"

    gpus: ClassVar[float] = 0.25
    licence: ClassVar[str] = "Apache-2.0"

    def checkpoints(self) -> Sequence[Checkpoint]:
        """The Depth Anything checkpoint."""
        return (published_or_path(self.checkpoint, self.published()),)

    @classmethod
    def published(cls) -> tuple[Checkpoint, ...]:
        """The authors' models. Only the small ones permit commercial use."""
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
        """Load the network on `device` and its image processor.

        Raises `OpenUniError` if the folder is not a Depth Anything checkpoint.
        """
        import torch
        from transformers import AutoConfig, AutoImageProcessor, AutoModelForDepthEstimation

        folder = self.checkpoints()[0].resolve()
        only_data = {"local_files_only": True, "trust_remote_code": False}  # no downloads, no remote code
        try:
            kind = getattr(AutoConfig.from_pretrained(folder, **only_data), "depth_estimation_type", None)
            if kind not in ("relative", "metric"):
                raise ValueError('config.json has no `depth_estimation_type` of "relative" or "metric"')
            processor = AutoImageProcessor.from_pretrained(folder, **only_data)
            network = AutoModelForDepthEstimation.from_pretrained(folder, dtype=torch.float32, **only_data)
        except (OSError, ValueError) as error:
            raise OpenUniError(
                f"{folder} is not a Depth Anything checkpoint in transformers format: {error}. Use one such as "
                "depth-anything/Depth-Anything-V2-Small-hf."
            ) from error
        return on_device(network, device), processor

    def each_frame(self, model: Any, frames: np.ndarray) -> tuple[np.ndarray, DepthUnit]:
        """Predict depth frame by frame: uint8 [T, H, W, 3] -> values float32 [T, H, W], and their unit."""
        depth, unit = self.raw_frames(model, frames)
        return (without_zero_metres(depth) if unit == "metres" else depth), unit

    def raw_frames(self, model: Any, frames: np.ndarray) -> tuple[np.ndarray, DepthUnit]:
        """As `each_frame`, with the network's zeros."""
        network, processor = model
        device = next(network.parameters()).device
        raw_input = self.resize == "transformers" and _depth_input.can_process(processor)
        starts = range(0, len(frames), self.frames_per_batch)
        parts = (frames[start : start + self.frames_per_batch] for start in starts)
        batches = ((part if raw_input else self._host_pixels(processor, part),) for part in parts)
        depth = np.empty(frames.shape[:3], np.float32)

        def compute(given: Any) -> Any:
            with inference(device.type, self.precision):
                pixels = given
                if raw_input:
                    images = given.permute(0, 3, 1, 2).contiguous()
                    pixels = _depth_input.process(processor, images, self.input_size)
                return self._depth(network, pixels, frames.shape[1:3])

        for start, found in zip(starts, each_batch(device, batches, compute), strict=True):
            depth[start : start + len(found)] = found
        return depth, "metres" if network.config.depth_estimation_type == "metric" else "disparity"

    def _depth(self, network: Any, pixels: Any, size_px: tuple[int, ...]) -> Any:
        """Depth float32 [B, H, W] from the network's input, float32 [B, 3, h, w]."""
        import torch

        parts = pixels.split(frames_together(network.config, *pixels.shape[-2:]))
        raw = torch.cat([network(pixel_values=part).predicted_depth.float() for part in parts])
        # bilinear as in the authors' code: transformers' bicubic post-processing overshoots below 0 at edges
        corners = self.resize == "original"
        return torch.nn.functional.interpolate(raw[:, None], size_px, mode="bilinear", align_corners=corners)[:, 0]

    def _host_pixels(self, processor: Any, frames: np.ndarray) -> np.ndarray:
        """uint8 [B, H, W, 3] -> float32 [B, 3, h, w] on the CPU: the authors' rule, or any other image processor."""
        if self.resize == "original":
            return original_pixels(frames, self.input_size)
        size = {"height": self.input_size, "width": self.input_size}
        # copies protect the read-only clip; the explicit layout prevents the processor from guessing it
        images = processor(list(frames.copy()), size=size, input_data_format="channels_last", return_tensors="np")
        pixels: np.ndarray = images["pixel_values"]
        return pixels


class ZeroMetres:
    """`without_zero_metres` of a clip in windows."""

    def __init__(self) -> None:
        self.smallest = np.float32(MIN_METRES)
        self.used: np.float32 | None = None  # what zeros of windows before have become

    def replaced(self, depth: np.ndarray) -> np.ndarray:
        """Replace the zeros of the next frames. Raises `ClipError` if those of frames before should have been less."""
        self.smallest = min(self.smallest, depth[depth > 0].min(initial=self.smallest))
        if self.used is not None and self.smallest < self.used:
            raise ClipError(
                f"the network predicts zero metres, and {self.smallest:g} m in a later window: clips over [work] "
                "max_decoded_gb may have zeros, or distances below 1 mm, but not both. Raise the limit, or shorten "
                "the clip ([ingest] max_s)."
            )
        is_zero = depth == 0
        if not is_zero.any():
            return depth
        self.used = self.smallest
        return np.where(is_zero, self.smallest, depth)


def without_zero_metres(depth: np.ndarray) -> np.ndarray:
    """Metres with zeros replaced by 1 mm, or by the smallest other value if that is less; float32 of any shape.

    Networks that end in a ReLU predict exact zeros, but distances are stored and rendered by their logarithm and
    inverse, which zero does not have. Other values are unchanged; negative ones remain an error.
    """
    is_zero = depth == 0
    if not is_zero.any():
        return depth
    smallest = depth[depth > 0].min(initial=np.float32(MIN_METRES))
    return np.where(is_zero, smallest, depth)


def frames_together(config: Any, height_px: int, width_px: int) -> int:
    """Upper bound of the frames in a forward pass, so that memory is bounded for large inputs: `HEAD_BYTES`.

    At 518 x 896 px it is 8 for the Large network and 22 for Small. `config`: of the network.
    """
    channels = config.fusion_hidden_size // 2 + config.head_hidden_size
    return max(1, int(HEAD_BYTES // (height_px * width_px * channels * 4 * HEAD_COPIES)))


def original_size(height_px: int, width_px: int, input_size: int) -> tuple[int, int]:
    """Height and width of the network input in the authors' code: both sides >= `input_size`, multiples of 14."""
    scale = max(input_size / height_px, input_size / width_px)

    def patches(side_px: int) -> int:
        nearest = round(scale * side_px / PATCH_PX) * PATCH_PX
        return nearest if nearest >= input_size else math.ceil(scale * side_px / PATCH_PX) * PATCH_PX

    return patches(height_px), patches(width_px)


def original_pixels(frames: np.ndarray, input_size: int) -> np.ndarray:
    """uint8 [B, H, W, 3] -> float32 [B, 3, h, w], resized and normalized as in the authors' code."""
    import cv2

    height_px, width_px = original_size(frames.shape[1], frames.shape[2], input_size)
    pixels = np.empty((len(frames), 3, height_px, width_px), np.float32)

    def one(frame: np.ndarray, out: np.ndarray) -> None:  # float64 until the final cast, as in the authors' code
        scaled = cv2.resize(frame / 255.0, (width_px, height_px), interpolation=cv2.INTER_CUBIC)
        out[:] = ((scaled - IMAGENET_MEAN) / IMAGENET_STD).transpose(2, 0, 1)

    in_threads(one, frames, pixels)
    return pixels
