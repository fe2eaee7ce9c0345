"""Metric depth and field of view by Depth Pro (transformers), frame by frame."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from annotated_types import Ge, Interval

from openuni.annotators._guide_flow import guide_flow_in_background
from openuni.annotators._temporal_consistency import DepthChange, FrameChange
from openuni.annotators._transformers_checkpoint import ONLY_DATA, complete_network, require_model_type
from openuni.manifests.contracts.checkpoint import Checkpoint, published_or_path
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.inference import Precision, inference
from openuni.manifests.contracts.modality import Modality
from openuni.manifests.contracts.operator import Annotator
from openuni.manifests.contracts.windows import WindowedRun, run_at_once
from openuni.manifests.errors import ClipError, OpenUniError
from openuni.manifests.modalities.depth import Depth

# "apple-amlr" on the hub: the Apple Machine Learning Research Model License Agreement, for non-commercial research.
# The authors' repository has the code under the Apple Sample Code License, which permits commercial use.
LICENCE = "LicenseRef-Apple-Machine-Learning-Research-Model"
NEEDED_FILES = ("*.json", "model.safetensors")


class MetricDepthOfClip(NamedTuple):
    """Depth of every frame in metres, the camera's field of view, and temporal consistency scores."""

    depth: Depth
    fov_deg: Annotated[float, "horizontal field of view, degrees: median over the frames, or the given one"]
    focal_px: Annotated[float, "focal length of that field of view, pixels of the map"]
    fov_change_deg: Annotated[
        float | None,
        "mean absolute change of the field of view between adjacent frames, degrees; flicker unless the lens zooms; "
        "null for a clip of one frame",
    ]
    frame_change_ratio: Annotated[
        float | None,
        "mean absolute change between adjacent frames divided by the clip's mean value; includes both flicker and true "
        "motion; null for a clip of one frame",
    ]
    flow_change_share: Annotated[
        float | None,
        "change of 1 / metres along the optical flow: median over pixels with valid flow, mean over adjacent frames, "
        "as a fraction of the clip's range (5th to 95th percentile); 0 is fully consistent; null without valid flow",
    ]


class Predicted(NamedTuple):
    """The network's results for some frames."""

    metres: np.ndarray  # float32 [T, H, W]
    fov_deg: np.ndarray  # float64 [T]


