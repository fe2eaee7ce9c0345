"""Images of a clip's frames, by the reader that a recipe names: PyAV on the CPU, PyAV with NVDEC, or decord."""

from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from openuni.manifests.video.clip import Clip
from openuni.manifests.video.container import Limits, open_video, translate_errors
from openuni.manifests.video.frames import (
    FieldSelector,
    FrameReader,
    apply_orientation,
    display_size,
    is_transposed,
    orientation,
    to_rgb24,
)
from openuni.manifests.video.motion_vectors import MotionVectors, frame_motion_vectors
from openuni.manifests.video.readers.decord_reader import MAX_MEAN_LEVELS, check_plain, decord_images, reference_image
from openuni.manifests.video.readers.nvdec_reader import MAX_LEVELS, hardware_frames, require_supported
from openuni.manifests.video.readers.reader_check import Difference, compared, sampled_timestamps
from openuni.manifests.video.video_errors import CorruptVideo, VideoError

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

READERS = ("pyav", "decord", "nvdec")


class Attempt(NamedTuple):
    """One way to decode a clip."""

    reader: str
    threads: int
    is_fallback: bool = False  # another reader was asked for


def attempts_of(reader: str, threads: int, vectors: bool) -> list[Attempt]:
    """What to try, one after the other as long as the video seems corrupt. Raises `VideoError` for unknown readers."""
    if reader not in READERS:
        raise VideoError(f'reader "{reader}" is not known. Known: {", ".join(READERS)}.')
    if reader == "decord":
        if vectors:
            raise VideoError('decord gives no motion vectors. Set [work] reader = "pyav".')
        return [Attempt(reader, threads)]
    is_hardware = reader == "nvdec" and not vectors
    # one thread is slower, but tolerates harmless faults
    on_cpu = [Attempt("pyav", threads, is_hardware), *([Attempt("pyav", 1)] if threads != 1 else [])]
    return [Attempt(reader, 1), *on_cpu] if is_hardware else on_cpu


def images_by(
    attempt: Attempt,
    clip: Clip,
    reader: FrameReader,
    wanted_pts: np.ndarray,
    size_px: tuple[int, int],
    limits: Limits,
    vectors: list[MotionVectors | None] | None,
) -> Iterator[np.ndarray]:
    """Displayed images of the frames at `wanted_pts`, uint8 [H, W, 3]. `vectors`: gets their motion vectors."""
    if vectors is not None:
        reader.keep_vectors()
    samples = np.array(sampled_timestamps(wanted_pts, reader.key_pts), np.int64)
    if attempt.reader == "decord":
        references = {}
        for pts, frame in zip(samples.tolist(), reader.frames(samples), strict=True):
            check_plain(clip, frame, reader.stream)
            references[pts] = reference_image(frame, size_px)
        images = decord_images(clip, wanted_pts, size_px, limits, attempt.threads)
        return compared(clip.source, "decord", images, wanted_pts, references, Difference(MAX_MEAN_LEVELS, 255))
    if attempt.reader == "nvdec":
        return hardware_images(clip, reader, wanted_pts, size_px, limits)

    def frames() -> "Iterator[VideoFrame]":
        for frame in reader.frames(wanted_pts):
            if vectors is not None:
                vectors.append(frame_motion_vectors(frame))
            yield frame

    return displayed_images(clip, frames(), size_px, reader.pixel_aspect)


def hardware_images(
    clip: Clip,
    reader: FrameReader,
    wanted_pts: np.ndarray,
    size_px: tuple[int, int],
    limits: Limits,
    *,
    on_gpu: bool = True,
) -> Iterator[np.ndarray]:
    """Displayed images of the frames at `wanted_pts` by the decoder of `reader`, checked against the CPU's.

    `on_gpu`: false to do the same with a decoder on the CPU, where there is no GPU to test it on.

    Raises `HardwareRefused` for what NVDEC does not decode, `ReaderMismatch` for a sample that differs.
    """
    require_supported(clip.source, reader.stream, on_gpu=on_gpu)
    samples = np.array(sampled_timestamps(wanted_pts, reader.key_pts), np.int64)
    with open_video(clip.source, limits) as (container, stream), translate_errors(clip.source):
        on_cpu = FrameReader(clip.source, container, stream, reader.packets, limits)
        right = list(displayed_images(clip, on_cpu.frames(samples), size_px, on_cpu.pixel_aspect))
    references = dict(zip(samples.tolist(), right, strict=True))
    frames = hardware_frames(clip.source, reader.frames(wanted_pts), on_gpu=on_gpu)
    images = displayed_images(clip, frames, size_px, reader.pixel_aspect)
    yield from compared(clip.source, "NVDEC", images, wanted_pts, references, Difference(MAX_LEVELS, MAX_LEVELS))


def displayed_images(
    clip: Clip, frames: "Iterator[VideoFrame]", size_px: tuple[int, int], pixel_aspect: Fraction
) -> Iterator[np.ndarray]:
    """Convert frames to displayed images, uint8 [H, W, 3]: deinterlaced, converted to RGB, scaled and rotated."""
    from av.video.reformatter import VideoReformatter

    height_px, width_px = size_px
    reformatter, select_field = VideoReformatter(), FieldSelector(clip.codec)
    display_matrix: tuple[int, int, int, int] | None = None
    for number, frame in enumerate(frames):
        display_matrix = orientation(frame) if display_matrix is None else display_matrix
        stored_size = (height_px, width_px) if is_transposed(display_matrix) else (width_px, height_px)
        displayed = display_size(frame, display_matrix, pixel_aspect)
        if displayed != (clip.width_px, clip.height_px):
            text = f"frame {number} is {displayed[0]}x{displayed[1]}, the clip is {clip.width_px}x{clip.height_px}"
            raise CorruptVideo(f"{clip.source}: {text}. Cut the video where its size changes.")
        yield apply_orientation(to_rgb24(select_field(frame), *stored_size, reformatter), display_matrix)
