"""Whole-body key points of all persons by DWPose: YOLOX finds them, a SimCC network poses them, in ONNX."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from annotated_types import Ge

from openuni.annotators._onnx import OnnxNetwork
from openuni.annotators._person_tracks import BODY, SURE, Persons, track_identities
from openuni.annotators._simcc import as_input, crop, key_points, window_of
from openuni.annotators._yolox import FIRST_CLASS, anchor_count, letterbox, persons
from openuni.manifests.contracts.checkpoint import Checkpoint
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.operator import Annotator
from openuni.manifests.contracts.options import UNIT_INTERVAL
from openuni.manifests.errors import MissingRequirement, OpenUniError
from openuni.manifests.modalities.skeleton import POINT_COUNT, Skeleton

REPOSITORY = "yzd-v/DWPose"
DETECTOR_FILE, POSE_FILE = "yolox_l.onnx", "dw-ll_ucoco_384.onnx"
DETECTOR_PX, POSE_PX = (640, 640), (384, 288)  # height, width where a graph leaves them open
# code and weights are Apache-2.0 by their authors' word, the labels they learnt from are for research
LICENCE = "Apache-2.0 AND LicenseRef-COCO-WholeBody"


class SkeletonOfClip(NamedTuple):
    """The persons' key points, and how far they can be relied on."""

    skeleton: Skeleton
    persons_max: Annotated[int, "most persons found in one frame"]
    persons_mean: Annotated[float, "mean number of persons found in a frame"]
    identity_count: Annotated[
        int,
        "persons told apart in the clip, those beyond max_persons too; far above persons_max: tracks are torn",
    ]
    person_share: Annotated[float, "share of the frames with at least one person, 0 to 1"]
    confidence_mean: Annotated[float | None, "mean confidence of all 133 points, 0 to 1; null when nobody is there"]
    body_confidence_mean: Annotated[float | None, "mean confidence of the body's 17 points, 0 to 1; null: nobody"]
    box_share: Annotated[
        float | None, "mean share of the frame that its largest person's box covers, 0 to 1; null when nobody is there"
    ]
    relink_count: Annotated[int, "how often a person was lost for some frames and found again"]
    jitter_ratio: Annotated[
        float | None,
        "median of how far sure points of the body leave an even motion from frame to frame (second difference), in "
        "shares of the square root of the box's area; null without three frames in a row",
    ]


class Networks(NamedTuple):
    """What a worker holds."""

    detector: OnnxNetwork
    pose: OnnxNetwork


