"""Keypoints of all persons by Sapiens2, with the person detector of DWPose."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from annotated_types import Ge

from openuni.annotators._onnx import GPU_BATCHES, OnnxNetwork
from openuni.annotators._sapiens2 import LICENCE, Sapiens2, pixels
from openuni.annotators._yolox import FIRST_CLASS, PERSON_COLUMNS, anchor_count, letterbox, persons
from openuni.annotators.dwpose import (
    DETECTOR_FILE,
    DETECTOR_PX,
    REPOSITORY,
    PersonCrop,
    SkeletonOfClip,
    SkeletonWindows,
)
from openuni.manifests.contracts.checkpoint import Checkpoint, hub_or_path
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.inference import inference
from openuni.manifests.contracts.options import UNIT_INTERVAL
from openuni.manifests.contracts.windows import run_at_once
from openuni.manifests.errors import MissingRequirement, OpenUniError
from openuni.manifests.modalities.skeleton import POINT_COUNT

ALIGNED_PX = 0.5  # the network's pixels have their centres at whole numbers, those of a `Skeleton` at +0.5
# Point of COCO-WholeBody -> point of Sapiens2: those that the authors' table of both layouts has under the same name
# (coco_wholebody_to_goliath_mapping in their keypoints308.py). Of each hand that is the three outer points of every
# finger. Their table has no counterpart for the roots of hands and fingers and for the 68 points of the face.
BODY_POINTS = {**{place: place for place in range(9)}, 9: 62, 10: 41, **{place: place - 2 for place in range(11, 23)}}
FINGERTIPS = {"left": (91, 42), "right": (112, 21)}  # hand root of COCO-WholeBody; thumb's tip of Sapiens2
HAND_POINTS = {
    root + 4 * finger + 4 - joint: tip + 4 * finger + joint
    for root, tip in FINGERTIPS.values()
    for finger in range(5)
    for joint in range(3)
}
COCO_TO_SAPIENS2 = BODY_POINTS | HAND_POINTS


class Networks(NamedTuple):
    """The loaded networks."""

    detector: OnnxNetwork
    pose: tuple[Any, Any]  # network and image processor


@dataclass(frozen=True)
class Sapiens2Pose(Sapiens2):
    """Keypoints (body, feet, hands) of every person in every frame by Sapiens2.

    Sapiens2 has 308 points. A `Skeleton` has the 133 of COCO-WholeBody: the 53 that its authors name in both layouts
    are filled in (17 of the body, 6 of the feet, and 3 of every finger), the others are missing points, with confidence
    0: the face, and the roots of hands and fingers. `dwpose` has all 133.

    The authors detect persons with RTMDet, whose weights are a pickle; here YOLOX detects them, as in `dwpose`. Crops,
    heatmaps and their refinement are those of the library, which follows the authors: 1.25 times the box, averaged
    with the mirrored crop (`flip_test`). If no person is detected, the authors' code uses the whole frame; here the
    frame has no persons. Tracking, `max_persons` and scores are those of `dwpose`. The confidence of a point is the
    maximum of its heatmap, clipped to 0..1; positions have pixel centres at +0.5.
    """

    checkpoint: Annotated[str, "Sapiens2 pose checkpoint in transformers format: Hugging Face name or folder"] = (
        "facebook/sapiens2-pose-0.4b"
    )
    detector: Annotated[str, "person detector, YOLOX in ONNX: Hugging Face name or folder"] = REPOSITORY
    detector_file: Annotated[str, "file name of the person detector: YOLOX for COCO classes, without NMS"] = (
        DETECTOR_FILE
    )
    min_score: Annotated[float, "minimum detection score", UNIT_INTERVAL] = 0.3
    nms_iou: Annotated[float, "NMS IoU threshold", UNIT_INTERVAL] = 0.3
    flip_test: Annotated[bool, "average with the mirrored crop, as the authors do; takes twice the time"] = True
    max_persons: Annotated[int, "maximum number of persons in a clip", Ge(1)] = 8
    max_gap_s: Annotated[float, "maximum gap in a track, seconds", Ge(0)] = 1.0

    licence: ClassVar[str] = f"Apache-2.0 AND {LICENCE}"
    origin: ClassVar[str] = (
        "Khirodkar et al. 2026 (arXiv:2604.21681); transformers.Sapiens2ForPoseEstimation; YOLOX (arXiv:2107.08430)"
    )
    task: ClassVar[str] = "pose"
    network_name: ClassVar[str] = "Sapiens2ForPoseEstimation"
    outputs: ClassVar[int | None] = 308

    def __post_init__(self) -> None:
        super().__post_init__()
        if Path(self.detector_file).name != self.detector_file:
            given = f'sapiens2_pose: detector_file = "{self.detector_file}"'
            raise OpenUniError(f"{given}. Allowed: the name of a file in `detector`, without a folder.")

    def checkpoints(self) -> Sequence[Checkpoint]:
        """The Sapiens2 checkpoint, and the detector."""
        return (*super().checkpoints(), self._detector())

    def _detector(self) -> Checkpoint:
        if (self.detector, self.detector_file) == (REPOSITORY, DETECTOR_FILE):
            return DETECTOR
        return Checkpoint(self.detector, hub_or_path(self.detector).store, only=(self.detector_file,))

    def load(self, device: str) -> Networks:
        """Load both networks on `device`.

        Raises `MissingRequirement` for a missing file or if onnxruntime cannot use the device, `OpenUniError` for files
        of other networks.
        """
        pose = super().load(device)
        if self.flip_test and not pose[0].config.flip_pairs:
            raise OpenUniError(
                f"sapiens2_pose: {self.checkpoint} does not say which points are mirrored (flip_pairs in config.json). "
                "Set flip_test = false."
            )
        folder = self._detector().resolve()
        path = folder / self.detector_file if folder.is_dir() else folder
        if not path.is_file():
            raise MissingRequirement(
                f"sapiens2_pose: {self.detector_file} not found in {folder}. Copy it there, or set detector_file."
            )
        detector = OnnxNetwork(path, device)
        anchors, found = anchor_count(*_size_of(detector)), detector.outputs
        shape = found[0] if len(found) == 1 else []
        if len(shape) != 3 or shape[1] not in (None, anchors) or (shape[2] or FIRST_CLASS + 1) <= FIRST_CLASS:
            raise OpenUniError(
                f"{path} has outputs {found}; expected one output [batch, {anchors}, 85] from a YOLOX export without "
                "built-in NMS. Use such a file as detector_file."
            )
        return Networks(detector, pose)

    def run(self, model: Any, clip: DecodedClip) -> SkeletonOfClip:
        """Keypoints in pixels of the frames."""
        return run_at_once(self.start_windows(model), clip)

    def start_windows(self, model: Any) -> SkeletonWindows:
        """See `Operator.start_windows`."""
        return SkeletonWindows(self, model)

    def window_step(self) -> int:
        """Windows hold whole batches, on a GPU too."""
        return self.frames_per_batch * GPU_BATCHES

    def boxes(self, model: Networks, frames: np.ndarray) -> Iterator[np.ndarray]:
        """Person boxes of every frame, float32 [n, 4], best score first."""
        size_px = _size_of(model.detector)
        ratio = letterbox(frames[0], *size_px)[1]

        def picture(frame: np.ndarray) -> np.ndarray:
            return letterbox(frame, *size_px)[0][..., ::-1]  # BGR

        for outputs in model.detector.each(list(frames), picture, self.frames_per_batch, columns=PERSON_COLUMNS):
            yield persons(outputs[0], size_px, ratio, self.min_score, self.nms_iou)[0]

    def poses(self, network: Any, crops: Sequence[PersonCrop]) -> Iterator[np.ndarray]:
        """Keypoints float32 [133, 3] of each person."""
        for start in range(0, len(crops), self.frames_per_batch):
            yield from self._batch(network, crops[start : start + self.frames_per_batch])

    def poses_per_batch(self, network: Any) -> int:
        """Persons per forward pass."""
        return self.frames_per_batch

    def _batch(self, model: Any, crops: Sequence[PersonCrop]) -> Iterator[np.ndarray]:
        import torch

        network, processor = model
        device = next(network.parameters()).device
        boxes = [[[*one.box[:2].tolist(), *(one.box[2:] - one.box[:2]).tolist()]] for one in crops]  # corner and sides
        with inference(device.type, self.precision):
            given = pixels(processor, [one.frame for one in crops], device, boxes=boxes)
            found, mirrored = network(pixel_values=given), None
            if self.flip_test:
                pairs = torch.tensor(network.config.flip_pairs, device=device)
                mirrored = network(pixel_values=given.flip(-1), flip_pairs=pairs)
        with inference(device.type, "fp32"):  # the refinement takes differences of neighbouring pixels
            poses = processor.post_process_pose_estimation(found, boxes=boxes, outputs_flipped=mirrored)
        for (pose,) in poses:
            yield whole_body(pose["keypoints"].cpu().numpy(), pose["scores"].cpu().numpy())


# one of the two files that `dwpose` lists; its licence is that of YOLOX, without the labels of the pose network
DETECTOR = Checkpoint(REPOSITORY, "hub", "Apache-2.0", only=(DETECTOR_FILE,))


def whole_body(places: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Points of Sapiens2 in the layout of COCO-WholeBody: float32 [133, 3] = x_px, y_px, confidence 0..1.

    `places`: float [308, 2], with pixel centres at whole numbers; `scores`: float [308]. Points that Sapiens2 does not
    have, or has not found, are zero.
    """
    points = np.zeros((POINT_COUNT, 3), np.float32)
    ours, theirs = np.array(list(COCO_TO_SAPIENS2)), np.array(list(COCO_TO_SAPIENS2.values()))
    sure = np.clip(np.nan_to_num(scores[theirs]), 0, 1)
    finite = np.isfinite(places[theirs]).all(axis=1) & (sure > 0)
    points[ours[finite], :2] = places[theirs[finite]] + ALIGNED_PX
    points[ours[finite], 2] = sure[finite]
    return points


def _size_of(detector: OnnxNetwork) -> tuple[int, int]:
    return detector.height_px or DETECTOR_PX[0], detector.width_px or DETECTOR_PX[1]
