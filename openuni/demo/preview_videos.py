"""Short videos as bytes for a page: H.264 that browsers play, and a still to show where they do not."""

import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from openuni.manifests.video.encode import write_video

MIN_SIDE_PX = 160  # smaller pictures are enlarged: browsers would smear them
STILL_QUALITY = 82


class PageVideo(NamedTuple):
    """One video of a page."""

    label: str
    mp4: bytes
    still: bytes  # JPEG of the middle frame
    height_px: int
    width_px: int


class VideoRow(NamedTuple):
    """Films that belong side by side, with the text under them."""

    videos: list[PageVideo]
    text: str


def make_page_video(label: str, pictures: np.ndarray, fps: float) -> PageVideo:
    """A film of `pictures`: uint8 [T, H, W, 3], or float [T, H, W, 3] in 0..1; sRGB, even sides."""
    import cv2

    if pictures.dtype != np.uint8:
        pictures = np.rint(np.clip(pictures, 0.0, 1.0) * 255.0).astype(np.uint8)
    times = -(-MIN_SIDE_PX // min(pictures.shape[1:3]))
    large = pictures.repeat(times, axis=1).repeat(times, axis=2)  # every pixel stays visible as itself
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        write_video(path, large, fps)
        mp4 = path.read_bytes()
    middle = cv2.cvtColor(large[len(large) // 2], cv2.COLOR_RGB2BGR)
    _, still = cv2.imencode(".jpg", middle, [cv2.IMWRITE_JPEG_QUALITY, STILL_QUALITY])
    return PageVideo(label, mp4, still.tobytes(), *large.shape[1:3])
