"""How much text a clip shows, and whether it lies over the picture or belongs to the scene."""

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
from openuni.manifests.contracts.options import UNIT_INTERVAL


class Scores(NamedTuple):
    """Area of text in the sampled frames: parts of the frame, averaged over the frames unless said otherwise.

    Overlay, scene and undecided add up to the whole.
    """

    text_area_share: Annotated[float, "area of all text over the frame's, 0 to 1; overlaps count once"]
    max_text_area_share: Annotated[float, "the same of the frame with the most, 0 to 1"]
    overlay_area_share: Annotated[float, "text that stays in its place while the picture changes, 0 to 1"]
    scene_area_share: Annotated[float, "text that moves, or comes and goes within `stays_s`, 0 to 1"]
    undecided_area_share: Annotated[float, "text at rest in a picture at rest, or in a single frame, 0 to 1"]
    text_frame_share: Annotated[float, "share of the sampled frames that show text, 0 to 1"]


@dataclass(frozen=True)
class Ocr(Filter):
    """Area of text, split into overlays (titles, subtitles, logos) and text in the scene.

    An overlay is text that stays in its place with one look for `stays_s` while the picture around it changes; text of
    the scene moves with the picture. A sign before a camera at rest and a logo over one look alike: such text is
    undecided. A subtitle shown for less than `stays_s` counts as scene. Boxes follow lines of text, with the spaces
    between words. `rapidocr` brings its models (PP-OCR, for Latin, Chinese and Japanese; it may overlook other
    scripts) and runs on the CPU; it tries to read what it finds, for it finds text in textures too. `easyocr` (CRAFT)
    needs a checkpoint (openuni checkpoints get craft_mlt_25k.zip); its boxes have the margin of the original.

    VideoX-Fun's number: backend = "easyocr", area = "videox_fun", max_frames = 1 (the middle) and long_side_px = 2560.
    It adds up the boxes that EasyOCR calls level; a fault in its code leaves out all slanted ones.
    """

    backend: Annotated[Literal["rapidocr", "easyocr"], "rapidocr: needs no download; easyocr: CRAFT"] = "rapidocr"
    frames_per_s: Annotated[float, "frames looked at per second of the clip", Gt(0)] = 1.0
    max_frames: Annotated[int, "most frames looked at per clip, spread over its whole length", Ge(1)] = 16
    long_side_px: Annotated[int, "frames are scaled down to this longer side for the detector", Ge(32)] = 960
    min_score: Annotated[float, "confidence from which rapidocr's boxes count", UNIT_INTERVAL] = 0.5
    min_read: Annotated[
        float,
        "confidence from which rapidocr counts as having read a box; lower for other scripts; 0: not read",
        UNIT_INTERVAL,
    ] = 0.8
    unclip: Annotated[
        float, "how far rapidocr's boxes grow: 0.8 fits the letters, 1.6 is its own for reading", Gt(0)
    ] = 0.8
    stays_s: Annotated[float, "seconds for which an overlay stays at least; all of a shorter clip", Ge(0)] = 1.0
    area: Annotated[
        Literal["union", "sum", "videox_fun"],
        "of the first two scores. sum: overlaps add up, as in data-juicer; videox_fun: and slanted boxes count nothing",
    ] = "union"
    checkpoint: Annotated[
        str, "path of other weights to find text (.onnx; .pth for easyocr); empty: the backend's own"
    ] = ""

    origin: ClassVar[str] = "RapidOCR with PP-OCRv6; EasyOCR with CRAFT, Baek et al. 2019 (arXiv:1904.01941)"

    def checkpoints(self) -> Sequence[Checkpoint]:
        """The detector's first: a path as it is, RapidOCR's from its wheel, CRAFT's from EasyOCR's folder or ours."""
        if self.backend == "rapidocr":
            of_wheel = [Checkpoint(str(boxes.rapidocr_weights(task)), "path", "Apache-2.0") for task in ("det", "rec")]
            return (Checkpoint(self.checkpoint, "path"), of_wheel[1]) if self.checkpoint else tuple(of_wheel)
        if self.checkpoint:
            return (Checkpoint(self.checkpoint, "path"),)
        of_easyocr = boxes.craft_folder() / f"{boxes.CRAFT_FILE}.pth"
        return (Checkpoint(str(of_easyocr), "path", "Apache-2.0"),) if of_easyocr.exists() else self.published()

    @classmethod
    def published(cls) -> tuple[Checkpoint, ...]:
        """CRAFT as EasyOCR publishes it."""
        return (Checkpoint(f"{boxes.CRAFT_FILE}.zip", "url", "Apache-2.0", boxes.CRAFT_URL, size_mb=77.0),)

    def sample(self, times_s: np.ndarray) -> np.ndarray:
        """Evenly spread over the whole clip, at most `max_frames`."""
        return at_most(sample_evenly(times_s, self.frames_per_s), self.max_frames)

    def load(self, device: str) -> boxes.Detector:
        """The detector. Raises `OpenUniError` for weights that are not its own."""
        weights = [checkpoint.resolve() for checkpoint in self.checkpoints()]
        if self.backend == "easyocr":
            return boxes.easyocr_detector(weights[0], device, self.long_side_px)
        how = boxes.RapidOcrOptions(self.long_side_px, self.unclip, self.min_score, self.min_read)
        return boxes.rapidocr_detector(weights[0], weights[1], how)

    def run(self, model: boxes.Detector, clip: DecodedClip) -> Scores:
        """Scores of the frames given."""
        import cv2

        quads = [model(frame) for frame in clip.frames]
        grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in clip.frames]
        kinds = classify_text(grey, quads, clip.times_s, self.stays_s)
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
    """Share of the frame per `TextKind`; where boxes overlap, overlay goes before undecided, and that before scene."""
    shares, taken = [0.0] * len(TextKind), np.zeros(shape[:2], bool)
    for kind in (TextKind.OVERLAY, TextKind.UNDECIDED, TextKind.SCENE):
        mask = union_mask(shape, [quad for quad, of_quad in zip(quads, kinds, strict=True) if of_quad == kind])
        shares[kind] = float((mask & ~taken).mean())
        taken |= mask
    return shares


def _is_level(quad: np.ndarray) -> bool:
    """Whether the sides of float32 [4, 2] lie along those of the frame, as those of EasyOCR's level boxes do."""
    (left, top), (right, other_top), (other_right, bottom), (other_left, other_bottom) = quad.tolist()
    return (left, top, right, bottom) == (other_left, other_top, other_right, other_bottom)


def _sum(quads: list[np.ndarray]) -> float:
    """Areas added up, square pixels."""
    import cv2

    return float(sum(cv2.contourArea(quad) for quad in quads))
