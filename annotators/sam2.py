"""Instances by SAM 2: automatic masks in key frames, followed by the network's own memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from annotated_types import Ge, Gt

from openuni.annotators._automatic_masks import PromptableNetwork
from openuni.annotators._instances import FrameInstances, largest
from openuni.annotators._sam2_memory import MemoryInterval, Sam2Prompted
from openuni.annotators._segmenter import Segmenter
from openuni.manifests.contracts.checkpoint import Checkpoint, published_or_path
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.errors import OpenUniError

SIZES_MB = {"tiny": 156.0, "small": 184.4, "base-plus": 323.6, "large": 898.1}


@dataclass(frozen=True)
class Sam2(Segmenter):
    """Instances from SAM 2, in transformers' implementation, with ids that stay through the clip.

    In key frames its image side is asked about a grid of points, by the rules of the authors' automatic generator.
    What is found there is followed to the next key frame by the network's memory, in a session of its own whose
    memory is bounded; there it is linked, by IoU, with what is found anew, so that drift does not add up and what
    came in gets an id, which is followed back to where it came in. What was out of sight for a while is known again
    by place, size and colours. Where two instances overlap, a pixel is that of the higher logit. Time grows with the
    number of instances: `instances_at_a_time` bounds it.
    """

    checkpoint: Annotated[str, "Hugging Face name or path of a SAM 2 video checkpoint in transformers' format"] = (
        "facebook/sam2.1-hiera-small"
    )
    key_every_s: Annotated[float, "seconds between frames in which masks are looked for, at most", Gt(0)] = 2.0
    least_predicted_iou: Annotated[float, "masks count whose IoU the network itself puts above this, 0 to 1"] = 0.8
    instances_at_a_time: Annotated[int, "the largest so many of a key frame are followed", Ge(1)] = 32
    fill_holes_px: Annotated[
        int, "holes of followed masks up to so many pixels of a quarter of the network's side", Ge(0)
    ] = 8

    origin: ClassVar[str] = "Ravi et al. 2024 (arXiv:2408.00714); transformers.Sam2VideoModel"

    def checkpoints(self) -> Sequence[Checkpoint]:
        """The one checkpoint."""
        return (published_or_path(self.checkpoint, tuple(self.published())),)

    @classmethod
    def published(cls) -> Sequence[Checkpoint]:
        """The authors' four sizes of version 2.1."""
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
        """Network on `device` and its processor. Raises `OpenUniError` for another kind of checkpoint."""
        from transformers import AutoConfig, Sam2VideoModel, Sam2VideoProcessor

        folder = self.checkpoints()[0].resolve()
        only_data: dict[str, Any] = {
            "local_files_only": True,
            "trust_remote_code": False,
        }  # no download, no code from the folder
        try:
            kind = AutoConfig.from_pretrained(folder, **only_data).model_type
            if kind != "sam2_video":
                raise ValueError(f'config.json says model_type "{kind}", not "sam2_video"')
            loaded: Any = Sam2VideoModel.from_pretrained(folder, output_loading_info=True, **only_data)
            network, report = loaded
            if report["missing_keys"] or report["mismatched_keys"]:
                lacking = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
                raise ValueError(f"{len(lacking)} tensors are missing or of another size, such as {lacking[0]}")
            processor = Sam2VideoProcessor.from_pretrained(folder, **only_data)
        except (OSError, ValueError, RuntimeError) as error:
            raise OpenUniError(
                f"{folder} is not a SAM 2 video checkpoint in transformers' format: {error}. Give one such as "
                "facebook/sam2.1-hiera-small."
            ) from error
        return network.eval().requires_grad_(False).to(device), processor

    def promptable(self, model: Any) -> PromptableNetwork:
        """See `Segmenter.promptable`."""
        network, processor = model
        return Sam2Prompted(network, processor, self.precision)

    def find(self, model: Any, frame: np.ndarray) -> FrameInstances:
        """The largest instances of one frame, uint8 [H, W, 3] RGB."""
        return largest(super().find(model, frame), self.instances_at_a_time)

    def keyframe_interval(
        self, model: Any, clip: DecodedClip, labels: np.ndarray, first: int, last: int
    ) -> MemoryInterval:
        """See `Segmenter.keyframe_interval`."""
        network, processor = model
        seen = Sam2Prompted(network, processor, self.precision)
        return MemoryInterval(seen, clip.frames, labels, (first, last), self.fill_holes_px)
