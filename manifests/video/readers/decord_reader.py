"""Reading frames with decord 0.6, as an alternative to PyAV. What it would get wrong, as far as it shows, is an error.

decord addresses frames by their number in the file. Its number and timestamps of frames are compared with those that
PyAV lists, and three of its pictures with PyAV's: see `openuni.manifests.video.readers.reader_check`.
"""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from openuni.manifests.errors import MissingRequirement
from openuni.manifests.video.clip import Clip
from openuni.manifests.video.container import Limits, demux, list_packets, open_video, pixel_aspect, translate_errors
from openuni.manifests.video.decoder.progress import allowing, tick
from openuni.manifests.video.frames import IDENTITY_ORIENTATION, is_interlaced, orientation
from openuni.manifests.video.source_file import open_file
from openuni.manifests.video.video_errors import ReaderMismatch, VideoError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# decord's FFmpeg (4.1) opens whatever it recognizes, playlists too. These formats are known by their first bytes; of
# MPEG transport and program streams decord gives other frames than it says.
FORMATS = ("mov", "matroska", "avi")
STRICT = 1e-9  # any frame that decord could not decode is an error
BATCH_FRAMES, BATCH_BYTES = 16, 64 * 2**20
OTHERWISE = 'Set [work] reader = "pyav".'
MAX_MEAN_LEVELS = 2.0  # of a picture's mean distance to PyAV's: rounding, and how chroma is interpolated


def require_decord() -> Any:
    """The module. Raises `MissingRequirement`."""
    try:
        import decord
    except ImportError as error:
        raise MissingRequirement(
            f'[work] reader = "decord" requires the package decord ({error}): pip install decord. {OTHERWISE}'
        ) from error
    decord.logging.set_level(decord.logging.QUIET)
    return decord


def decord_images(
    clip: Clip, wanted_pts: np.ndarray, size_px: tuple[int, int], limits: Limits, threads: int
) -> Iterator[np.ndarray]:
    """Images of the frames at `wanted_pts` (int64 [n], increasing), uint8 [H, W, 3] of `size_px`.

    `threads`: number of decoder threads; 0: decord's choice. Raises `ReaderMismatch` if decord has other frames than
    the file, `VideoError` if it cannot read them.
    """
    decord = require_decord()
    errors = (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError, AssertionError, IndexError)
    all_pts, unit_s = _all_timestamps(clip, limits)
    height_px, width_px = clip.height_px, clip.width_px
    count = max(1, min(BATCH_FRAMES, BATCH_BYTES // (height_px * width_px * 3)))
    with contextlib.ExitStack() as stack, translate_errors(clip.source):
        try:
            with allowing(limits.max_probe_s):
                file = open_file(clip.source, stack, limits.max_probe_s)
                _check_memory(clip, file, limits)
                opened = decord.VideoReader(file, num_threads=threads, fault_tol=STRICT)
                _check_timestamps(clip, opened, all_pts, unit_s)
            places = np.searchsorted(all_pts, wanted_pts)
            for first in range(0, len(places), count):
                frames = opened.get_batch(places[first : first + count]).asnumpy()
                tick()
                if frames.shape[1:] != (height_px, width_px, 3):
                    text = f"decord gives frames of {frames.shape[2]}x{frames.shape[1]}, not {width_px}x{height_px}"
                    raise ReaderMismatch(f"{clip.source}: {text}. {OTHERWISE}")
                yield from (_scaled(frame, size_px) for frame in frames)
        except errors as error:
            text = str(error).strip().split("\n")[0][:300]
            raise VideoError(f"{clip.source}: decord cannot read it ({text}). {OTHERWISE}") from error


def check_plain(clip: Clip, frame: "VideoFrame", stream: "VideoStream") -> None:
    """Raise `ReaderMismatch` for what decord does not show as it is to be shown."""
    reason = ""
    if orientation(frame) != IDENTITY_ORIENTATION:
        reason = "rotated or mirrored"
    elif is_interlaced(frame, clip.codec):
        reason = "interlaced"
    elif pixel_aspect(clip.source, stream) != 1:
        reason = "stored with pixels that are not square"
    if reason:
        raise ReaderMismatch(f"{clip.source} is {reason}, which decord does not apply. {OTHERWISE}")


def reference_image(frame: "VideoFrame", size_px: tuple[int, int]) -> np.ndarray:
    """A frame of PyAV as decord converts it, uint8 [H, W, 3]: by BT.601 unless the stream says otherwise."""
    return _scaled(frame.to_ndarray(format="rgb24", threads=1, interpolation="BICUBIC"), size_px)


def _all_timestamps(clip: Clip, limits: Limits) -> tuple[np.ndarray, float]:
    """Timestamps of all frames of the file, int64 [T], and the seconds of one unit. Raises `VideoError`."""
    with open_video(clip.source, limits) as (container, stream), translate_errors(clip.source):
        _check_format(clip, container)
        packets = list_packets(container, demux(container, stream), clip.source, limits)
    return packets.pts, clip.time_base_num / clip.time_base_den


def _check_format(clip: Clip, container: "InputContainer") -> None:
    name = container.format.name.partition(",")[0]
    if name not in FORMATS:
        raise VideoError(f"{clip.source}: decord is used for mp4, mov, mkv, webm and avi, not for {name}. {OTHERWISE}")


def _check_memory(clip: Clip, file: Any, limits: Limits) -> None:
    """decord reads what is not a local file into memory as a whole."""
    if not isinstance(file, str) and file.size is not None and file.size > limits.max_decoder_bytes // 4:
        raise VideoError(
            f"{clip.source}: decord would hold its {file.size / 1e9:.3g} GB in memory, over a quarter of [work] "
            f"decoder_memory_gb. Copy it to a local disk, or raise that. {OTHERWISE}"
        )


def _check_timestamps(clip: Clip, opened: Any, all_pts: np.ndarray, unit_s: float) -> None:
    """Raise `ReaderMismatch` unless decord has as many frames as the file, at the same times from the first one on."""
    if len(opened) != len(all_pts):
        text = f"decord finds {len(opened)} frames, PyAV {len(all_pts)}"
        raise ReaderMismatch(f"{clip.source}: {text} (an edit list, hidden frames, or damage). {OTHERWISE}")
    times_s = np.asarray(opened.get_frame_timestamp(np.arange(len(all_pts))), np.float64)[:, 0]
    expected_s = (all_pts - all_pts[0]) * unit_s
    gap_s = float(np.diff(expected_s).min(initial=1.0))
    off_s = np.abs(times_s - times_s[0] - expected_s)
    if not (off_s < gap_s / 2 + 1e-6 * expected_s[-1]).all():  # decord counts in float32
        number = int(np.argmax(off_s))
        text = f"decord has frame {number} at {times_s[number] - times_s[0]:g} s, PyAV at {expected_s[number]:g} s"
        raise ReaderMismatch(f"{clip.source}: {text}. {OTHERWISE}")


def _scaled(image: np.ndarray, size_px: tuple[int, int]) -> np.ndarray:
    """An image of RGB, downscaled by area averaging unless it has the size."""
    import cv2

    if image.shape[:2] == size_px:
        return image
    return np.asarray(cv2.resize(image, size_px[::-1], interpolation=cv2.INTER_AREA))
