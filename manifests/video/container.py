"""Safe opening of untrusted video files: allow-listed demuxers, no nested resources, limits."""

import contextlib
import io
import itertools
import math
import time
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from openuni.manifests.errors import ClipError
from openuni.manifests.video.decoder.limits import Limits as Limits
from openuni.manifests.video.decoder.progress import allowing, tick
from openuni.manifests.video.file_head import check_head, image_demuxer, padded_transport_stream
from openuni.manifests.video.mp4_tables import check_mp4_tables
from openuni.manifests.video.source_file import HTTP_PROTOCOLS, ByteRangeFile, limit_requests, open_file
from openuni.manifests.video.video_errors import CorruptVideo, LimitExceeded, NotAVideo, UnsafeSource, VideoError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

# Self-contained formats. Playlists and scripts (hls, dash, concat, image2, ...) are excluded: they refer to other files
# and URLs, so that a crafted one could read local files into a corpus.
DEMUXERS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,ivf,mxf"
# Pictures are clips of one frame. They are read from an open file: FFmpeg would take the name "%03d.jpg" for a pattern.
IMAGE_DEMUXERS = ("png_pipe", "jpeg_pipe", "webp_pipe")
MAX_PIXEL_ASPECT = 4  # real formats stay below about 2.2
SQUARE_PIXEL_TOLERANCE = 0.01  # covers the rounding of sizes to even numbers by encoders
_NO_STREAM = "no video stream in {source}; it contains {found}. Give a video file."


class Span(NamedTuple):
    """The frames of one clip, in the stream's time base."""

    start_pts: int
    end_pts: int  # exclusive
    frame_count: int


class Packets(NamedTuple):
    """Timestamps of a stream's frames, in the stream's time base."""

    pts: np.ndarray  # int64 [T], increasing: displayed frames
    keys: np.ndarray  # int64 [K], increasing: keyframes, displayed or hidden by an edit list
    last_duration: int  # duration of the last displayed frame; 0 if the container does not state it
    hashes: np.ndarray  # uint64 [T], xxh3-64 of the compressed frames, in the order of `pts`


@contextlib.contextmanager
def open_video(
    source: str, limits: Limits, data: bytes | None = None, *, only_probe: bool = False, hwaccel: Any = None
) -> Iterator["tuple[InputContainer, VideoStream]"]:
    """Context with the container and its main video stream. URLs are read through a seekable file object.

    `data`: contents of the video; `source` then only serves as its name in errors.
    `only_probe`: for HTTP, `limits.max_probe_s` is the time for all requests; else for those that open the file, and
    for each that follows.
    `hwaccel`: PyAV's `HWAccel`, if its decoder is to be the stream's.
    Raises a `VideoError`.
    """
    import av

    with contextlib.ExitStack() as stack:
        with translate_errors(source), allowing(limits.max_probe_s):
            file = (
                open_file(source, stack, limits.max_probe_s)
                if data is None
                else ByteRangeFile(source, io.BytesIO(data), 0, len(data) - 1)
            )
            check_head(source, file)
            padded = padded_transport_stream(file)
            if padded is not None:
                file = ByteRangeFile(source, io.BytesIO(padded), 0, len(padded) - 1)
            image = image_demuxer(file)
            if image is not None and isinstance(file, str):
                opened = stack.enter_context(Path(file).open("rb"))
                file = ByteRangeFile(source, opened, 0, Path(file).stat().st_size - 1)
            check_mp4_tables(source, file, limits.max_frame_count, limits.max_probe_s)
            protocols = "file" if isinstance(file, str) else "none"
            container = stack.enter_context(
                av.open(
                    file,
                    mode="r",
                    format=image,  # else two pictures in one file, as phones write them, would be a video stream
                    container_options={"format_whitelist": image or DEMUXERS, "protocol_whitelist": protocols},
                    options={"max_pixels": str(limits.max_pixels)},
                    metadata_errors="replace",
                    timeout=limits.max_probe_s,
                    hwaccel=hwaccel,
                )
            )
            stream = _main_stream(source, container)
            _check_complete(source, container, stream)
            _check_size(source, stream, limits)
            if not only_probe:
                limit_requests(file)
        yield container, stream


@contextlib.contextmanager
def translate_errors(source: str) -> Iterator[None]:
    """Context that converts errors of the underlying libraries to `VideoError`s that name the source."""
    import av

    try:
        yield
    except ClipError:
        raise
    except av.error.ExitError as error:
        raise LimitExceeded(
            f"reading {source} took longer than allowed. Copy it to a local disk, or raise Limits.max_probe_s."
        ) from error
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise VideoError(
            f"cannot open {source}: {error.strerror or error}. Check the path and its permissions."
        ) from error
    except av.FFmpegError as error:
        raise _to_video_error(source, error) from error
    except _read_errors(source) as error:
        raise VideoError(f"reading {source} failed: {error}. Retry, or copy it to a local disk.") from error


