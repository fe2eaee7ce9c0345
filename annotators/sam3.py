"""Instance segmentation by SAM 3: every instance of what a text prompt names, tracked through the clip."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from annotated_types import Ge, Interval, MinLen

from openuni.annotators._guide_flow import guide_flow
from openuni.annotators._instance_table import by_area, extent, flow_iou
from openuni.annotators._sam3_session import MAX_TOKENS, prompted_frames, use_host_operations
from openuni.annotators._transformers_checkpoint import ONLY_DATA, complete_network, require_model_type
from openuni.manifests.contracts.checkpoint import Checkpoint, published_or_path
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.inference import Precision
from openuni.manifests.contracts.operator import Annotator
from openuni.manifests.contracts.options import UNIT_INTERVAL
from openuni.manifests.errors import OpenUniError
from openuni.manifests.modalities.segmentation import Segmentation

# Meta's own terms of 19 November 2025: commercial use is allowed; military, nuclear, espionage and weapon uses are not
LICENCE = "LicenseRef-SAM-License"
NEEDED_FILES = ("*.json", "merges.txt", "model.safetensors")
MAX_PROMPTS = 64


class PromptedInstance(NamedTuple):
    """One instance of a clip."""

    id: Annotated[int, "value in the map, from 1, sorted by descending area"]
    prompt: Annotated[str, "the prompt that the instance was found by"]
    first_frame: Annotated[int, "index of the first frame that contains the instance"]
    last_frame: Annotated[int, "index of the last frame that contains the instance"]
    frames: Annotated[int, "number of frames that contain the instance"]
    area_share: Annotated[float, "mean fraction of the frame that it covers, over the frames that contain it, 0 to 1"]
    score: Annotated[float, "score of its first detection, 0 to 1"]
    largest_frame: Annotated[int, "index of the frame in which the instance is largest"]
    box_px: Annotated[list[int], "bounding box in that frame: left, top, width, height in pixels of the map"]


class PromptedInstances(NamedTuple):
    """Temporally consistent instance ids, the table of instances, and scores."""

    segmentation: Segmentation
    instances: Annotated[list[PromptedInstance], "one entry per id: prompt, time span, area, position and score"]
    instance_count: Annotated[int, "number of instances in the clip"]
    prompts_found: Annotated[int, "number of prompts with at least one instance"]
    covered_share: Annotated[float, "fraction of all pixels that belong to an instance, 0 to 1"]
    flow_iou: Annotated[
        float | None,
        "mean IoU of each instance's masks in adjacent frames, warped along the optical flow, weighted by area; 1 is "
        "fully consistent; null for a clip of one frame or without instances",
    ]
    score_mean: Annotated[float | None, "mean score of the instances' first detections; null without instances"]


@dataclass(frozen=True)
class Sam3(Annotator):
    """Instances of named concepts by SAM 3 (transformers), with temporally consistent ids.

    `prompts` are short noun phrases, such as "person" or "yellow school bus". In every frame, all instances of each
    prompt are detected; detections start an instance, and confirm or correct the instances that are tracked by the
    network's memory. Instances that are not confirmed in the frames after their first are discarded. Of duplicate
    detections, the better one stays. Ids hold through the clip, also out of sight; `instances` says which prompt each
    was found by. Where instances of one prompt overlap, the one with the higher tracking score is on top; of different
    prompts, the later prompt: ["person", "hat"] shows hats on persons.

    Results are those of the library's pass over a stored video, with its compiled operations for non-maximum
    suppression and holes replaced by equal ones: no code is downloaded. RAM does not grow with the clip's length,
    except for the map. Time grows with the number of instances and of prompts.

    The weights are gated: their owner asks for agreement to the SAM License before the download. It allows commercial
    use; it prohibits military, nuclear, espionage and weapon uses.
    """

    checkpoint: Annotated[str, "SAM 3 video checkpoint in transformers format: Hugging Face name or folder"] = (
        "facebook/sam3"
    )
    prompts: Annotated[
        tuple[str, ...], f"noun phrases to segment, at most {MAX_PROMPTS}; later ones are drawn on top", MinLen(1)
    ] = ("person",)
    min_score: Annotated[
        float,
        "minimum detection score; such detections confirm tracked instances, and start some while nothing is tracked",
        UNIT_INTERVAL,
    ] = 0.5
    min_new_score: Annotated[
        float, "minimum score of detections that start an instance while others are tracked", UNIT_INTERVAL
    ] = 0.7
    nms_iou: Annotated[float, "mask IoU above which the better of two detections stays; 0 disables", UNIT_INTERVAL] = (
        0.1
    )
    max_tracked: Annotated[int, "maximum number of instances to track; later detections are discarded", Ge(1)] = 100
    max_instances: Annotated[
        int,
        "maximum number of instances with an id, largest first; renderings distinguish at most 255",
        Interval(ge=1, le=np.iinfo(np.uint16).max),
    ] = 255
    precision: Annotated[Precision, "numerical precision: fp32, tf32 (on CPUs fp32), bf16 or fp16 autocast"] = "fp32"

    gpus: ClassVar[float] = 0.5
    licence: ClassVar[str] = LICENCE
    origin: ClassVar[str] = "Carion et al. 2025 (arXiv:2511.16719); transformers.Sam3VideoModel"

    def __post_init__(self) -> None:
        super().__post_init__()
        given = f"sam3: prompts = {list(self.prompts)}".replace("'", '"')
        if len(self.prompts) > MAX_PROMPTS:
            raise OpenUniError(
                f"sam3: {len(self.prompts)} prompts. Allowed: at most {MAX_PROMPTS}, since each is detected in every "
                "frame. Use fewer."
            )
        if any(not prompt.strip() or prompt != prompt.strip() for prompt in self.prompts):
            raise OpenUniError(
                f'{given}. Allowed: noun phrases without spaces at either end, such as ["person", "dog"].'
            )
        if len(set(self.prompts)) < len(self.prompts):
            raise OpenUniError(f"{given}. Allowed: each prompt once. Remove the duplicates.")

    def checkpoints(self) -> Sequence[Checkpoint]:
        """The SAM 3 checkpoint."""
        return (published_or_path(self.checkpoint, self.published()),)

    @classmethod
    def published(cls) -> tuple[Checkpoint, ...]:
        """The authors' checkpoint, which is gated."""
        return (Checkpoint("facebook/sam3", "hub", LICENCE, size_mb=3439.0, only=NEEDED_FILES, gated=True),)

    def load(self, device: str) -> Any:
        """Load the network on `device` and its processor.

        Raises `OpenUniError` if the folder is not a complete SAM 3 video checkpoint, or for a prompt that is too long.
        """
        from transformers import Sam3VideoModel, Sam3VideoProcessor
        from transformers.models.sam3_video import modeling_sam3_video

        folder = self.checkpoints()[0].resolve()
        try:
            require_model_type(folder, "sam3_video")
            if not (folder / "tokenizer.json").exists() and not (folder / "vocab.json").exists():
                raise ValueError("no tokenizer.json")  # the library would use one without a vocabulary
            processor = Sam3VideoProcessor.from_pretrained(folder, **ONLY_DATA)
            self._check_prompts(processor.tokenizer)
            network = complete_network(Sam3VideoModel, folder, use_safetensors=True)
        except (OSError, ValueError, RuntimeError, TypeError) as error:
            raise OpenUniError(
                f"{folder} is not a SAM 3 video checkpoint in transformers format: {error}. Use one such as "
                "facebook/sam3."
            ) from error
        use_host_operations(modeling_sam3_video)
        network.score_threshold_detection, network.new_det_thresh = self.min_score, self.min_new_score
        network.det_nms_thresh, network.max_num_objects = self.nms_iou, self.max_tracked
        return network.eval().requires_grad_(False).to(device), processor

    def _check_prompts(self, tokenizer: Any) -> None:
        for prompt in self.prompts:
            tokens = len(tokenizer(prompt)["input_ids"])
            if tokens > MAX_TOKENS:
                raise OpenUniError(
                    f'sam3: prompt "{prompt}" has {tokens} tokens. Allowed: at most {MAX_TOKENS}. Use a short noun '
                    "phrase."
                )

    def run(self, model: Any, clip: DecodedClip) -> PromptedInstances:
        """Instance ids, uint16 [T, H, W, 1] at the size of the frames; 0 is background."""
        network, processor = model
        labels = np.zeros(clip.frames.shape[:3], np.uint16)
        rows: dict[int, int] = {}  # the library's number -> that in `labels`, from 1
        scores, prompts = [0.0], [""]  # by that number
        found = prompted_frames(network, processor, clip.frames, self.prompts, self.precision)
        for target, frame in zip(labels, found, strict=True):
            for number, score in frame.scores.items():
                if number not in rows:
                    rows[number] = len(scores)
                    scores.append(score)
                    prompts.append(frame.prompts[number])
            table = np.zeros(max(rows, default=-1) + 2, np.uint16)
            table[[number + 1 for number in rows]] = list(rows.values())
            target[:] = table[frame.labels + 1]
        areas, order = by_area(labels, len(scores) - 1, self.max_instances)
        ids = np.zeros(len(scores), np.uint16)
        ids[order] = np.arange(1, len(order) + 1)
        instances = [
            PromptedInstance(
                id=int(ids[n]), prompt=prompts[n], score=scores[n], **extent(areas[:, n], labels, n)._asdict()
            )
            for n in order
        ]
        segmentation = ids[labels]
        return PromptedInstances(
            Segmentation(segmentation[..., None]),
            instances,
            len(instances),
            len({instance.prompt for instance in instances}),
            float(np.count_nonzero(segmentation) / segmentation.size),
            flow_iou(segmentation, guide_flow(clip)),
            float(np.mean([instance.score for instance in instances])) if instances else None,
        )
