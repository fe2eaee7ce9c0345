"""Opening video files, which are hostile input: allow-listed demuxers, no nested resources, limits."""

import contextlib
import io
import itertools
import math
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from openuni.manifests.errors import ClipError, MissingRequirement
from openuni.manifests.video.file_head import check_head
from openuni.manifests.video.video_errors import CorruptVideo, LimitExceeded, NotAVideo, UnsafeSource, VideoError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

# Containers that hold their own media. Playlists and scripts (hls, dash, concat, image2, ...) name other files and
# URLs, so a crafted one could read this machine's files into a corpus: they are not here.
DEMUXERS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,ivf,mxf"
BYTE_RANGE = re.compile(r"#bytes=(\d{1,18})-(\d{1,18})$")  # behind a source, both ends included, as HTTP writes ranges
URL_PROTOCOLS = ("http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory")
MAX_PIXEL_ASPECT = 4  # no format has pixels longer than about 2.2 times their other side
SQUARE_PIXEL_TOLERANCE = 0.01  # encoders state what rounding a size to even numbers left over
ESCAPED_BYTE = r"\udc"  # in names of files that are not UTF-8
_NO_STREAM = "no video stream in {source}: it holds {found}. Give a file with pictures that move."


@dataclass(frozen=True)
class Limits:
    """What one video may cost. Raise them in code for sources you trust."""

    max_pixels: int = 8192 * 8192  # width times height of one frame
    max_duration_s: float = 12 * 3600.0
    max_frame_count: int = 3_000_000
    max_probe_s: float = 120.0  # wall time to open a file and list its timestamps
    max_decoded_bytes: int = 16 * 2**30  # frames of one decode, at the working size


class Packets(NamedTuple):
    """Timestamps of a stream's frames in the stream's time base."""

    pts: np.ndarray  # int64 [T], of the frames that are shown, increasing
    keys: np.ndarray  # int64 [K], of all frames that decoding can begin at, shown or hidden by an edit list; increasing
    last_duration: int  # of the frame shown last; 0 when the container does not say


@contextlib.contextmanager
def open_video(
    source: str, limits: Limits, data: bytes | None = None
) -> Iterator["tuple[InputContainer, VideoStream]"]:
    """The container and its main video stream. Local by path, remote through a seekable fsspec file object.

    `data`: the bytes of the video, which is then only called `source`.
    """
    import av

    with contextlib.ExitStack() as stack:
        with translate_errors(source):
            file = (
                _file_of(source, stack) if data is None else _ByteRangeFile(source, io.BytesIO(data), 0, len(data) - 1)
            )
            check_head(source, file)
            protocols = "file" if isinstance(file, str) else "none"
            container = stack.enter_context(
                av.open(
                    file,
                    mode="r",
                    container_options={"format_whitelist": DEMUXERS, "protocol_whitelist": protocols},
                    options={"max_pixels": str(limits.max_pixels)},
                    metadata_errors="replace",
                    timeout=limits.max_probe_s,
                )
            )
            stream = _main_stream(source, container)
            _check_whole(source, container, stream)
            _check_size(source, stream, limits)
        yield container, stream


@contextlib.contextmanager
def translate_errors(source: str) -> Iterator[None]:
    """Turn the failures of the libraries below into `VideoError`s that name the source."""
    import av

    try:
        yield
    except ClipError:
        raise
    except av.error.ExitError as error:
        raise LimitExceeded(
            f"reading {source} took longer than allowed: copy it nearer or raise Limits.max_probe_s"
        ) from error
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise VideoError(
            f"cannot open {source}: {error.strerror or error}. Check the path and its permissions."
        ) from error
    except av.FFmpegError as error:
        raise _to_video_error(source, error) from error
    except _read_errors(source) as error:
        raise VideoError(f"reading {source} failed: {error}. Try again, or copy it to a local disk.") from error


def read_all(source: str) -> bytes:
    """The bytes of a video as it lies, of a local path, a URL or a span of either."""
    with contextlib.ExitStack() as stack, translate_errors(source):
        file = _file_of(source, stack)
        return Path(file).read_bytes() if isinstance(file, str) else bytes(file.read())


def lacks_timestamps(container: "InputContainer") -> bool:
    """AVI numbers its frames in decoding order and knows no presentation times.

    What FFmpeg derives for it is wrong with B-frames. Such a stream is timed by its numbers instead: the n-th frame the
    decoder puts out has the n-th number, so it can only be decoded from its beginning.
    """
    return container.format.name == "avi"


def packet_timestamp(packet: "Packet[Any]", by_count: bool) -> int | None:
    """Presentation timestamp of a packet, or its number for containers that only count."""
    return packet.dts if by_count or packet.pts is None else packet.pts


