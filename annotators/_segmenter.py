"""Base of the annotators that detect masks in keyframes and propagate them through the clip."""

from abc import abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Protocol

import numpy as np
from annotated_types import Ge, Gt, Interval

from openuni.annotators._automatic_masks import MaskRules, Masks, PromptableNetwork, assembled, detected
from openuni.annotators._guide_flow import guide_flow
from openuni.annotators._instance_table import InstancesOfClip, instances_of_clip
from openuni.annotators._instances import (
    Appearance,
    FrameInstances,
    OverlapPriority,
    Tracks,
    appearances,
    keyframe_indices,
    merge_masks,
)
from openuni.annotators._threads import in_threads
from openuni.manifests.contracts.component import fingerprint
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.inference import Precision
from openuni.manifests.contracts.operator import Annotator
from openuni.manifests.contracts.options import UNIT_INTERVAL, Execution, Formerly

KeyframeIntervalS = Annotated[float, "maximum interval between keyframes, seconds", Gt(0), Formerly("key_every_s")]
MinPredictedIou = Annotated[float, "minimum predicted IoU of a mask, 0 to 1", Formerly("least_predicted_iou")]


@dataclass(frozen=True)
class Segmenter(Annotator):
    """Base: automatic masks in keyframes, linked over time. Subclasses define the propagation between keyframes."""

    checkpoint: Annotated[str, "name of published weights, or path"] = ""
    keyframe_interval_s: KeyframeIntervalS = 0.5
    points_per_side: Annotated[int, "point prompts per side of the grid", Ge(1)] = 32
    points_per_batch: Annotated[int, "points per forward pass of the mask decoder", Ge(1)] = 64
    min_predicted_iou: MinPredictedIou = 0.88
    min_stability: Annotated[
        float,
        "minimum stability score of a mask (IoU of the masks at logit thresholds +1 and -1)",
        UNIT_INTERVAL,
        Formerly("least_stability"),
    ] = 0.95
    nms_iou: Annotated[float, "NMS IoU threshold for the bounding boxes of masks", UNIT_INTERVAL] = 0.7
    crop_layers: Annotated[
        int, "crop layers: 1 adds 4 overlapping crops of the frame, 2 adds 20, and so on; 0 disables", Ge(0)
    ] = 0
    min_region_px: Annotated[
        int, "remove holes and islands of masks smaller than this many pixels; 0 disables", Ge(0)
    ] = 0
    overlap_priority: Annotated[
        OverlapPriority,
        "mask on top where masks overlap: small (parts before wholes), large or confident",
        Formerly("on_top"),
    ] = "small"
    min_area_share: Annotated[
        float,
        "minimum visible area of a mask in a keyframe, as a fraction of the frame",
        UNIT_INTERVAL,
        Formerly("least_area_share"),
    ] = 0.001
    max_area_share: Annotated[
        float,
        "maximum area of a mask, as a fraction of the frame; lower values exclude walls and sky",
        UNIT_INTERVAL,
        Formerly("most_area_share"),
    ] = 1.0
    match_iou: Annotated[float, "minimum IoU for linking a detected mask to a propagated one", UNIT_INTERVAL] = 0.5
    max_gap_s: Annotated[
        float, "maximum time for which an instance may be out of sight or undetected and keep its id, seconds", Ge(0)
    ] = 1.0
    max_instances: Annotated[
        int,
        "maximum number of instances with an id, largest first; renderings distinguish at most 255",
        Interval(ge=1, le=np.iinfo(np.uint16).max),
    ] = 255
    frames_per_batch: Annotated[int, "keyframes per forward pass of the image encoder", Ge(1), Execution()] = 2
    precision: Annotated[Precision, "numerical precision: fp32, tf32 (on CPUs fp32), bf16 or fp16 autocast"] = "fp32"

    gpus: ClassVar[float] = 0.5
    licence: ClassVar[str] = "Apache-2.0"

    def version(self) -> str:
        """See `Component.version`. The second versions of parts are named only where a part is used.

        These are the clean-up, and the mask decoder beside an image encoder in bfloat16: it was in bfloat16 too.
        """
        changed = {"cleanup": self.min_region_px > 0, "decoder": self.precision == "bf16"}
        parts = {name: 2 for name, is_used in changed.items() if is_used}
        return fingerprint(version=super().version(), **parts) if parts else super().version()

    @abstractmethod
    def promptable(self, model: Any) -> PromptableNetwork:
        """The network that predicts masks for point prompts; `model` is the return value of `load`."""

    @abstractmethod
    def keyframe_interval(
        self, model: Any, clip: DecodedClip, labels: np.ndarray, first: int, last: int
    ) -> "KeyframeInterval":
        """Propagation of `labels`, the map of keyframe `first`, to the next keyframe, `last`."""

    def run(self, model: Any, clip: DecodedClip) -> InstancesOfClip:
        """Instance ids, uint16 [T, H, W, 1] at the size of the frames; 0 is background."""
        times_s = clip.times_s
        tracks = Tracks(self.match_iou, self.max_gap_s)
        labels = np.zeros(clip.frames.shape[:3], np.uint16)
        keys = keyframe_indices(times_s, self.keyframe_interval_s).tolist()
        with ThreadPoolExecutor(1, thread_name_prefix="flow") as beside:  # on the CPU, while the network runs
            flow = beside.submit(guide_flow, clip)
            found = dict(zip(keys, self.segment_frames(model, [clip.frames[key] for key in keys]), strict=True))
            flow.result()
        looks = dict(zip(keys, in_threads(lambda key: _looks(clip, key, found[key]), keys), strict=True))
        labels[0] = tracks.start(found[0], looks[0], times_s[0])
        for first, last in pairwise(keys):
            way = self.keyframe_interval(model, clip, labels[first], first, last)
            affinity = way.affinity(found[last], len(tracks.known))
            labels[last] = tracks.link(found[last], looks[last], way.carried, affinity, times_s[last])
            labels[first + 1 : last] = way.between(labels[last])
        return instances_of_clip(labels, tracks, guide_flow(clip), self.max_instances)

    def segment_frames(self, model: Any, frames: Sequence[np.ndarray]) -> list[FrameInstances]:
        """Detect the instances of frames, uint8 [H, W, 3] RGB. Masks are merged in threads while the network runs."""
        rules = MaskRules(
            self.points_per_side,
            self.points_per_batch,
            self.min_predicted_iou,
            self.min_stability,
            nms_iou=self.nms_iou,
            crop_layers=self.crop_layers,
            min_region_px=self.min_region_px,
        )
        packed = detected(self.promptable(model), frames, rules, self.frames_per_batch)
        return in_threads(lambda crops: self.instances_of(assembled(crops, rules)), packed)

    def instances_of(self, masks: Masks) -> FrameInstances:
        """Merge the masks of one frame."""
        return merge_masks(masks, self.overlap_priority, self.min_area_share, self.max_area_share)


