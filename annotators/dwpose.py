"""Whole-body keypoints of all persons by DWPose: a YOLOX detector and a SimCC pose network in ONNX."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np
from annotated_types import Ge

from openuni.annotators._onnx import GPU_BATCHES, Backend, OnnxNetwork
from openuni.annotators._person_tracks import BODY, SURE, Persons, track_identities
from openuni.annotators._simcc import NORMALIZED, CropWindow, crop, key_points, window_of
from openuni.annotators._yolox import FIRST_CLASS, PERSON_COLUMNS, anchor_count, letterbox, persons
from openuni.manifests.contracts.checkpoint import Checkpoint
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.modality import Modality
from openuni.manifests.contracts.operator import Annotator
from openuni.manifests.contracts.options import UNIT_INTERVAL, Execution, Formerly
from openuni.manifests.contracts.windows import WindowedRun, run_at_once
from openuni.manifests.errors import MissingRequirement, OpenUniError
from openuni.manifests.modalities.skeleton import POINT_COUNT, Skeleton

REPOSITORY = "yzd-v/DWPose"
DETECTOR_FILE, POSE_FILE = "yolox_l.onnx", "dw-ll_ucoco_384.onnx"
DETECTOR_PX, POSE_PX = (640, 640), (384, 288)  # height, width for dynamic graphs
# code and weights are Apache-2.0 according to their authors; the training labels are for research only
LICENCE = "Apache-2.0 AND LicenseRef-COCO-WholeBody"


class SkeletonOfClip(NamedTuple):
    """Keypoints of all persons, and quality scores."""

    skeleton: Skeleton
    persons_max: Annotated[int, "maximum number of persons in a frame"]
    persons_mean: Annotated[float, "mean number of persons per frame"]
    identity_count: Annotated[
        int,
        "number of tracks in the clip, including those beyond max_persons; far above persons_max indicates fragmented "
        "tracks",
    ]
    person_share: Annotated[float, "fraction of frames with at least one person, 0 to 1"]
    confidence_mean: Annotated[float | None, "mean confidence of all 133 points, 0 to 1; null without persons"]
    body_confidence_mean: Annotated[float | None, "mean confidence of the 17 body points, 0 to 1; null without persons"]
    box_share: Annotated[
        float | None, "mean fraction of the frame covered by its largest person's box, 0 to 1; null without persons"
    ]
    relink_count: Annotated[int, "number of times a person was re-identified after a gap"]
    jitter_ratio: Annotated[
        float | None,
        "jitter: median second difference of the positions of confident body points over three adjacent frames, "
        "relative to the square root of the box area; null without a person in three adjacent frames",
    ]


class Networks(NamedTuple):
    """The loaded networks."""

    detector: OnnxNetwork
    pose: OnnxNetwork


@dataclass(frozen=True)
class Dwpose(Annotator):
    """133 keypoints (body, feet, face, hands) of every person in every frame.

    Preprocessing and decoding match the authors' ONNX code: BGR input, letterboxing for the detector, an affine crop of
    1.25 times the box for the pose network. The confidence of a point is the minimum of its two SimCC maxima (here
    clipped to 0..1). There are two differences. If no person is detected, the authors' code runs the pose network on
    the whole frame; here the frame has no persons. And persons are tracked: person p keeps its index through the clip.
    Detections are matched by box and pose, across gaps of up to `max_gap_s`; gaps are not interpolated. Persons are
    sorted by the area that they cover over the clip; those beyond `max_persons` are discarded.

    Positions are the authors' plus half a pixel, because a `Skeleton` has its origin at the corner of the image, theirs
    at the centre of the first pixel. The neck is not one of the 133 points; it is added in renderings.
    """

    checkpoint: Annotated[str, "the two ONNX files: Hugging Face name or folder"] = REPOSITORY
    detector_file: Annotated[
        str, "file name of the person detector in `checkpoint`: YOLOX for COCO classes, without NMS"
    ] = DETECTOR_FILE
    pose_file: Annotated[str, "file name of the pose network in `checkpoint`: SimCC outputs for 133 points"] = POSE_FILE
    min_score: Annotated[float, "minimum detection score", UNIT_INTERVAL, Formerly("least_score")] = 0.3
    nms_iou: Annotated[float, "NMS IoU threshold", UNIT_INTERVAL, Formerly("most_overlap")] = 0.45
    max_persons: Annotated[int, "maximum number of persons in a clip", Ge(1)] = 8
    max_gap_s: Annotated[float, "maximum gap in a track, seconds", Ge(0), Formerly("longest_gap_s")] = 1.0
    frames_per_batch: Annotated[
        int, "images per forward pass, on a GPU four times as many, if the ONNX file has a dynamic batch axis", Ge(1)
    ] = 4
    channels: Annotated[
        Literal["bgr", "rgb"], "channel order of the pose network's input: bgr as in the authors' code; rgb as trained"
    ] = "bgr"
    provider: Annotated[Literal["device", "cpu"], "device of the networks: the worker's device, or always the CPU"] = (
        "device"
    )
    backend: Annotated[
        Backend, "library that runs the networks; auto: onnxruntime on a CPU, PyTorch on a GPU", Execution()
    ] = "auto"

    gpus: ClassVar[float] = 0.25
    licence: ClassVar[str] = LICENCE
    origin: ClassVar[str] = "Yang et al. 2023 (arXiv:2307.15880), IDEA-Research/DWPose; YOLOX (arXiv:2107.08430)"

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("detector_file", "pose_file"):
            if Path(getattr(self, option)).name != getattr(self, option):
                given = f'dwpose: {option} = "{getattr(self, option)}"'
                raise OpenUniError(f"{given}. Allowed: the name of a file in `checkpoint`, without a folder.")

    def checkpoints(self) -> Sequence[Checkpoint]:
        """The two files, in one repository or folder."""
        files = (self.detector_file, self.pose_file)
        if self.checkpoint == REPOSITORY and files == (DETECTOR_FILE, POSE_FILE):
            return self.published()
        is_name = self.checkpoint.count("/") == 1 and not self.checkpoint.startswith((".", "/", "~"))
        store: Literal["hub", "path"] = "hub" if is_name and not Path(self.checkpoint).expanduser().exists() else "path"
        return (Checkpoint(self.checkpoint, store, only=files),)

    @classmethod
    def published(cls) -> tuple[Checkpoint, ...]:
        """The authors' files. Commercial use is unclear: see `LICENCE`."""
        return (Checkpoint(REPOSITORY, "hub", LICENCE, size_mb=351.1, only=(DETECTOR_FILE, POSE_FILE)),)

    def load(self, device: str) -> Networks:
        """Load both networks on `device`.

        Raises `MissingRequirement` for a missing file or if onnxruntime cannot use the device, `OpenUniError` for files
        of other networks.
        """
        folder = self.checkpoints()[0].resolve()
        place = "cpu" if self.provider == "cpu" else device
        networks = []
        for name in (self.detector_file, self.pose_file):
            if not (folder / name).is_file():
                raise MissingRequirement(
                    f"dwpose: {name} not found in {folder}. Copy it there, or set detector_file and pose_file."
                )
            networks.append(OnnxNetwork(folder / name, place, self.backend))
        model = Networks(*networks)
        _check_networks(model)
        return model

    def run(self, model: Any, clip: DecodedClip) -> SkeletonOfClip:
        """Keypoints in pixels of the frames. Raises `OpenUniError` for unexpected network outputs."""
        return run_at_once(self.start_windows(model), clip)

    def start_windows(self, model: Any) -> "SkeletonWindows":
        """See `Operator.start_windows`. The skeletons themselves are small: all are held until the last window."""
        return SkeletonWindows(self, model)

    def window_step(self) -> int:
        """Windows hold whole batches."""
        return self.frames_per_batch * GPU_BATCHES

    def boxes(self, model: Networks, frames: np.ndarray) -> Iterator[np.ndarray]:
        """Person boxes of every frame, float32 [n, 4], best score first."""
        size_px = _size_of(model.detector, DETECTOR_PX)
        ratio = letterbox(frames[0], *size_px)[1]

        def picture(frame: np.ndarray) -> np.ndarray:
            return letterbox(frame, *size_px)[0][..., ::-1]

        # scores of other classes than persons stay on the device
        for outputs in model.detector.each(list(frames), picture, self.frames_per_batch, columns=PERSON_COLUMNS):
            yield persons(outputs[0], size_px, ratio, self.min_score, self.nms_iou)[0]

    def poses(self, network: OnnxNetwork, crops: "Sequence[PersonCrop]") -> Iterator[np.ndarray]:
        """Keypoints float32 [133, 3] of each person."""
        size_px = _size_of(network, POSE_PX)
        step = -1 if self.channels == "bgr" else 1
        windows = [window_of(one.box, *size_px) for one in crops]

        def picture(one: "tuple[PersonCrop, CropWindow]") -> np.ndarray:
            return crop(one[0].frame, one[1], *size_px)[..., ::step]

        given = list(zip(crops, windows, strict=True))
        found = network.each(given, picture, self.frames_per_batch, NORMALIZED)
        for window, outputs in zip(windows, found, strict=True):
            if len(outputs) != 2 or any(output.shape[:1] != (POINT_COUNT,) for output in outputs):
                raise _not_whole_body(network, [output.shape for output in outputs])
            yield key_points(outputs[0], outputs[1], window, *size_px)

    def poses_per_batch(self, network: OnnxNetwork) -> int:
        """Persons per forward pass."""
        return network.batch_size(self.frames_per_batch)