def list_packets(
    container: "InputContainer",
    packets: "Iterable[Packet[VideoStream]]",
    source: str,
    limits: Limits,
    end_pts: int | None = None,
) -> Packets:
    """Drain `packets` without decoding, to the end or until no frame before `end_pts` can follow.

    Frames ahead of the first key frame, in decoding or in presentation, cannot be decoded and are left out.
    """
    deadline = time.monotonic() + limits.max_probe_s
    by_count = lacks_timestamps(container)
    pts: list[int] = []
    keys: list[int] = []
    latest, last_duration = -math.inf, 0
    for packet in packets:
        if packet.size == 0 or not (keys or packet.is_keyframe):
            continue
        stamp = packet_timestamp(packet, by_count)
        if stamp is None:
            raise CorruptVideo(f"{source} has frames without timestamps (a raw stream?): remux it into mp4 or mkv")
        if end_pts is not None and packet.dts is not None and packet.dts >= end_pts:
            break
        if packet.is_keyframe:
            keys.append(stamp)
        if stamp < keys[0] or packet.is_discard or not _is_shown(packet):
            continue
        if stamp > latest:
            latest, last_duration = stamp, packet.duration or 0
        pts.append(stamp)
        if len(pts) > limits.max_frame_count:
            text = f"{source} has more than {limits.max_frame_count} frames: cut it or raise Limits.max_frame_count"
            raise LimitExceeded(text)
        if time.monotonic() > deadline:
            text = f"listing the frames of {source} took over {limits.max_probe_s:g} s: raise Limits.max_probe_s"
            raise LimitExceeded(text)
    return Packets(np.sort(np.array(pts, np.int64)), np.sort(np.array(keys, np.int64)), last_duration)


def packets_from_key(
    container: "InputContainer", stream: "VideoStream", at_pts: int, source: str
) -> "Iterator[Packet[VideoStream]]":
    """Packets from a key frame whose timestamp is at or before `at_pts`, on to the end.

    Containers seek by decoding time or by position, so one jump may land on a key frame that is shown too late: then
    the jump is repeated from further back.
    """
    import av

    by_count = lacks_timestamps(container)
    second = max(1, round(1 / stream.time_base)) if stream.time_base else 1
    first_dts = min(at_pts, stream.start_time or 0) - 10 * second
    back = 0
    while True:
        target = max(first_dts, at_pts - back)
        with contextlib.suppress(av.error.PermissionError):  # how FFmpeg says that nothing lies before `target`
            container.seek(target, stream=stream)
            packets = container.demux(stream)
            for packet in packets:
                stamp = packet_timestamp(packet, by_count)
                if packet.size and packet.is_keyframe and stamp is not None:
                    if stamp <= at_pts:
                        return itertools.chain((packet,), packets)
                    break
        if target == first_dts:
            raise CorruptVideo(f"{source} has no key frame at or before timestamp {at_pts}: remux it into mp4 or mkv")
        back = max(second, 2 * back)


def _read_errors(source: str) -> tuple[type[Exception], ...]:
    """What reading may raise: OSError, and what the clients of remote stores have besides."""
    protocol = source.partition("://")[0]
    if protocol in ("http", "https"):
        import aiohttp

        return (OSError, aiohttp.ClientError)
    if protocol in ("s3", "s3a"):
        import botocore.exceptions

        return (OSError, botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError)
    return (OSError,)


def _file_of(source: str, stack: contextlib.ExitStack) -> Any:
    """An absolute local path, or a seekable file object for a URL."""
    name = source.encode("utf-8", "backslashreplace").decode()
    if name != source or (ESCAPED_BYTE in name and not Path(name).exists()):
        raise VideoError(f"{name}: this name of a file is not UTF-8, so no table can hold it: rename the file")
    span = BYTE_RANGE.search(source)
    if span:
        file = _file_of(source[: span.start()], stack)
        if isinstance(file, str):
            from fsspec.implementations.local import LocalFileSystem

            file = stack.enter_context(LocalFileSystem().open(file, "rb"))
        return _ByteRangeFile(source, file, int(span[1]), int(span[2]))
    protocol, separator, _ = source.partition("://")
    if separator and "/" not in protocol and protocol != "file":
        if protocol not in URL_PROTOCOLS or "::" in source:
            allowed = ", ".join(URL_PROTOCOLS)
            raise UnsafeSource(f"protocol of {source} is not opened. Allowed: a local path, {allowed}.")
        from fsspec.core import url_to_fs

        try:
            fs, path = url_to_fs(source)
            file = stack.enter_context(fs.open(path, "rb", block_size=2**20))
        except ImportError as error:
            raise MissingRequirement(f"{protocol}:// needs a package that is not installed: {error}") from error
        if not file.seekable():
            raise VideoError(
                f"{source} cannot be read by ranges (its server sends whole files): copy it to a local disk"
            )
        return file
    local = Path(source.removeprefix("file://")).absolute()
    if local.is_file() and local.stat().st_size == 0:
        raise NotAVideo(f"{source} is empty (0 bytes): the download or copy has failed, fetch it again")
    if local.exists() and not local.is_file():
        raise NotAVideo(f"{source} is not a regular file")
    return str(local)  # absolute, so that a name with a colon is not taken for a protocol


