"""Template captions from measurements, without a network."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np

from openuni.annotators._guide_flow import GuideFlow, guide_flow
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.modality import Modality
from openuni.manifests.contracts.operator import Annotator
from openuni.manifests.contracts.windows import WindowedRun, run_at_once
from openuni.manifests.video.clip import Clip

LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)  # Rec. 709
DARK, BRIGHT = 0.2, 0.7  # mean luma, 0..1
COLOURLESS = 0.02  # maximum mean channel range of a colourless clip, 0..1
FADE = 0.1  # minimum change of mean luma from the first to the last quarter
STILL, LITTLE, MUCH = 0.002, 0.02, 0.1  # mean speed, frame diagonals per second

GRID_PX = 8  # grid spacing of the points for the camera fit, in guide-flow pixels
FIT_PX = 1.0  # inlier distance of the camera fit
MIN_POINTS = 12
FOLLOWS = 0.6  # minimum fraction of inliers for a motion to be attributed to the camera
SHIFT = 0.05  # minimum camera displacement to be mentioned, in frame widths or heights
ZOOM = 0.05  # minimum log scale change to be mentioned
ROLL_DEG = 5.0  # minimum roll to be mentioned
ONE_WAY = 0.6  # minimum ratio of net displacement to path length for a consistent direction
AT_REST = 0.01  # maximum path length of a static camera, in frame widths or heights
OWN_PX = 2.0  # minimum residual motion of an independently moving point, in guide-flow pixels
OWN_SHARE = 0.02  # minimum fraction of such points to be mentioned


class TemplateCaptionOfClip(NamedTuple):
    """Template captions of a clip, and the measurements that they are filled in with."""

    brief: Annotated[str, "brief caption: duration, format, brightness, amount of motion, camera motion"]
    detailed: Annotated[str, "detailed caption with the measured values, in several sentences"]
    source: Annotated[str, 'always "template": filled in from measurements, without the content of the clip']
    brightness_mean: Annotated[float, "mean luma of the clip, 0 (black) to 1 (white)"]
    speed_diag_per_s: Annotated[
        float | None, "mean length of the optical flow, frame diagonals per second; null for a clip of one frame"
    ]
    follow_share: Annotated[
        float | None,
        "median fraction of points that follow the dominant shift, zoom and roll, 0 to 1; null without a fit",
    ]
    pan_right_widths: Annotated[
        float | None, "camera displacement to the right over the clip, frame widths; null if follow_share is below 0.6"
    ]
    tilt_up_heights: Annotated[float | None, "camera displacement upward, frame heights; null as for pan_right_widths"]
    zoom_ratio: Annotated[float | None, "scale change by zoom or approach; null as for pan_right_widths"]
    roll_clockwise_deg: Annotated[float | None, "clockwise camera roll, degrees; null as for pan_right_widths"]
    own_motion_share: Annotated[
        float | None,
        "fraction of points that move independently of the camera, mean over the clip, 0 to 1; null as for "
        "pan_right_widths",
    ]


class CameraMotion(NamedTuple):
    """Camera motion over a clip, per pair of adjacent frames: float64 [T - 1]."""

    right: np.ndarray  # frame widths
    up: np.ndarray  # frame heights
    zoom: np.ndarray  # natural logarithm of the scale change
    roll_deg: np.ndarray  # camera roll, clockwise
    follow_share: np.ndarray  # 0..1
    own_share: np.ndarray  # 0..1


@dataclass(frozen=True)
class TemplateCaption(Annotator):
    """Brief and detailed captions filled in from measurements, without a network; `source` is "template".

    Format, duration and brightness are measured from the frames. Motion is measured from optical flow (DIS at 256 px):
    the mean speed, and the dominant shift, zoom and roll, which is attributed to the camera. Pans cannot be told from
    lateral camera translation, nor zooms from approach, so the sentences do not distinguish them. If less than 0.6 of
    the points follow one motion, the camera is not mentioned. The content of the clip is not described: use `caption`
    for that.
    """

    origin: ClassVar[str] = "OpenUni; similarity fit to optical flow by RANSAC, as in OpenCV"

    def run(self, model: Any, clip: DecodedClip) -> TemplateCaptionOfClip:
        """Both captions and the measurements."""
        return run_at_once(self.start_windows(model), clip)

    def start_windows(self, model: Any) -> "CaptionWindows":
        """See `Operator.start_windows`."""
        return CaptionWindows()


class CaptionWindows(WindowedRun[TemplateCaptionOfClip]):
    """Measures frames and pairs of frames; the sentences follow at the end."""

    def __init__(self) -> None:
        self.clip: Clip | None = None
        self.luma: list[float] = []
        self.spread: list[float] = []
        self.speeds: list[np.ndarray] = []
        self.diagonal_px = 1.0  # of the flow
        self.camera: list[tuple[float, ...]] | None = []  # None: too few points of a pair have valid flow

    def add(self, window: DecodedClip) -> Mapping[str, Modality]:
        """See `WindowedRun.add`."""
        self.clip = window.clip
        self.luma += [float((frame @ LUMA).mean()) for frame in window.new_frames]
        self.spread += [float(np.ptp(frame, axis=-1).mean(dtype=np.float64)) for frame in window.new_frames]
        flow = guide_flow(window)
        self.diagonal_px = float(np.hypot(*flow.size_px))
        self.speeds.append(pair_speeds(flow, window.times_s))
        found = None if self.camera is None else pair_camera_motions(flow)
        self.camera = None if self.camera is None or found is None else self.camera + found
        return {}

    def result(self) -> TemplateCaptionOfClip:
        """See `WindowedRun.result`."""
        clip = self.clip
        assert clip is not None, "a clip has at least one frame"
        luma, spread = np.array(self.luma) / 255, float(np.mean(self.spread)) / 255
        speeds = np.concatenate(self.speeds)
        speed = float(speeds.mean() / self.diagonal_px) if len(speeds) else None
        camera = CameraMotion(*np.array(self.camera, np.float64).T) if self.camera else None
        follows = float(np.median(camera.follow_share)) if camera else None
        known = camera if follows is not None and follows >= FOLLOWS else None
        look = _look(float(luma.mean()), spread)
        moves = _amount(speed)
        way = camera_words(known) if known else []
        shape = _shape(clip.width_px, clip.height_px)
        length_s = clip.duration_s
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


def pair_speeds(flow: GuideFlow, times_s: np.ndarray) -> np.ndarray:
    """Mean length of the flow where it is valid, flow pixels per second, of the pairs that have any."""
    length_px = np.hypot(flow.forward[..., 0], flow.forward[..., 1])
    counts = flow.forward_valid.sum(axis=(1, 2))
    sums = np.where(flow.forward_valid, length_px, 0).sum(axis=(1, 2), dtype=np.float64)
    return (sums[counts > 0] / counts[counts > 0]) / np.diff(times_s)[counts > 0]


def pair_camera_motions(flow: GuideFlow) -> list[tuple[float, ...]] | None:
    """Dominant shift, zoom and roll of each pair of adjacent frames; None if too few points of one have valid flow.

    The entries of a pair are those of `CameraMotion`.
    """
    import cv2

    height_px, width_px = flow.size_px
    step = min(GRID_PX, max(1, min(height_px, width_px) // 8))
    rows, columns = np.mgrid[step // 2 : height_px : step, step // 2 : width_px : step]
    centre = np.array([(width_px - 1) / 2, (height_px - 1) / 2])
    found: list[tuple[float, ...]] = []
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
        # image content moves opposite to the camera
        found.append((-shift_x / width_px, shift_y / height_px, float(np.log(scale)), -float(turn), follow, own))
    return found


def camera_words(camera: CameraMotion) -> list[str]:
    """Camera motion in words, without numbers; empty if it is neither static nor in a consistent direction."""
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
    facts: Clip, look: str, shape: str, luma: np.ndarray, speed: float | None, camera: CameraMotion | None
) -> str:
    """The detailed caption, with numbers."""
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
