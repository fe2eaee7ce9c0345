"""What annotators share that find masks in key frames by themselves and follow them through the clip."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Protocol

import numpy as np
from annotated_types import Ge, Gt, Interval

from openuni.annotators._automatic_masks import MaskRules, PromptableNetwork, automatic_masks
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
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.inference import Precision
from openuni.manifests.contracts.operator import Annotator
from openuni.manifests.contracts.options import UNIT_INTERVAL
from openuni.manifests.errors import OpenUniError


@dataclass(frozen=True)
class Segmenter(Annotator):
    """Base: automatic masks in key frames, instances told apart over time; subclasses say how masks get from one to
    the next.
    """

    checkpoint: Annotated[str, "name of published weights, or a path"] = ""
    key_every_s: Annotated[float, "seconds between frames in which masks are looked for, at most", Gt(0)] = 0.5
    points_per_side: Annotated[int, "the network is asked about a grid of so many points a side", Ge(1)] = 32
    points_per_batch: Annotated[int, "points in one forward pass of the mask decoder", Ge(1)] = 64
    least_predicted_iou: Annotated[float, "masks count whose IoU the network itself puts above this, 0 to 1"] = 0.88
    least_stability: Annotated[
        float, "and whose IoU, cut at logits +1 and -1 (the stability score), is at least this", UNIT_INTERVAL
    ] = 0.95
    nms_iou: Annotated[
        float, "of two masks whose boxes overlap by more than this IoU, the surer one counts", UNIT_INTERVAL
    ] = 0.7
    crop_layers: Annotated[
        int, "also look closer, at 4 (1), 20 (2), .. overlapping parts of the frame; 0: no", Ge(0)
    ] = 0
    min_region_px: Annotated[int, "holes and islands of masks with fewer pixels are removed; 0: none", Ge(0)] = 0
    on_top: Annotated[
        OverlapPriority, "which of two overlapping masks is seen: small (parts before wholes), large, confident"
    ] = "small"
    least_area_share: Annotated[float, "instances count of which so much of a key frame is seen", UNIT_INTERVAL] = 0.001
    most_area_share: Annotated[float, "masks that cover more of the frame are left out (walls, sky)", UNIT_INTERVAL] = (
        1.0
    )
    match_iou: Annotated[
        float, "a found mask is the carried one that it overlaps by so much or more", UNIT_INTERVAL
    ] = 0.5
    max_gap_s: Annotated[float, "an instance out of sight, or not found, is known again for so many seconds", Ge(0)] = (
        1.0
    )
    max_instances: Annotated[
        int, "the largest so many get ids; renderings show no more than 255", Interval(ge=1, le=np.iinfo(np.uint16).max)
    ] = 255
    precision: Annotated[Precision, "fp32, or bf16 autocast"] = "fp32"

    gpus: ClassVar[float] = 0.5
    licence: ClassVar[str] = "Apache-2.0"

    def _check(self, options: tuple[str, ...], allowed: str, fits: Callable[[Any], bool]) -> None:
        for option in options:
            if not fits(getattr(self, option)):
                raise OpenUniError(f'{self.name()}: {option} = "{getattr(self, option)}". Allowed: {allowed}.')

    @abstractmethod
    def promptable(self, model: Any) -> PromptableNetwork:
        """The network that is asked for masks; `model` is what `load` returned."""

    @abstractmethod
    def keyframe_interval(
        self, model: Any, clip: DecodedClip, labels: np.ndarray, first: int, last: int
    ) -> "KeyframeInterval":
        """What carries `labels`, the map of key frame `first`, to the next key frame, `last`."""

    def run(self, model: Any, clip: DecodedClip) -> InstancesOfClip:
        """Ids, uint16 [T, H, W, 1] at the size of the frames; 0 where nothing is found."""
        times_s = clip.times_s
        tracks = Tracks(self.match_iou, self.max_gap_s)
        labels = np.zeros(clip.frames.shape[:3], np.uint16)
        keys = keyframe_indices(times_s, self.key_every_s).tolist()
        found, looks = self.inspect_frame(model, clip, 0)
        labels[0] = tracks.start(found, looks, times_s[0])
        for first, last in pairwise(keys):
            way = self.keyframe_interval(model, clip, labels[first], first, last)
            found, looks = self.inspect_frame(model, clip, last)
            affinity = way.affinity(found, len(tracks.known))
            labels[last] = tracks.link(found, looks, way.carried, affinity, times_s[last])
            labels[first + 1 : last] = way.between(labels[last])
        return instances_of_clip(labels, tracks, guide_flow(clip), self.max_instances)

    def inspect_frame(self, model: Any, clip: DecodedClip, index: int) -> tuple[FrameInstances, list[Appearance]]:
        """What is found in one frame of the clip, and how each of it looks."""
        found = self.find(model, clip.frames[index])
        return found, appearances(found, clip.frames[index], motion(clip, index))

    def find(self, model: Any, frame: np.ndarray) -> FrameInstances:
        """The instances of one frame, uint8 [H, W, 3] RGB."""
        rules = MaskRules(
            self.points_per_side,
            self.points_per_batch,
            self.least_predicted_iou,
            self.least_stability,
            nms_iou=self.nms_iou,
            crop_layers=self.crop_layers,
            min_region_px=self.min_region_px,
        )
        masks = automatic_masks(self.promptable(model), frame, rules)
        return merge_masks(masks, self.on_top, self.least_area_share, self.most_area_share)


class KeyframeInterval(Protocol):
    """The way from one key frame to the next."""

    carried: np.ndarray  # uint16 [H, W]: the first one's map as it is carried to the last; 0 where that is not sure

    def affinity(self, found: FrameInstances, known: int) -> np.ndarray:
        """IoU, float64 [1 + found, 1 + known], of what is `found` in the last with each track number, carried there."""

    def between(self, last: np.ndarray) -> np.ndarray:
        """The maps of the frames between, uint16 [n, H, W], now that `last`, the map of the last, is known."""


def motion(clip: DecodedClip, index: int) -> np.ndarray:
    """Motion of frame `index` towards the next: float32 [h, w, 2] at the guide flow's size, in pixels of the frames per
    second.

    That of the last frame is the way back to the one before it, turned round; of a single frame it is 0.
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
