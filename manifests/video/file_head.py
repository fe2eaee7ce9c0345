"""Checks of the first bytes of a video file: rejection of playlists and truncated files."""

import os
from pathlib import Path
from typing import Any

from openuni.manifests.video.video_errors import CorruptVideo, NotAVideo, UnsafeSource

TS_PACKET_BYTES = 188
TS_SYNC = 0x47
NULL_PACKET = b"\x47\x1f\xff\x10" + b"\xff" * 184  # of an MPEG transport stream: it has no meaning
TINY_PACKETS = 32  # FFmpeg does not open some streams of 9 and 10 packets


def check_head(source: str, file: Any) -> None:
    """Reject empty files, playlists and files shorter than their header declares.

    `file`: a path or an open binary file. Raises `NotAVideo`, `UnsafeSource` or `CorruptVideo`.
    """
    if isinstance(file, str):
        with Path(file).open("rb") as opened:
            head, size = opened.read(64), os.fstat(opened.fileno()).st_size
    else:
        head, size = file.read(64), file.size
        file.seek(0)
    if not head:
        raise NotAVideo(f"{source} is empty (0 bytes). Download or copy it again.")
    if head.lstrip(b"\xef\xbb\xbf \r\n\t").startswith((b"#EXTM3U", b"ffconcat", b"<?xml", b"<MPD")):
        raise UnsafeSource(
            f"{source} is a playlist ({head[:16]!r}), which refers to other files. Give the video files instead."
        )
    end = _declared_end(head)
    if size is not None and end > size:
        raise CorruptVideo(f"{source} is truncated: {size} bytes, its header declares {end}. Download it again.")


def image_demuxer(file: Any) -> str | None:
    """FFmpeg's demuxer of a picture, JPEG, PNG or WebP, by its first bytes; None for other files.

    `file`: as for `check_head`.
    """
    if isinstance(file, str):
        with Path(file).open("rb") as opened:
            head = opened.read(12)
    else:
        head = bytes(file.read(12))
        file.seek(0)
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg_pipe"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png_pipe"
    return "webp_pipe" if head[:4] == b"RIFF" and head[8:] == b"WEBP" else None


def padded_transport_stream(file: Any) -> bytes | None:
    """The contents of a tiny MPEG transport stream, followed by null packets; None for all other files.

    `file`: as for `check_head`. FFmpeg needs more packets than a video of two frames may have to recognize the format.
    """
    size = Path(file).stat().st_size if isinstance(file, str) else file.size
    if size is None or not TS_PACKET_BYTES < size < TINY_PACKETS * TS_PACKET_BYTES:
        return None
    if isinstance(file, str):
        data = Path(file).read_bytes()
    else:
        data = bytes(file.read(size))
        file.seek(0)
    if any(data[place] != TS_SYNC for place in range(0, size, TS_PACKET_BYTES)):
        return None
    return data + NULL_PACKET * TINY_PACKETS


def _declared_end(head: bytes) -> int:
    """Size in bytes that the header of a RIFF or Matroska file declares; 0 if it declares none."""
    if head[:4] == b"RIFF":
        return 8 + int.from_bytes(head[4:8], "little")
    start = head.find(b"\x18\x53\x80\x67")  # Matroska's Segment element, which spans the rest of the file
    if head[:4] != b"\x1a\x45\xdf\xa3" or start < 0 or len(head) < start + 12:
        return 0
    width = 9 - head[start + 4].bit_length()  # bytes of the size field, encoded in its leading zeros
    size = int.from_bytes(head[start + 4 : start + 4 + width], "big") & (1 << 7 * width) - 1
    unknown = (1 << 7 * width) - 1  # used by live recordings
    return 0 if size == unknown else start + 4 + width + size