@dataclass(frozen=True)
class Dwpose(Annotator):
    """133 key points (body, feet, face, hands) of every person in every frame; where nobody is found there is nobody.

    As the authors' ONNX code does it, to the pixel: frames go in as blue green red, a letterbox for the detector, an
    affine crop 1.25 times the box for the pose, and the confidence of a point is the lesser of its two SimCC maxima
    (here cut to 0..1). Two things differ. Their code poses the whole frame when it finds nobody, which makes up a
    person: not here. And theirs knows no time, while here a person keeps the place p through the clip: persons are
    matched by box and posture, over gaps of up to `longest_gap_s`, and nothing is made up inside a gap. Persons stand
    in the order of the area that they cover over the clip; those beyond `max_persons` are left out.

    Positions are the authors' plus half a pixel, since a `Skeleton` counts from the corner of the picture and theirs
    from the centre of its first pixel. The neck is no point of the 133: it is put in when they are drawn.
    """

    checkpoint: Annotated[str, "Hugging Face name, or folder, of the two ONNX files"] = REPOSITORY
    detector_file: Annotated[str, "name of the person detector there: YOLOX for COCO's classes, without NMS"] = (
        DETECTOR_FILE
    )
    pose_file: Annotated[str, "name of the pose network there: SimCC outputs of 133 points"] = POSE_FILE
    least_score: Annotated[float, "persons that the detector is less sure of are left out", UNIT_INTERVAL] = 0.3
    most_overlap: Annotated[float, "intersection over union above which two boxes are one person", UNIT_INTERVAL] = 0.45
    max_persons: Annotated[int, "persons of a clip that are kept", Ge(1)] = 8
    longest_gap_s: Annotated[float, "for how long a person may be lost and still be the same, seconds", Ge(0)] = 1.0
    frames_per_batch: Annotated[int, "pictures in one forward pass where the ONNX file leaves it open", Ge(1)] = 4
    channels: Annotated[
        Literal["bgr", "rgb"], "order in which the pose network sees colours: bgr as the authors' code; rgb as trained"
    ] = "bgr"
    provider: Annotated[
        Literal["device", "cpu"], "where the networks run: on the worker's device, or on the CPU even beside a GPU"
    ] = "device"

    gpus: ClassVar[float] = 0.25
    licence: ClassVar[str] = LICENCE
    origin: ClassVar[str] = "Yang et al. 2023 (arXiv:2307.15880), IDEA-Research/DWPose; YOLOX (arXiv:2107.08430)"

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("detector_file", "pose_file"):
            if Path(getattr(self, option)).name != getattr(self, option):
                given = f'dwpose: {option} = "{getattr(self, option)}"'
                raise OpenUniError(f"{given}. Allowed: the name of a file in `checkpoint`, without a path.")

    def checkpoints(self) -> Sequence[Checkpoint]:
        """The two files, which lie together."""
        files = (self.detector_file, self.pose_file)
        if self.checkpoint == REPOSITORY and files == (DETECTOR_FILE, POSE_FILE):
            return self.published()
        is_name = self.checkpoint.count("/") == 1 and not self.checkpoint.startswith((".", "/", "~"))
        store: Literal["hub", "path"] = "hub" if is_name and not Path(self.checkpoint).expanduser().exists() else "path"
        return (Checkpoint(self.checkpoint, store, only=files),)

    @classmethod
    def published(cls) -> tuple[Checkpoint, ...]:
        """The authors' files. Whether they may be used commercially is unclear: see `LICENCE`."""
        return (Checkpoint(REPOSITORY, "hub", LICENCE, size_mb=351.1, only=(DETECTOR_FILE, POSE_FILE)),)

    def load(self, device: str) -> Networks:
        """Both networks on `device`.

        Raises `MissingRequirement` where onnxruntime cannot run there, `OpenUniError` for files of other networks.
        """
        folder = self.checkpoints()[0].resolve()
        place = "cpu" if self.provider == "cpu" else device
        networks = []
        for name in (self.detector_file, self.pose_file):
            if not (folder / name).is_file():
                raise MissingRequirement(f"dwpose: there is no {name} in {folder}. Put it there, or name another file.")
            networks.append(OnnxNetwork(folder / name, place))
        model = Networks(*networks)
        _check_networks(model)
        return model

    def run(self, model: Any, clip: DecodedClip) -> SkeletonOfClip:
        """Key points in pixels of the frames. Raises `OpenUniError` when the networks are not of the kinds named."""
        found = [
            Persons(boxes, np.empty((len(boxes), POINT_COUNT, 3), np.float32)) for boxes in self._boxes(model, clip)
        ]
        everybody = [(frame, place) for frame, there in enumerate(found) for place in range(len(there.boxes))]
        for (frame, place), points in zip(everybody, self._poses(model.pose, clip, found, everybody), strict=True):
            found[frame].points[place] = points
        numbers = track_identities(found, clip.times_s, self.longest_gap_s)
        return _result(found, numbers, self.max_persons, clip.frames.shape[1:3])

    def _boxes(self, model: Networks, clip: DecodedClip) -> Iterator[np.ndarray]:
        """Float32 [n, 4] of every frame; the surest first."""
        size_px = _size_of(model.detector, DETECTOR_PX)
        ratio = letterbox(clip.frames[0], *size_px)[1]
        pictures = (letterbox(frame, *size_px)[0][::-1] for frame in clip.frames)
        for outputs in model.detector.each(pictures, self.frames_per_batch):
            yield persons(outputs[0], size_px, ratio, self.least_score, self.most_overlap)[0]

    def _poses(
        self, network: OnnxNetwork, clip: DecodedClip, found: list[Persons], everybody: list[tuple[int, int]]
    ) -> Iterator[np.ndarray]:
        """Float32 [133, 3] of each of `everybody` (frame, place in the frame)."""
        size_px = _size_of(network, POSE_PX)
        windows = [window_of(found[frame].boxes[place], *size_px) for frame, place in everybody]
        step = -1 if self.channels == "bgr" else 1
        pictures = (
            as_input(crop(clip.frames[frame], window, *size_px)[..., ::step])
            for (frame, _), window in zip(everybody, windows, strict=True)
        )
        for window, outputs in zip(windows, network.each(pictures, self.frames_per_batch), strict=True):
            if len(outputs) != 2 or any(output.shape[:1] != (POINT_COUNT,) for output in outputs):
                raise _not_whole_body(network, [output.shape for output in outputs])
            yield key_points(outputs[0], outputs[1], window, *size_px)


