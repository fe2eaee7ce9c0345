"""Short videos embedded in pages: H.264 for browsers, and a still image as fallback."""

import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from openuni.manifests.video.encode import write_video

MIN_SIDE_PX, MAX_SIDE_PX = 160, 360  # of the shorter side: smaller frames are enlarged, larger ones reduced
STILL_QUALITY = 82


class PageVideo(NamedTuple):
    """One video of a page."""

    label: str
    mp4: bytes
    still: bytes  # JPEG of the middle frame
    height_px: int
    width_px: int


class VideoRow(NamedTuple):
    """Videos shown side by side, with the text below them."""

    videos: list[PageVideo]
    text: str


def make_page_video(label: str, frames: np.ndarray, fps: float, *, smooth: bool = True) -> PageVideo:
    """Encode `frames`: uint8 [T, H, W, 3], or float [T, H, W, 3] in 0..1; sRGB.

    Small frames are enlarged by a whole factor, large ones reduced: by interpolation if `smooth`, else to the nearest
    pixel (for labels).
    """
    import cv2

    if frames.dtype != np.uint8:
        frames = np.rint(np.clip(frames, 0.0, 1.0) * 255.0).astype(np.uint8)
    short_px = min(frames.shape[1:3])
    factor = -(-MIN_SIDE_PX // short_px) if short_px <= MAX_SIDE_PX else MAX_SIDE_PX / short_px
    size = tuple(max(2, round(side * factor / 2) * 2) for side in (frames.shape[2], frames.shape[1]))  # even, for H.264
    method = (cv2.INTER_CUBIC if factor >= 1 else cv2.INTER_AREA) if smooth else cv2.INTER_NEAREST
    large = np.stack([cv2.resize(frame, size, interpolation=method) for frame in frames])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        write_video(path, large, fps)
        mp4 = path.read_bytes()
    middle = cv2.cvtColor(large[len(large) // 2], cv2.COLOR_RGB2BGR)
    _, still = cv2.imencode(".jpg", middle, [cv2.IMWRITE_JPEG_QUALITY, STILL_QUALITY])
    return PageVideo(label, mp4, still.tobytes(), *large.shape[1:3])


def turbo(rendering: np.ndarray) -> np.ndarray:
    """Colour a grey rendering, float [T, H, W, 3] in 0..1, by the turbo colour map -> uint8 [T, H, W, 3], RGB."""
    import cv2

    grey = np.rint(np.clip(rendering[..., 0], 0.0, 1.0) * 255.0).astype(np.uint8)
    return np.stack([cv2.applyColorMap(frame, cv2.COLORMAP_TURBO)[..., ::-1] for frame in grey])