class _ByteRangeFile(io.RawIOBase):
    """Some bytes of an open file, as a file of its own: a video in a tar shard is read where it lies."""

    def __init__(self, source: str, file: Any, first: int, last: int) -> None:
        end = file.seek(0, io.SEEK_END)
        if not first <= last < end:
            raise CorruptVideo(f"{source}: the file has {end} bytes only. Fetch it again, or import the set anew.")
        self.file, self.first, self.size, self.place = file, first, last + 1 - first, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.size}[whence]
        self.place = max(0, base + offset)
        return self.place

    def read(self, count: int = -1) -> bytes:
        left = max(0, self.size - self.place)
        self.file.seek(self.first + self.place)
        data = bytes(self.file.read(left if count < 0 else min(count, left)))
        self.place += len(data)
        return data


def _main_stream(source: str, container: "InputContainer") -> "VideoStream":
    from av.stream import Discard, Disposition

    pictures = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
    videos = [stream for stream in container.streams.video if not stream.disposition & pictures]
    if not videos:
        found = ", ".join(sorted({stream.type for stream in container.streams})) or "no streams at all"
        found += " (its only pictures are cover art)" if container.streams.video else ""
        raise NotAVideo(_NO_STREAM.format(source=source, found=found))
    best = container.streams.best("video")
    stream = next((video for video in videos if best is not None and video.index == best.index), videos[0])
    if stream.codec_context is None:
        raise CorruptVideo(f"{source}: no decoder for its video codec: re-encode it, for example to H.264")
    for other in container.streams:
        if other.index != stream.index:
            other.discard = Discard.all
    return stream


def pixel_aspect(source: str, stream: "VideoStream") -> Fraction:
    """Width over height of one pixel as the file states it; 1 where it states nothing or a percent about square.

    Raises `CorruptVideo` where it cannot be true.
    """
    stated = Fraction(stream.sample_aspect_ratio or 1)
    if stated <= 0 or abs(stated - 1) < SQUARE_PIXEL_TOLERANCE:
        return Fraction(1)
    if not 1 / MAX_PIXEL_ASPECT <= stated <= MAX_PIXEL_ASPECT:
        text = f"{source} states pixels {float(stated):.3g} times as wide as high"
        raise CorruptVideo(f"{text}: no camera makes such. Remux it with a sample aspect ratio of 1.")
    return stated


def _check_size(source: str, stream: "VideoStream", limits: Limits) -> None:
    width_px = max(stream.width, round(stream.width * pixel_aspect(source, stream)))  # as stored, as shown
    if width_px * stream.height > limits.max_pixels:
        raise LimitExceeded(
            f"{source} is {width_px}x{stream.height}, over Limits.max_pixels = {limits.max_pixels}: scale it down"
        )


def _is_shown(packet: "Packet[VideoStream]") -> bool:
    """VP8 sends its hidden reference frames as packets of their own; bit 4 of the first byte says "shown"."""
    return packet.stream.codec_context.name != "vp8" or bool(memoryview(packet)[0] & 0x10)


def _check_whole(source: str, container: "InputContainer", stream: "VideoStream") -> None:
    """An mp4 lists where its frames lie: none may lie beyond the end of the file."""
    if not container.format.name.startswith("mov") or not len(stream.index_entries):
        return
    end = max(entry.pos + entry.size for entry in stream.index_entries)
    if 0 < container.size < end:
        text = f"{source} is truncated: it has {container.size} bytes and its frames reach to {end}. Fetch it again."
        raise CorruptVideo(text)


def _to_video_error(source: str, error: Exception) -> VideoError:
    """The error for what FFmpeg reported."""
    import av

    if isinstance(error, av.error.ArgumentError):
        return UnsafeSource(
            f"{source} is in a container format that is not opened. Allowed: {DEMUXERS}. Remux it into mp4."
        )
    if isinstance(error, av.error.InvalidDataError):
        return NotAVideo(f"{source} is not a video we can read, or is cut short ({error.strerror}): fetch it again")
    if isinstance(error, av.error.ProtocolNotFoundError):
        return UnsafeSource(f"{source} names another resource, which is not opened: give a self-contained file")
    return VideoError(f"{source} cannot be read: {error}. Re-encode it, for example to H.264 in mp4.")
