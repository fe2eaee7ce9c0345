"""The first bytes of a video file: playlists are refused, and files shorter than their header says."""

import os
from pathlib import Path
from typing import Any

from openuni.manifests.video.video_errors import CorruptVideo, NotAVideo, UnsafeSource


def check_head(source: str, file: Any) -> None:
    """Refuse what names other files, and files shorter than their own header says."""
    if isinstance(file, str):
        with Path(file).open("rb") as opened:
            head, size = opened.read(64), os.fstat(opened.fileno()).st_size
    else:
        head, size = file.read(64), file.size
        file.seek(0)
    if not head:
        raise NotAVideo(f"{source} is empty (0 bytes): the download or copy has failed, fetch it again")
    if head.lstrip(b"\xef\xbb\xbf \r\n\t").startswith((b"#EXTM3U", b"ffconcat", b"<?xml", b"<MPD")):
        raise UnsafeSource(
            f"{source} is a playlist ({head[:16]!r}), which names other files: give the videos themselves"
        )
    end = _declared_end(head)
    if size is not None and end > size:
        raise CorruptVideo(f"{source} is truncated: {size} bytes of the {end} its header declares. Fetch it again.")


def _declared_end(head: bytes) -> int:
    """Where a RIFF or Matroska file says that it ends, in bytes; 0 when it does not say."""
    if head[:4] == b"RIFF":
        return 8 + int.from_bytes(head[4:8], "little")
    place = head.find(b"\x18\x53\x80\x67")  # Matroska's Segment, which holds the rest of the file
    if head[:4] != b"\x1a\x45\xdf\xa3" or place < 0 or len(head) < place + 12:
        return 0
    width = 9 - head[place + 4].bit_length()  # of the size: the leading zeros say how many bytes it has
    size = int.from_bytes(head[place + 4 : place + 4 + width], "big") & (1 << 7 * width) - 1
    unknown = (1 << 7 * width) - 1  # a live recording
    return 0 if size == unknown else place + 4 + width + size
