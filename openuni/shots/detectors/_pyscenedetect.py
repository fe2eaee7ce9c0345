"""PySceneDetect's detectors on frames decoded by OpenUni, by frame number, so that no frame rate is assumed."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from openuni.shots.shot_detector import Timeline, Transition

if TYPE_CHECKING:
    from scenedetect.detector import SceneDetector

LONG_SIDE_PX = 256  # PySceneDetect scales larger videos down to this


def scaled(height_px: int, width_px: int) -> tuple[int, int]:
    """Height and width with a longer side of at most 256 px."""
    scale = max(1.0, max(height_px, width_px) / LONG_SIDE_PX)
    return max(1, round(height_px / scale)), max(1, round(width_px / scale))


def hard_cuts(
    detector: "SceneDetector", metric: str, threshold: float, frames: Iterable[np.ndarray], timeline: Timeline
) -> list[Transition]:
    """The cuts that the detector finds.

    `metric`: the metric that it compares with `threshold`. A value of x gives the confidence x / (x + threshold).
    """
    from scenedetect.common import FrameTimecode

    scores = _scores(metric, threshold)
    detector.stats_manager = scores
    cuts, place = set[int](), FrameTimecode(0, timeline.fps)
    for number, frame in enumerate(frames):
        place = FrameTimecode(number, timeline.fps)
        cuts |= {cut.frame_num for cut in detector.process_frame(place, np.ascontiguousarray(frame[..., ::-1]))}
    cuts |= {cut.frame_num for cut in detector.post_process(place)}
    return [
        Transition(cut, cut, "hard", _confidence(scores.found.get(cut, threshold), threshold)) for cut in sorted(cuts)
    ]


def _confidence(score: float, threshold: float) -> float:
    return score / (score + threshold) if score + threshold > 0 else 1.0


def _scores(metric: str, threshold: float) -> Any:
    """A stats manager that stores only the metrics of frames that may be cuts."""
    from scenedetect.stats_manager import StatsManager

    class Scores(StatsManager):
        def __init__(self) -> None:
            super().__init__()
            self.found: dict[int, float] = {}

        def set_metrics(self, timecode: Any, metric_kv_dict: dict[str, Any]) -> None:
            if metric_kv_dict.get(metric, -1.0) >= threshold:
                self.found[timecode.frame_num] = float(metric_kv_dict[metric])

    return Scores()