def read_all(source: str) -> bytes:
    """Contents of a video file: a local path, a URL, or a byte range of either. Raises a `VideoError`."""
    with contextlib.ExitStack() as stack, translate_errors(source):
        file = open_file(source, stack, Limits.max_probe_s)
        limit_requests(file)
        return Path(file).read_bytes() if isinstance(file, str) else bytes(file.read())


def demux(container: "InputContainer", stream: "VideoStream") -> "Iterator[Packet[VideoStream]]":
    """The packets of a stream, as `container.demux`; leaves nothing behind when it is not read to its end.

    A generator of PyAV that is dropped is not finalized: its packet buffer would leak and its time limit stay set.
    `yield from` closes it together with this one. Of an image file, only the first picture is one: others are previews.
    """
    if container.format.name in IMAGE_DEMUXERS:
        yield from list(container.demux(stream))[:1]
        return
    yield from container.demux(stream)


def lacks_timestamps(container: "InputContainer") -> bool:
    """Whether a container stores no presentation timestamps. AVI only numbers its frames in decoding order.

    The timestamps that FFmpeg derives for AVI are wrong with B-frames. Frame numbers are used instead: the n-th decoded
    frame has number n, so such a stream can only be decoded from its beginning.
    """
    return container.format.name == "avi"


def packet_timestamp(packet: "Packet[Any]", by_count: bool) -> int | None:
    """Presentation timestamp of a packet, or its number for containers without timestamps (`by_count`)."""
    return packet.dts if by_count or packet.pts is None else packet.pts


def list_packets(
    container: "InputContainer",
    packets: "Iterable[Packet[VideoStream]]",
    source: str,
    limits: Limits,
    span: Span | None = None,
) -> Packets:
    """List the timestamps of `packets` without decoding, to the end or until all frames of `span` are listed.

    Frames normally are not displayed before they are decoded, so none of the span follows a decoding timestamp at its
    end. Some files (edit lists, iPhone recordings) have decoding timestamps above the presentation timestamps; listing
    then continues until the number of frames is reached.
    Frames before the first keyframe, in decoding or presentation order, cannot be decoded and are skipped.
    """
    deadline = time.monotonic() + limits.max_probe_s
    by_count = lacks_timestamps(container)
    pts: list[int] = []
    hashes: list[int] = []
    from xxhash import xxh3_64_intdigest

    keys: list[int] = []
    latest, last_duration, in_span = -math.inf, 0, 0
    for packet in packets:
        tick()
        if packet.size == 0 or not (keys or packet.is_keyframe):
            continue
        timestamp = packet_timestamp(packet, by_count)
        if timestamp is None:
            raise CorruptVideo(f"{source} has frames without timestamps (a raw stream?). Remux it to mp4 or mkv.")
        is_past = span is not None and packet.dts is not None and packet.dts >= span.end_pts
        if span is not None and is_past and in_span >= span.frame_count:
            break
        if packet.is_keyframe:
            keys.append(timestamp)
        if timestamp < keys[0] or packet.is_discard or not _is_shown(packet):
            continue
        if timestamp > latest:
            latest, last_duration = timestamp, packet.duration or 0
        pts.append(timestamp)
        in_span += span is not None and span.start_pts <= timestamp < span.end_pts
        hashes.append(xxh3_64_intdigest(memoryview(packet)))
        if len(pts) > limits.max_frame_count:
            text = f"{source} has more than {limits.max_frame_count} frames. Cut it, or raise Limits.max_frame_count."
            raise LimitExceeded(text)
        if time.monotonic() > deadline:
            text = f"listing the frames of {source} took over {limits.max_probe_s:g} s. Raise Limits.max_probe_s."
            raise LimitExceeded(text)
    times = np.array(pts, np.int64)
    order = np.argsort(times, kind="stable")
    ordered_hashes = np.array(hashes, np.uint64)[order]
    return Packets(times[order], np.sort(np.array(keys, np.int64)), last_duration, ordered_hashes)


def packets_from_key(
    container: "InputContainer", stream: "VideoStream", at_pts: int, source: str
) -> "Iterator[Packet[VideoStream]]":
    """All packets from a keyframe at or before `at_pts` on.

    Containers seek by decoding time or position, so a seek may land on a keyframe that is displayed too late; it is
    then repeated from further back. In FLV it may land on the end marker, which has no frame; the last attempts are
    then the file's first keyframe, and its first byte: FFmpeg does not find the keyframe of a file that has only one.
    """
    import av

    by_count = lacks_timestamps(container)
    one_second = max(1, round(1 / stream.time_base)) if stream.time_base else 1
    first_dts = min(at_pts, stream.start_time or 0) - 10 * one_second
    offset = 0
    seek_modes = ["backward", "forward", "first byte"] if container.format.name == "flv" else ["backward"]
    while True:
        target = max(first_dts, at_pts - offset)
        with contextlib.suppress(av.error.PermissionError):  # FFmpeg's error if there is nothing before `target`
            if seek_modes[0] == "first byte":
                container.seek(0, unsupported_byte_offset=True)
            else:
                container.seek(target, stream=stream, backward=seek_modes[0] == "backward")
            packets = demux(container, stream)
            for packet in packets:
                tick()
                timestamp = packet_timestamp(packet, by_count)
                if packet.size and packet.is_keyframe and timestamp is not None:
                    if timestamp <= at_pts:
                        return itertools.chain((packet,), packets)
                    break
        if target == first_dts and len(seek_modes) > 1:
            seek_modes.pop(0)
            continue
        if target == first_dts:
            raise CorruptVideo(f"{source} has no keyframe at or before timestamp {at_pts}. Remux it to mp4 or mkv.")
        offset = max(one_second, 2 * offset)


