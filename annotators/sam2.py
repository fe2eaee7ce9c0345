"""Instance segmentation by SAM 2: automatic masks in keyframes, propagated by the network's memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from annotated_types import Ge

from openuni.annotators._automatic_masks import Masks
from openuni.annotators._instances import FrameInstances, largest
from openuni.annotators._sam2_memory import MemoryInterval, Sam2Prompted
from openuni.annotators._segmenter import KeyframeIntervalS, MinPredictedIou, Segmenter
from openuni.annotators._transformers_checkpoint import ONLY_DATA, complete_network, require_model_type
from openuni.manifests.contracts.checkpoint import Checkpoint, published_or_path
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.options import Execution, Formerly
from openuni.manifests.errors import OpenUniError

SIZES_MB = {"tiny": 156.0, "small": 184.4, "base-plus": 323.6, "large": 898.1}


@dataclass(frozen=True)
class Sam2(Segmenter):
    """Instance segmentation by SAM 2 (transformers), with temporally consistent ids.

    In keyframes, masks are detected by a grid of point prompts, with the rules of the authors' automatic generator.
    They are propagated to the next keyframe by the network's memory, many instances at once, in bounded RAM. There they
    are linked by IoU to newly detected masks, so drift does not accumulate. New instances get an id and are propagated
    backward to the frame in which they appear. Instances that were out of sight are re-identified by position, size and
    colours. Where instances overlap, the higher logit wins. Time grows with the number of instances;
    `instances_per_batch` bounds it.
    """

    checkpoint: Annotated[str, "SAM 2 video checkpoint in transformers format: Hugging Face name or folder"] = (
        "facebook/sam2.1-hiera-small"
    )
    keyframe_interval_s: KeyframeIntervalS = 2.0
    min_predicted_iou: MinPredictedIou = 0.8
    frames_per_batch: Annotated[int, "frames per forward pass of the image encoder", Ge(1), Execution()] = 4
    instances_per_batch: Annotated[
        int,
        "maximum number of instances propagated from a keyframe, largest first; the others are discarded",
        Ge(1),
        Formerly("instances_at_a_time"),
    ] = 32
    tracked_per_batch: Annotated[int, "instances per forward pass of the memory attention", Ge(1), Execution()] = 16
    fill_holes_px: Annotated[
        int,
        "maximum size of holes to fill in propagated masks, in pixels at a quarter of the network's input side; 0 "
        "disables",
        Ge(0),
    ] = 8

    origin: ClassVar[str] = "Ravi et al. 2024 (arXiv:2408.00714); transformers.Sam2VideoModel"

    def checkpoints(self) -> Sequence[Checkpoint]:
        """The SAM 2 checkpoint."""
        return (published_or_path(self.checkpoint, tuple(self.published())),)

    @classmethod
    def published(cls) -> Sequence[Checkpoint]:
        """The authors' checkpoints of version 2.1 in four sizes."""
        return tuple(
            Checkpoint(
                f"facebook/sam2.1-hiera-{size}",
                "hub",
                cls.licence,
                size_mb=size_mb,
                only=("*.json", "model.safetensors"),
            )
            for size, size_mb in SIZES_MB.items()
        )

    def load(self, device: str) -> Any:
        """Load the network on `device` and its processor.

        Raises `OpenUniError` if the folder is not a complete SAM 2 video checkpoint.
        """
        from transformers import Sam2VideoModel, Sam2VideoProcessor

        folder = self.checkpoints()[0].resolve()
        try:
            require_model_type(folder, "sam2_video")
            network = complete_network(Sam2VideoModel, folder)
            processor = Sam2VideoProcessor.from_pretrained(folder, **ONLY_DATA)
        except (OSError, ValueError, RuntimeError) as error:
            raise OpenUniError(
                f"{folder} is not a SAM 2 video checkpoint in transformers format: {error}. Use one such as "
                "facebook/sam2.1-hiera-small."
            ) from error
        return network.eval().requires_grad_(False).to(device), processor

    def promptable(self, model: Any) -> Sam2Prompted:
        """See `Segmenter.promptable`."""
        network, processor = model
        return Sam2Prompted(network, processor, self.precision, self.frames_per_batch, self.tracked_per_batch)

    def instances_of(self, masks: Masks) -> FrameInstances:
        """Merge the masks of one frame and keep its largest instances."""
        return largest(super().instances_of(masks), self.instances_per_batch)

    def keyframe_interval(
        self, model: Any, clip: DecodedClip, labels: np.ndarray, first: int, last: int
    ) -> MemoryInterval:
        """See `Segmenter.keyframe_interval`."""
        return MemoryInterval(self.promptable(model), clip.frames, labels, (first, last), self.fill_holes_px)