class KeyframeInterval(Protocol):
    """Propagation from one keyframe to the next."""

    carried: np.ndarray  # uint16 [H, W]: the first map propagated to the last keyframe; 0 where it is uncertain

    def affinity(self, found: FrameInstances, known: int) -> np.ndarray:
        """IoU of the detections in the last keyframe with the propagated tracks: float64 [1 + found, 1 + known]."""

    def between(self, last: np.ndarray) -> np.ndarray:
        """Maps of the frames in between, uint16 [n, H, W], given `last`, the linked map of the last keyframe."""


def _looks(clip: DecodedClip, index: int, found: FrameInstances) -> list[Appearance]:
    """Appearance of every instance of one frame."""
    return appearances(found, clip.frames[index], motion(clip, index))


def motion(clip: DecodedClip, index: int) -> np.ndarray:
    """Velocity at frame `index`: float32 [h, w, 2] at the guide flow's size, in frame pixels per second.

    For the last frame, it is the negated backward flow. For a clip of one frame, it is 0.
    """
    flow = guide_flow(clip)
    if not len(flow.forward):
        return np.zeros((*flow.size_px, 2), np.float32)
    last = index == len(flow.forward)
    pair_s = float(np.diff(clip.times_s)[index - 1 if last else index])
    moved = -flow.backward[index - 1] if last else flow.forward[index]
    height_px, width_px = clip.frames.shape[1:3]
    scale = np.array([width_px / flow.size_px[1], height_px / flow.size_px[0]], np.float32)
    return moved * scale / np.float32(pair_s)