def _read_errors(source: str) -> tuple[type[Exception], ...]:
    """Exceptions that reading a source may raise: OSError and those of the object store's client."""
    protocol = source.partition("://")[0]
    if protocol in HTTP_PROTOCOLS:
        import aiohttp

        return (OSError, aiohttp.ClientError)
    if protocol in ("s3", "s3a"):
        import botocore.exceptions

        return (OSError, botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError)
    return (OSError,)


def _main_stream(source: str, container: "InputContainer") -> "VideoStream":
    from av.stream import Discard, Disposition

    pictures = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
    videos = [stream for stream in container.streams.video if not stream.disposition & pictures]
    if not videos:
        found = ", ".join(sorted({stream.type for stream in container.streams})) or "no streams"
        found += " (cover art only)" if container.streams.video else ""
        raise NotAVideo(_NO_STREAM.format(source=source, found=found))
    best = container.streams.best("video")
    stream = next((video for video in videos if best is not None and video.index == best.index), videos[0])
    if stream.codec_context is None:
        raise CorruptVideo(f"{source}: no decoder for its video codec. Re-encode it, for example to H.264.")
    for other in container.streams:
        if other.index != stream.index:
            other.discard = Discard.all
    return stream


def pixel_aspect(source: str, stream: "VideoStream") -> Fraction:
    """Sample aspect ratio of a stream, width over height of a pixel; 1 if unspecified or within 1 % of square.

    Raises `CorruptVideo` if it is implausible.
    """
    ratio = Fraction(stream.sample_aspect_ratio or 1)
    if ratio <= 0 or abs(ratio - 1) < SQUARE_PIXEL_TOLERANCE:
        return Fraction(1)
    if not 1 / MAX_PIXEL_ASPECT <= ratio <= MAX_PIXEL_ASPECT:
        allowed = f"1/{MAX_PIXEL_ASPECT} to {MAX_PIXEL_ASPECT}"
        raise CorruptVideo(
            f"{source}: sample aspect ratio must be {allowed}, got {float(ratio):.3g}. Remux it with a ratio of 1."
        )
    return ratio


def _check_size(source: str, stream: "VideoStream", limits: Limits) -> None:
    width_px = max(stream.width, round(stream.width * pixel_aspect(source, stream)))  # stored and displayed width
    if width_px * stream.height > limits.max_pixels:
        raise LimitExceeded(
            f"{source} is {width_px}x{stream.height}, over Limits.max_pixels = {limits.max_pixels}. Scale it down."
        )


def _is_shown(packet: "Packet[VideoStream]") -> bool:
    """Whether a packet is displayed. VP8 has packets of hidden frames; bit 4 of the first byte is `show_frame`."""
    return packet.stream.codec_context.name != "vp8" or bool(memoryview(packet)[0] & 0x10)


def _check_complete(source: str, container: "InputContainer", stream: "VideoStream") -> None:
    """Raise `CorruptVideo` if the index of an mp4 refers to data beyond the end of the file."""
    if not container.format.name.startswith("mov") or not len(stream.index_entries):
        return
    end = max(entry.pos + entry.size for entry in stream.index_entries)
    if 0 < container.size < end:
        text = f"{source} is truncated: it has {container.size} bytes, its frames extend to {end}. Download it again."
        raise CorruptVideo(text)


def _to_video_error(source: str, error: Exception) -> VideoError:
    """Convert an FFmpeg error to a `VideoError`."""
    import av

    if isinstance(error, av.error.ArgumentError):
        return UnsafeSource(f"{source}: container format is not allowed. Allowed: {DEMUXERS}. Remux it to mp4.")
    if isinstance(error, (av.error.InvalidDataError, av.error.EOFError)):
        return NotAVideo(f"{source} is not a readable video, or is truncated ({error.strerror}). Download it again.")
    if isinstance(error, av.error.ProtocolNotFoundError):
        return UnsafeSource(f"{source} refers to another resource, which is not allowed. Give a self-contained file.")
    return VideoError(f"{source} cannot be read: {error}. Re-encode it, for example to H.264 in mp4.")