class PersonCrop(NamedTuple):
    """A person whose pose is to be estimated."""

    frame: np.ndarray  # uint8 [H, W, 3]
    box: np.ndarray
    points: np.ndarray  # float32 [133, 3], where the pose goes


class PoseEstimator(Protocol):
    """What `SkeletonWindows` needs of an operator."""

    @property
    def max_gap_s(self) -> float:
        """Maximum gap in a track, seconds."""

    @property
    def max_persons(self) -> int:
        """Maximum number of persons in a clip."""

    def boxes(self, model: Any, frames: np.ndarray) -> Iterator[np.ndarray]:
        """Person boxes of every frame, float32 [n, 4], best score first."""

    def poses(self, network: Any, crops: "Sequence[PersonCrop]") -> Iterator[np.ndarray]:
        """Keypoints float32 [133, 3] of each person, by `model.pose`."""

    def poses_per_batch(self, network: Any) -> int:
        """Persons per forward pass of `model.pose`."""


class SkeletonWindows(WindowedRun[SkeletonOfClip]):
    """Detects the persons of each window and estimates their poses; tracks follow at the end.

    Poses are estimated in batches over all persons of the clip, so those of an incomplete batch wait.
    """

    def __init__(self, operator: PoseEstimator, model: Any) -> None:
        self.operator, self.model = operator, model
        self.found: list[Persons] = []
        self.times_s: list[np.ndarray] = []
        self.waiting: list[PersonCrop] = []
        self.size_px = 0, 0

    def add(self, window: DecodedClip) -> Mapping[str, Modality]:
        """See `WindowedRun.add`."""
        self.size_px = window.frames.shape[1], window.frames.shape[2]
        self.times_s.append(window.times_s[window.overlap_frames :])
        for frame, boxes in zip(window.new_frames, self.operator.boxes(self.model, window.new_frames), strict=True):
            there = Persons(boxes, np.empty((len(boxes), POINT_COUNT, 3), np.float32))
            self.found.append(there)
            self.waiting += map(PersonCrop, itertools.repeat(frame), boxes, there.points)
        batch = self.operator.poses_per_batch(self.model.pose)
        self._estimate(len(self.waiting) // batch * batch)
        # copies, since the frames are views of the window
        self.waiting = [one._replace(frame=one.frame.copy()) for one in self.waiting]
        return {}

    def result(self) -> SkeletonOfClip:
        """See `WindowedRun.result`."""
        self._estimate(len(self.waiting))
        numbers = track_identities(self.found, np.concatenate(self.times_s), self.operator.max_gap_s)
        return _result(self.found, numbers, self.operator.max_persons, self.size_px)

    def _estimate(self, count: int) -> None:
        ready, self.waiting = self.waiting[:count], self.waiting[count:]
        for one, points in zip(ready, self.operator.poses(self.model.pose, ready), strict=True):
            one.points[:] = points


def _size_of(network: OnnxNetwork, otherwise: tuple[int, int]) -> tuple[int, int]:
    return network.height_px or otherwise[0], network.width_px or otherwise[1]


def _check_networks(model: Networks) -> None:
    """Raise `OpenUniError` unless the graphs declare the outputs of YOLOX and of a whole-body SimCC network."""
    anchors = anchor_count(*_size_of(model.detector, DETECTOR_PX))
    found = model.detector.outputs
    shape = found[0] if len(found) == 1 else []
    if len(shape) != 3 or shape[1] not in (None, anchors) or (shape[2] or FIRST_CLASS + 1) <= FIRST_CLASS:
        raise OpenUniError(
            f"{model.detector.path} has outputs {found}; expected one output [batch, {anchors}, 85] from a YOLOX "
            "export without built-in NMS. Use such a file as detector_file."
        )
    outputs = model.pose.outputs
    if len(outputs) != 2 or any(len(one) != 3 or one[1] not in (None, POINT_COUNT) for one in outputs):
        raise _not_whole_body(model.pose, outputs)


def _not_whole_body(network: OnnxNetwork, found: Any) -> OpenUniError:
    return OpenUniError(
        f"{network.path} has outputs {found}; expected x and y of {POINT_COUNT} points as two outputs "
        f"[batch, {POINT_COUNT}, bins] from a whole-body SimCC network. Use such a file as pose_file."
    )


def _result(
    found: list[Persons], numbers: list[np.ndarray], max_persons: int, size_px: tuple[int, int]
) -> SkeletonOfClip:
    """Arrange persons by track and compute the scores."""
    boxes = np.concatenate([there.boxes for there in found]).astype(np.float64)
    points = np.concatenate([there.points for there in found])
    who = np.concatenate(numbers)
    frames = np.repeat(np.arange(len(found)), [len(there.boxes) for there in found])
    sides = np.clip(boxes[:, 2:], 0, size_px[::-1]) - np.clip(boxes[:, :2], 0, size_px[::-1])
    areas_px = sides.prod(axis=1)
    covered = np.bincount(who, areas_px)
    kept = np.argsort(-covered, kind="stable")[:max_persons]
    array = np.zeros((len(found), len(kept), POINT_COUNT, 3), np.float32)
    sizes_px = np.zeros(array.shape[:2])  # of persons; 0 where absent
    for place, number in enumerate(kept):
        mine = who == number
        array[frames[mine], place] = points[mine]
        sizes_px[frames[mine], place] = np.sqrt((boxes[mine, 2:] - boxes[mine, :2]).prod(axis=1))
    counts = np.bincount(frames, minlength=len(found))
    largest = [float(areas_px[frames == frame].max()) for frame in np.flatnonzero(counts)]
    there = sizes_px > 0
    return SkeletonOfClip(
        Skeleton(array, *size_px),
        persons_max=int(counts.max()),
        persons_mean=float(counts.mean()),
        identity_count=len(covered),
        person_share=float((counts > 0).mean()),
        confidence_mean=float(array[there][..., 2].mean(dtype=np.float64)) if there.any() else None,
        body_confidence_mean=float(array[there][:, :17, 2].mean(dtype=np.float64)) if there.any() else None,
        box_share=float(np.mean(largest)) / (size_px[0] * size_px[1]) if largest else None,
        relink_count=sum(_returns(column) for column in there.T),
        jitter_ratio=_jitter(array[:, :, BODY], sizes_px),
    )


def _returns(there: np.ndarray) -> int:
    """Number of times a person (presence bool [T]) reappears after a gap."""
    return max(0, int((np.diff(np.concatenate([[False], there]).astype(int)) == 1).sum()) - 1)


def _jitter(points: np.ndarray, sizes_px: np.ndarray) -> float | None:
    """See `SkeletonOfClip.jitter_ratio`. `points`: float32 [T, P, K, 3]; `sizes_px`: [T, P], 0 where absent."""
    sure = (points[..., 2] >= SURE) & (sizes_px > 0)[..., None]
    whole = sure[:-2] & sure[1:-1] & sure[2:]
    if not whole.any():
        return None
    places = points[..., :2].astype(np.float64)
    off_px = np.linalg.norm(places[:-2] - 2 * places[1:-1] + places[2:], axis=-1)
    return float(np.median((off_px / np.maximum(sizes_px, 1e-6)[1:-1, :, None])[whole]))
