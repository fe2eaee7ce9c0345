"""Area of text in a clip, classified as overlay or scene text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

import numpy as np
from annotated_types import Ge, Gt

from openuni.filters import _text_boxes as boxes
from openuni.filters._samples import at_most
from openuni.filters._text_kinds import TextKind, classify_text, union_mask
from openuni.manifests.contracts.checkpoint import Checkpoint
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.operator import Filter, sample_evenly
from openuni.manifests.contracts.options import UNIT_INTERVAL, Formerly


class Scores(NamedTuple):
    """Area of text in the sampled frames, as a fraction of the frame, averaged over the frames.

    Overlay, scene and undecided text add up to all text.
    """

    text_area_share: Annotated[float, "area fraction of all text, mean over frames, 0 to 1; overlaps count once"]
    max_text_area_share: Annotated[float, "area fraction of all text, maximum over frames, 0 to 1"]
    overlay_area_share: Annotated[float, "area fraction of static text in a changing image, 0 to 1"]
    scene_area_share: Annotated[float, "area fraction of text that moves or is visible briefly, 0 to 1"]
    undecided_area_share: Annotated[float, "area fraction of static text in a static image or single frame, 0 to 1"]
    text_frame_share: Annotated[float, "fraction of the sampled frames that contain text, 0 to 1"]


@dataclass(frozen=True)
class Ocr(Filter):
    """Area of text, split into overlays (titles, subtitles, logos) and scene text.

    An overlay keeps its position and appearance for `min_overlay_s` while the image around it changes; scene text moves
    with the image. A sign in front of a static camera and a logo cannot be told apart: such text is undecided.
    Subtitles visible for less than `min_overlay_s` count as scene text. Boxes cover text lines, including spaces.
    `rapidocr` includes its models (PP-OCR for Latin, Chinese and Japanese; other scripts may be missed) and runs on the
    CPU; text recognition verifies its detections, which also respond to textures. `easyocr` (CRAFT) requires a
    checkpoint (openuni checkpoints get craft_mlt_25k.zip); its boxes have the margin of the original.

    For VideoX-Fun's score, set backend = "easyocr", area = "videox_fun", max_frames = 1 (the middle frame) and
    long_side_px = 2560. It sums the areas of EasyOCR's axis-aligned boxes; a bug in its code ignores all slanted ones.
    """

    backend: Annotated[
        Literal["rapidocr", "easyocr"], "text detector: rapidocr (models included), or easyocr (CRAFT checkpoint)"
    ] = "rapidocr"
    frames_per_s: Annotated[float, "sampled frames per second of the clip", Gt(0)] = 1.0
    max_frames: Annotated[int, "maximum number of sampled frames per clip, evenly spaced", Ge(1)] = 16
    long_side_px: Annotated[int, "maximum longer side of the detector's input, pixels", Ge(32)] = 960
    min_score: Annotated[float, "minimum detection score (rapidocr)", UNIT_INTERVAL] = 0.5
    min_recognition_score: Annotated[
        float,
        "minimum recognition score of a box (rapidocr); use less for other scripts; 0 disables recognition",
        UNIT_INTERVAL,
        Formerly("min_read"),
    ] = 0.8
    unclip: Annotated[
        float, "expansion of boxes (rapidocr): 0.8 fits the letters, 1.6 is RapidOCR's default for recognition", Gt(0)
    ] = 0.8
    min_overlay_s: Annotated[
        float, "minimum duration of an overlay, seconds; at most the clip's duration", Ge(0), Formerly("stays_s")
    ] = 1.0
    area: Annotated[
        Literal["union", "sum", "videox_fun"],
        "area of the first two scores: union of boxes; sum of boxes, as in data-juicer; or sum of axis-aligned boxes",
    ] = "union"
    checkpoint: Annotated[
        str, "path of other detector weights (.onnx; .pth for easyocr); empty: the backend's default"
    ] = ""

    origin: ClassVar[str] = "RapidOCR with PP-OCRv6; EasyOCR with CRAFT, Baek et al. 2019 (arXiv:1904.01941)"

    def checkpoints(self) -> Sequence[Checkpoint]:
        """The detector's weights, then (rapidocr) the recognizer's.

        By default, RapidOCR's models come from its wheel, CRAFT from EasyOCR's folder or the checkpoint folder.
        """
        if self.backend == "rapidocr":
            of_wheel = [Checkpoint(str(boxes.rapidocr_weights(task)), "path", "Apache-2.0") for task in ("det", "rec")]
            return (Checkpoint(self.checkpoint, "path"), of_wheel[1]) if self.checkpoint else tuple(of_wheel)
        if self.checkpoint:
            return (Checkpoint(self.checkpoint, "path"),)
        of_easyocr = boxes.craft_folder() / f"{boxes.CRAFT_FILE}.pth"
        return (Checkpoint(str(of_easyocr), "path", "Apache-2.0"),) if of_easyocr.exists() else self.published()

    @classmethod
    def published(cls) -> tuple[Checkpoint, ...]:
        """CRAFT as published by EasyOCR."""
        return (Checkpoint(f"{boxes.CRAFT_FILE}.zip", "url", "Apache-2.0", boxes.CRAFT_URL, size_mb=77.0),)

    def sample(self, times_s: np.ndarray) -> np.ndarray:
        """Evenly spaced frames, at most `max_frames`."""
        return at_most(sample_evenly(times_s, self.frames_per_s), self.max_frames)

    def load(self, device: str) -> boxes.Detector:
        """Load the detector. Raises `OpenUniError` for other weights."""
        weights = [checkpoint.resolve() for checkpoint in self.checkpoints()]
        if self.backend == "easyocr":
            return boxes.easyocr_detector(weights[0], device, self.long_side_px)
        how = boxes.RapidOcrOptions(self.long_side_px, self.unclip, self.min_score, self.min_recognition_score)
        return boxes.rapidocr_detector(weights[0], weights[1], how)

    def run(self, model: boxes.Detector, clip: DecodedClip) -> Scores:
        """Scores of the frames."""
        import cv2

        quads = [model(frame) for frame in clip.frames]
        grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in clip.frames]
        kinds = classify_text(grey, quads, clip.times_s, self.min_overlay_s)
        parts = np.array(
            [_parts(image.shape, of_frame, kind) for image, of_frame, kind in zip(grey, quads, kinds, strict=True)]
        )
        whole = parts.sum(axis=1)
        if self.area != "union":
            counted = [[quad for quad in of_frame if self.area == "sum" or _is_level(quad)] for of_frame in quads]
            whole = np.array([_sum(of_frame) / image.size for image, of_frame in zip(grey, counted, strict=True)])
        mean = parts.mean(axis=0)
        return Scores(
            text_area_share=float(whole.mean()),
            max_text_area_share=float(whole.max()),
            overlay_area_share=float(mean[TextKind.OVERLAY]),
            scene_area_share=float(mean[TextKind.SCENE]),
            undecided_area_share=float(mean[TextKind.UNDECIDED]),
            text_frame_share=float(np.mean([len(of_frame) > 0 for of_frame in quads])),
        )


def _parts(shape: tuple[int, ...], quads: list[np.ndarray], kinds: list[TextKind]) -> list[float]:
    """Area fraction per `TextKind`. Precedence where boxes overlap: overlay, undecided, scene."""
    shares, taken = [0.0] * len(TextKind), np.zeros(shape[:2], bool)
    for kind in (TextKind.OVERLAY, TextKind.UNDECIDED, TextKind.SCENE):
        mask = union_mask(shape, [quad for quad, of_quad in zip(quads, kinds, strict=True) if of_quad == kind])
        shares[kind] = float((mask & ~taken).mean())
        taken |= mask
    return shares


def _is_level(quad: np.ndarray) -> bool:
    """Whether a quadrilateral float32 [4, 2] is axis-aligned, as EasyOCR's horizontal boxes are."""
    (left, top), (right, other_top), (other_right, bottom), (other_left, other_bottom) = quad.tolist()
    return (left, top, right, bottom) == (other_left, other_top, other_right, other_bottom)


def _sum(quads: list[np.ndarray]) -> float:
    """Sum of areas, square pixels."""
    import cv2

    return float(sum(cv2.contourArea(quad) for quad in quads))