def _size_of(network: OnnxNetwork, otherwise: tuple[int, int]) -> tuple[int, int]:
    return network.height_px or otherwise[0], network.width_px or otherwise[1]


def _check_networks(model: Networks) -> None:
    """Raise `OpenUniError` when the graphs state outputs that the networks named do not have."""
    anchors = anchor_count(*_size_of(model.detector, DETECTOR_PX))
    found = model.detector.outputs
    shape = found[0] if len(found) == 1 else []
    if len(shape) != 3 or shape[1] not in (None, anchors) or (shape[2] or FIRST_CLASS + 1) <= FIRST_CLASS:
        raise OpenUniError(
            f"{model.detector.path} gives {found}; a YOLOX export without its own NMS gives one output of "
            f"[batch, {anchors}, 85]. Give such a file as detector_file."
        )
    outputs = model.pose.outputs
    if len(outputs) != 2 or any(len(one) != 3 or one[1] not in (None, POINT_COUNT) for one in outputs):
        raise _not_whole_body(model.pose, outputs)


def _not_whole_body(network: OnnxNetwork, found: Any) -> OpenUniError:
    return OpenUniError(
        f"{network.path} gives {found}; a whole-body SimCC network gives x and y of {POINT_COUNT} points as two "
        f"outputs of [batch, {POINT_COUNT}, bins]. Give such a file as pose_file."
    )


def _result(
    found: list[Persons], numbers: list[np.ndarray], max_persons: int, size_px: tuple[int, int]
) -> SkeletonOfClip:
    """Persons in their places, and what can be said of them."""
    boxes = np.concatenate([there.boxes for there in found]).astype(np.float64)
    points = np.concatenate([there.points for there in found])
    who = np.concatenate(numbers)
    frames = np.repeat(np.arange(len(found)), [len(there.boxes) for there in found])
    sides = np.clip(boxes[:, 2:], 0, size_px[::-1]) - np.clip(boxes[:, :2], 0, size_px[::-1])
    areas_px = sides.prod(axis=1)
    covered = np.bincount(who, areas_px)
    kept = np.argsort(-covered, kind="stable")[:max_persons]
    array = np.zeros((len(found), len(kept), POINT_COUNT, 3), np.float32)
    sizes_px = np.zeros(array.shape[:2])  # of persons; 0 where they are not
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
    """How often a person (bool [T]) is there again after having been lost."""
    return max(0, int((np.diff(np.concatenate([[False], there]).astype(int)) == 1).sum()) - 1)


def _jitter(points: np.ndarray, sizes_px: np.ndarray) -> float | None:
    """See `SkeletonOfClip.jitter_ratio`. `points`: float32 [T, P, K, 3]; `sizes_px`: [T, P], 0 where nobody is."""
    sure = (points[..., 2] >= SURE) & (sizes_px > 0)[..., None]
    whole = sure[:-2] & sure[1:-1] & sure[2:]
    if not whole.any():
        return None
    places = points[..., :2].astype(np.float64)
    off_px = np.linalg.norm(places[:-2] - 2 * places[1:-1] + places[2:], axis=-1)
    return float(np.median((off_px / np.maximum(sizes_px, 1e-6)[1:-1, :, None])[whole]))