@dataclass(frozen=True)
class DepthPro(Annotator):
    """Depth in metres by Depth Pro, at the size of the frames, without per-frame normalization.

    The network predicts a canonical inverse depth and, with a head of its own, the horizontal field of view. Both give
    metres: the focal length of the field of view, in widths of the frame, times the inverse of the canonical inverse
    depth. Distances are limited to 0.1 mm to 10 km. Frames are resized to a square of 1536 px and predicted
    independently, so a field of view that flickers makes the depth flicker (`fov_change_deg`). If the camera is known,
    `fov_deg` sets it.

    Results are those of the library's processor and network. The published weights are for non-commercial research.
    """

    checkpoint: Annotated[str, "Depth Pro checkpoint in transformers format: Hugging Face name or folder"] = (
        "apple/DepthPro-hf"
    )
    fov_deg: Annotated[
        float,
        "known horizontal field of view of the whole frame, degrees; 0: estimated for every frame",
        Interval(ge=0, lt=180),
    ] = 0.0
    frames_per_batch: Annotated[int, "frames per forward pass", Ge(1)] = 2
    precision: Annotated[Precision, "numerical precision: fp32, tf32 (on CPUs fp32), bf16 or fp16 autocast"] = "fp32"

    gpus: ClassVar[float] = 0.5
    licence: ClassVar[str] = LICENCE
    origin: ClassVar[str] = "Bochkovskii et al. 2024 (arXiv:2410.02073); transformers.DepthProForDepthEstimation"

    def checkpoints(self) -> Sequence[Checkpoint]:
        """The Depth Pro checkpoint."""
        return (published_or_path(self.checkpoint, self.published()),)

    @classmethod
    def published(cls) -> tuple[Checkpoint, ...]:
        """The authors' checkpoint, for non-commercial research."""
        return (Checkpoint("apple/DepthPro-hf", "hub", LICENCE, size_mb=1900.0, only=NEEDED_FILES),)

    def load(self, device: str) -> Any:
        """Load the network on `device` and its image processor.

        Raises `OpenUniError` if the folder is not a complete Depth Pro checkpoint, or if it has no head for the field
        of view and `fov_deg` is not given.
        """
        from transformers import DepthProForDepthEstimation, DepthProImageProcessor

        folder = self.checkpoints()[0].resolve()
        try:
            require_model_type(folder, "depth_pro")
            network = complete_network(DepthProForDepthEstimation, folder, use_safetensors=True)
            processor = DepthProImageProcessor.from_pretrained(folder, **ONLY_DATA)
        except (OSError, ValueError, RuntimeError) as error:
            raise OpenUniError(
                f"{folder} is not a Depth Pro checkpoint in transformers format: {error}. Use one such as "
                "apple/DepthPro-hf."
            ) from error
        if not self.fov_deg and not network.use_fov_model:
            raise OpenUniError(
                f"depth_pro: {folder} has no head for the field of view (use_fov_model in config.json). Set fov_deg."
            )
        return network.eval().requires_grad_(False).to(device), processor

    def run(self, model: Any, clip: DecodedClip) -> MetricDepthOfClip:
        """Predict depth, float32 [T, H, W, 1] in metres. Raises `ClipError` for an impossible field of view."""
        return run_at_once(self.start_windows(model), clip)

    def start_windows(self, model: Any) -> "MetricDepthWindows":
        """See `Operator.start_windows`."""
        return MetricDepthWindows(self, model)

    def window_step(self) -> int:
        """Windows hold whole batches."""
        return self.frames_per_batch

    def predict(self, model: Any, frames: np.ndarray) -> Predicted:
        """Depth and field of view of frames, uint8 [T, H, W, 3] RGB."""
        step = self.frames_per_batch
        parts = [self._batch(model, frames[start : start + step]) for start in range(0, len(frames), step)]
        return Predicted(*(np.concatenate(values) for values in zip(*parts, strict=True)))

    def _batch(self, model: Any, frames: np.ndarray) -> Predicted:
        import torch

        network, processor = model
        device = next(network.parameters()).device
        count, *size_px = frames.shape[:3]
        with inference(device.type, self.precision):
            # copies protect the read-only clip; the explicit layout prevents the processor from guessing it
            given = processor(
                list(frames.copy()), input_data_format="channels_last", return_tensors="pt", device=device
            )
            found = network(pixel_values=given["pixel_values"].to(device))
            found.predicted_depth = found.predicted_depth.float()
            if not self.fov_deg:
                found.field_of_view = found.field_of_view.float()
            else:
                found.field_of_view = torch.full((count,), self.fov_deg, device=device)
            wrong = found.field_of_view[~((found.field_of_view > 0) & (found.field_of_view < 180))]
            if len(wrong):
                raise ClipError(
                    f"depth_pro: the network estimates a field of view of {float(wrong[0]):g} degrees; expected 0 to "
                    "180. Set fov_deg, if the camera is known."
                )
            maps = processor.post_process_depth_estimation(found, target_sizes=[tuple(size_px)] * count)
            # the library drops axes of length 1
            metres = torch.stack([one["predicted_depth"].reshape(*size_px) for one in maps])
        return Predicted(metres.cpu().numpy(), found.field_of_view.double().cpu().numpy())


class MetricDepthWindows(WindowedRun[MetricDepthOfClip]):
    """Depth of the new frames of each window, and what the scores need of them."""

    def __init__(self, operator: DepthPro, model: Any) -> None:
        self.operator, self.model = operator, model
        self.change, self.frame_change = DepthChange(), FrameChange()
        self.fov_deg: list[np.ndarray] = []
        self.width_px = 0

    def add(self, window: DecodedClip) -> Mapping[str, Modality]:
        """See `WindowedRun.add`."""
        with guide_flow_in_background(window):  # for the scores
            metres, fov_deg = self.operator.predict(self.model, window.new_frames)
        self.fov_deg.append(fov_deg)
        self.width_px = metres.shape[2]
        depth = Depth(metres[..., None], unit="metres")
        self.frame_change.add(metres)
        self.change.add(window, depth)
        return {"depth": depth}

    def result(self) -> MetricDepthOfClip:
        """See `WindowedRun.result`."""
        fov_deg = np.concatenate(self.fov_deg)
        middle = float(np.median(fov_deg))
        return MetricDepthOfClip(
            None,  # type: ignore[arg-type]  # `add` has returned all maps
            fov_deg=middle,
            focal_px=focal_px(middle, self.width_px),
            fov_change_deg=float(np.abs(np.diff(fov_deg)).mean()) if len(fov_deg) > 1 else None,
            frame_change_ratio=self.frame_change.ratio(),
            flow_change_share=self.change.share(),
        )


def focal_px(fov_deg: float, width_px: int) -> float:
    """Focal length of a camera without distortion whose frames of `width_px` show `fov_deg` degrees."""
    return float(0.5 * width_px / np.tan(np.radians(fov_deg) / 2))
