"""Captions without a network: sentences filled in with what can be measured, and labelled as such."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np

from openuni.annotators._guide_flow import GuideFlow, guide_flow
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.operator import Annotator

LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)  # Rec. 709
DARK, BRIGHT = 0.2, 0.7  # mean luma, 0..1
COLOURLESS = 0.02  # mean spread of the channels, 0..1
FADE = 0.1  # change of mean luma from the first quarter to the last
STILL, LITTLE, MUCH = 0.002, 0.02, 0.1  # mean speed, frame diagonals per second

GRID_PX = 8  # points of the guide flow that the camera is fitted to are this far apart
FIT_PX = 1.0  # and follow it when they are this near
MIN_POINTS = 12
FOLLOWS = 0.6  # share of the points that must follow one motion for it to be called the camera's
SHIFT = 0.05  # widths or heights that the view must move to be worth a word
ZOOM = 0.05  # change of scale, likewise
ROLL_DEG = 5.0
ONE_WAY = 0.6  # net way over the way there and back, to be one direction
AT_REST = 0.01  # widths or heights; less is a camera that stands
OWN_PX = 2.0  # faster than this against the camera, in pixels of the guide flow, a pixel moves on its own
OWN_SHARE = 0.02


class TemplateCaptionOfClip(NamedTuple):
    """What can be said of a clip by measuring alone, and the measurements."""

    brief: Annotated[str, "one sentence: length, format, brightness, amount of motion, camera"]
    detailed: Annotated[str, "the same with figures, in several sentences"]
    source: Annotated[str, 'always "template": true by measurement, and blind to what the clip shows']
    brightness_mean: Annotated[float, "mean luma of the clip, 0 (black) to 1 (white)"]
    speed_diag_per_s: Annotated[
        float | None, "mean speed of what moves in the picture, frame diagonals per second; null for one frame"
    ]
    follow_share: Annotated[
        float | None, "median share of the picture that follows one shift, zoom and roll, 0 to 1; null when unknown"
    ]
    pan_right_widths: Annotated[
        float | None, "how far the view moves right over the clip, frame widths; null unless 0.6 of the picture follows"
    ]
    tilt_up_heights: Annotated[float | None, "how far it moves up, frame heights; null likewise"]
    zoom_ratio: Annotated[float | None, "how many times larger things get by it; null likewise"]
    roll_clockwise_deg: Annotated[float | None, "how far it turns clockwise about its centre; null likewise"]
    own_motion_share: Annotated[
        float | None, "share of the picture that moves against the camera, mean over the clip, 0 to 1; null likewise"
    ]


class CameraMotion(NamedTuple):
    """Motion of the view over a clip: per pair of frames, float64 [T - 1]."""

    right: np.ndarray  # frame widths
    up: np.ndarray  # frame heights
    zoom: np.ndarray  # natural logarithm of the change of scale
    roll_deg: np.ndarray  # of the view, clockwise
    follow_share: np.ndarray  # 0..1
    own_share: np.ndarray  # 0..1


@dataclass(frozen=True)
class TemplateCaption(Annotator):
    """Brief and detailed captions filled in from measurements, without a network; `source` says "template".

    Format, length and brightness come from the frames. Motion comes from a flow (DIS at 256 px): its mean speed, and
    the shift, zoom and roll that most of the picture follows, which is taken for the camera's. A view that pans looks
    like one that travels, and a zoom like an approach, so the sentences leave that open; where less than 0.6 of the
    picture follows one motion, nothing is said of the camera. What the clip shows, no template can tell: for that, use
    `caption`.
    """

    origin: ClassVar[str] = "OpenUni; similarity fit to optical flow by RANSAC, as in OpenCV"

    def run(self, model: Any, clip: DecodedClip) -> TemplateCaptionOfClip:
        """Both captions and the measurements behind them."""
        luma = np.array([float((frame @ LUMA).mean()) for frame in clip.frames]) / 255
        spread = float(np.mean([np.ptp(frame, axis=-1).mean(dtype=np.float64) for frame in clip.frames])) / 255
        flow = guide_flow(clip)
        speed = mean_speed(flow, clip.times_s)
        camera = camera_motion(flow)
        follows = float(np.median(camera.follow_share)) if camera else None
        known = camera if follows is not None and follows >= FOLLOWS else None
        look = _look(float(luma.mean()), spread)
        moves = _amount(speed)
        way = camera_words(known) if known else []
        shape = _shape(clip.clip.width_px, clip.clip.height_px)
        length_s = clip.clip.duration_s
        brief = f"A {look} {shape} clip of {length_s:.1f} s{moves}{_camera_brief(way)}."
        return TemplateCaptionOfClip(
            brief=brief,
            detailed=_detailed(clip, look, shape, luma, speed, known),
            source="template",
            brightness_mean=float(luma.mean()),
            speed_diag_per_s=speed,
            follow_share=follows,
            pan_right_widths=float(known.right.sum()) if known else None,
            tilt_up_heights=float(known.up.sum()) if known else None,
            zoom_ratio=float(np.exp(known.zoom.sum())) if known else None,
            roll_clockwise_deg=float(known.roll_deg.sum()) if known else None,
            own_motion_share=float(known.own_share.mean()) if known else None,
        )


def mean_speed(flow: GuideFlow, times_s: np.ndarray) -> float | None:
    """Mean length of the flow where it is valid, frame diagonals per second; None where nothing is."""
    if not flow.forward_valid.any():
        return None
    length_px = np.hypot(flow.forward[..., 0], flow.forward[..., 1])
    counts = flow.forward_valid.sum(axis=(1, 2))
    sums = np.where(flow.forward_valid, length_px, 0).sum(axis=(1, 2), dtype=np.float64)
    per_pair = (sums[counts > 0] / counts[counts > 0]) / np.diff(times_s)[counts > 0]
    return float(per_pair.mean() / np.hypot(*flow.size_px))


def camera_motion(flow: GuideFlow) -> CameraMotion | None:
    """Shift, zoom and roll that most points of the picture follow, pair by pair; None where too few are valid."""
    import cv2

    height_px, width_px = flow.size_px
    step = min(GRID_PX, max(1, min(height_px, width_px) // 8))
    rows, columns = np.mgrid[step // 2 : height_px : step, step // 2 : width_px : step]
    centre = np.array([(width_px - 1) / 2, (height_px - 1) / 2])
    found = []
    for way, valid in zip(flow.forward, flow.forward_valid, strict=True):
        usable = valid[rows, columns]
        if usable.sum() < max(MIN_POINTS, 0.3 * usable.size):
            return None
        start = np.stack([columns[usable], rows[usable]], axis=-1).astype(np.float64) - centre
        stop = start + way[rows[usable], columns[usable]]
        matrix, _ = cv2.estimateAffinePartial2D(start, stop, method=cv2.RANSAC, ransacReprojThreshold=FIT_PX)
        if matrix is None:
            return None
        off_px = np.linalg.norm(start @ matrix[:, :2].T + matrix[:, 2] - stop, axis=1)
        shift_x, shift_y = matrix[:, 2]
        scale, turn = np.hypot(matrix[0, 0], matrix[1, 0]), np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0]))
        follow, own = float((off_px <= FIT_PX).mean()), float((off_px > OWN_PX).mean())
        # the picture moves against the view: what goes left was passed on the way to the right
        found.append((-shift_x / width_px, shift_y / height_px, float(np.log(scale)), -float(turn), follow, own))
    return CameraMotion(*np.array(found, np.float64).T) if found else None


def camera_words(camera: CameraMotion) -> list[str]:
    """What the view does, in words without figures; empty where it neither rests nor moves one way."""
    ways = (
        (camera.right, SHIFT, "moving right", "moving left"),
        (camera.up, SHIFT, "moving up", "moving down"),
        (camera.zoom, ZOOM, "closing in", "drawing back"),
        (camera.roll_deg, ROLL_DEG, "rolling clockwise", "rolling counterclockwise"),
    )
    words = [ahead if part.sum() > 0 else back for part, least, ahead, back in ways if _one_way(part, least)]
    paths = [float(np.abs(part).sum()) for part in (camera.right, camera.up, camera.zoom)]
    return words or (["at rest"] if max(paths) < AT_REST else [])


def _one_way(part: np.ndarray, least: float) -> bool:
    net = abs(float(part.sum()))
    return net >= least and net >= ONE_WAY * float(np.abs(part).sum())


def _look(luma: float, spread: float) -> str:
    level = "dark" if luma < DARK else "bright" if luma > BRIGHT else "medium-bright"
    return f"{level} {'colourless' if spread < COLOURLESS else 'colour'}"


def _shape(width_px: int, height_px: int) -> str:
    return "square" if width_px == height_px else "landscape" if width_px > height_px else "portrait"


def _amount(speed: float | None) -> str:
    if speed is None:
        return ""
    words = "hardly any" if speed < STILL else "little" if speed < LITTLE else "some" if speed < MUCH else "much"
    return f" with {words} motion"


def _camera_brief(way: list[str]) -> str:
    return f", the view {' and '.join(way)}" if way else ""


def _detailed(
    clip: DecodedClip, look: str, shape: str, luma: np.ndarray, speed: float | None, camera: CameraMotion | None
) -> str:
    """The sentences with figures."""
    facts = clip.clip
    told = [
        f"A {look} {shape} video clip of {facts.duration_s:.2f} seconds, "
        f"{facts.width_px} x {facts.height_px} pixels at {facts.fps:.4g} frames per second.",
        f"Its mean brightness is {100 * luma.mean():.0f} % of white{_fade(luma)}.",
    ]
    if speed is not None:
        told.append(f"The picture moves by {100 * speed:.1f} % of its diagonal per second on average.")
    if camera:
        parts = [
            (camera.right, SHIFT, "{:.2f} frame widths to the right", "{:.2f} frame widths to the left"),
            (camera.up, SHIFT, "{:.2f} frame heights up", "{:.2f} frame heights down"),
            (camera.roll_deg, ROLL_DEG, "{:.0f} degrees clockwise", "{:.0f} degrees counterclockwise"),
        ]
        moved = [
            (ahead if part.sum() > 0 else back).format(abs(part.sum()))
            for part, least, ahead, back in parts
            if _one_way(part, least)
        ]
        if moved:
            told.append(f"The camera pans or travels: the view goes {' and '.join(moved)}.")
        if _one_way(camera.zoom, ZOOM):
            ratio = float(np.exp(camera.zoom.sum()))
            told.append(f"It zooms or moves {'in' if ratio > 1 else 'out'}: things become {ratio:.2f} times as large.")
        if camera_words(camera) == ["at rest"]:
            told.append("The camera is at rest.")
        if camera.own_share.mean() > OWN_SHARE:
            told.append("Parts of the picture move on their own.")
    return " ".join(told)


def _fade(luma: np.ndarray) -> str:
    quarter = max(1, len(luma) // 4)
    change = float(luma[-quarter:].mean() - luma[:quarter].mean())
    return "" if abs(change) < FADE else f" and {'rises' if change > 0 else 'falls'} over the clip"
