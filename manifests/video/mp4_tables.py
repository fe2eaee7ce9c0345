"""Check of the sample tables of mp4 and mov files before FFmpeg reads them.

A table of a few bytes can declare millions of samples. FFmpeg then allocates and fills an index of that length, in one
call that no time limit interrupts.
"""

import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from openuni.manifests.video.video_errors import CorruptVideo, LimitExceeded

MAX_HEADER_BYTES = 2**30  # of one `moov` or `moof`
MAX_UNPACKED_BYTES = 2**26  # of a compressed `moov`
MAX_DEPTH = 8  # of boxes within boxes; tables are at depth 5
MAX_EDITS = 100  # up to this many, edit lists are not checked further
LEAVES = frozenset(b"mvhd tkhd mdhd stsd stsc stco co64 stss sdtp vmhd smhd dref sgpd sbgp mdat free skip".split())


class _Track:
    """What the tables of one track, or of one track fragment, declare."""

    def __init__(self) -> None:
        self.samples = self.fragment_samples = self.edits = 0
        self.is_sound = self.has_unit_duration = False

    def add(self, kind: bytes, table: memoryview) -> bool:
        """Take a table into account; False if it is of no interest."""
        if kind in (b"stsz", b"stz2"):
            self.samples = max(self.samples, _number(table, 8))
        elif kind in (b"stts", b"ctts"):
            entries = _entries(table)
            self.samples = max(self.samples, int(entries[:, 0].sum(dtype=np.uint64)))
            if kind == b"stts":
                self.has_unit_duration = len(entries) == 1 and int(entries[0, 1]) == 1
        elif kind == b"trun":
            self.fragment_samples += _number(table, 4)
        elif kind == b"elst":
            self.edits = max(self.edits, _number(table, 4))
        elif kind == b"hdlr":
            self.is_sound = self.is_sound or bytes(table[8:12]) == b"soun"
        else:
            return False
        return True


class _Checker:
    """Walks the boxes of one file."""

    def __init__(self, source: str, max_samples: int, max_s: float) -> None:
        self.source, self.max_samples, self.max_s = source, max_samples, max_s
        self.deadline = time.monotonic() + max_s
        self.total = 0

    def file(self, file: Any) -> None:
        """Check all `moov` and `moof` boxes of an open file."""
        size, at = file.seek(0, 2), 0
        while at + 8 <= size:
            self.check_time()
            file.seek(at)
            kind, header, length = _header(file.read(16), size - at)
            if length < header:
                return  # FFmpeg stops here, too
            if kind in (b"moov", b"moof"):
                if length > MAX_HEADER_BYTES:
                    text = f"{self.source} has a header of {length} bytes"
                    raise LimitExceeded(f"{text}; at most {MAX_HEADER_BYTES} are allowed. Re-encode it.")
                file.seek(at + header)
                content = file.read(length - header)
                self.fragment(content) if kind == b"moof" else self.header_box(memoryview(content))
            if self.total > size:
                text = f"{self.source} is damaged: it declares {self.total} samples, more than its {size} bytes"
                raise CorruptVideo(f"{text}. Download or re-encode it.")
            at += length

    def fragment(self, content: bytes) -> None:
        """Check the contents of a `moof`. There may be many, so its tables are searched for, wherever they are."""
        track, at = _Track(), content.find(b"trun")
        while at >= 0:
            track.fragment_samples += _number(memoryview(content), at + 8)
            at = content.find(b"trun", at + 4)
        self.finish(track)

    def header_box(self, content: memoryview) -> None:
        """Check the contents of a `moov`."""
        loose = _Track()  # FFmpeg also reads tables that are outside of a track
        self.walk(content, loose, MAX_DEPTH)
        self.finish(loose)

    def walk(self, content: memoryview, track: _Track, depth: int) -> None:
        """Check the boxes in `content`, whose tables belong to `track`."""
        for kind, inner in self.boxes(content):
            if kind in LEAVES:
                continue
            if kind == b"cmvd":
                unpacked = zlib.decompressobj().decompress(inner[4:], MAX_UNPACKED_BYTES)
                self.walk(memoryview(unpacked), track, depth - 1)
            elif kind == b"trak" and depth:
                nested = _Track()
                self.walk(inner, nested, depth - 1)
                self.finish(nested)
            elif not track.add(kind, inner) and depth:  # any box may hold others; `meta` after four bytes
                self.walk(inner[4:] if kind == b"meta" else inner, track, depth - 1)

    def boxes(self, data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
        """Kind and contents of the boxes in `data`."""
        at = 0
        while at + 8 <= len(data):
            self.check_time()
            kind, header, length = _header(bytes(data[at : at + 16]), len(data) - at)
            if length < header:
                return
            yield kind, data[at + header : at + length]
            at += length

    def finish(self, track: _Track) -> None:
        """Check the counts of a whole track and add its samples to those of the file."""
        samples = max(track.samples, track.fragment_samples)
        is_by_chunk = track.is_sound and track.has_unit_duration  # FFmpeg does not index uncompressed sound by sample
        if samples > self.max_samples and not is_by_chunk:
            text = f"{self.source} declares {samples} samples, over Limits.max_frame_count = {self.max_samples}"
            raise LimitExceeded(f"{text}. Cut it, or raise that limit.")
        if track.edits > MAX_EDITS and track.edits * samples > self.max_samples:  # FFmpeg repeats the samples per edit
            raise LimitExceeded(f"{self.source} has an edit list of {track.edits} entries. Remux it without edits.")
        self.total += samples

    def check_time(self) -> None:
        """Raise `LimitExceeded` if the check takes too long."""
        if time.monotonic() > self.deadline:
            text = f"reading the header of {self.source} took over {self.max_s:g} s"
            raise LimitExceeded(f"{text}. Raise [ingest] probe_timeout_s (Limits.max_probe_s), or remux it.")


def check_mp4_tables(source: str, file: Any, max_samples: int, max_s: float) -> None:
    """Reject an mp4 or mov that declares more samples than it has bytes, or more than allowed.

    `file`: a path or an open binary file; other formats pass. `max_samples`: of one track. `max_s`: time limit, s.
    Raises `CorruptVideo` or `LimitExceeded`.
    """
    checker = _Checker(source, max_samples, max_s)
    try:
        if isinstance(file, str):
            with Path(file).open("rb") as opened:
                checker.file(opened)
        else:
            checker.file(file)
            file.seek(0)
    except zlib.error as error:
        raise CorruptVideo(f"{source} has a damaged compressed header. Download it again.") from error


def _header(data: bytes, remaining: int) -> tuple[bytes, int, int]:
    """Kind of a box, bytes of its header, and its length, at most `remaining`."""
    length, kind = struct.unpack(">I4s", data[:8])
    if length == 1 and len(data) >= 16:
        return kind, 16, min(struct.unpack(">Q", data[8:16])[0], remaining)
    return kind, 8, min(length or remaining, remaining)  # 0: to the end


def _number(table: memoryview, at: int) -> int:
    return int(struct.unpack(">I", table[at : at + 4])[0]) if len(table) >= at + 4 else 0


def _entries(table: memoryview) -> np.ndarray:
    """The entries of a table of pairs that are present: uint32 [n, 2]."""
    count = min(_number(table, 4), max(0, len(table) - 8) // 8)
    return np.frombuffer(table[8 : 8 + 8 * count], ">u4").reshape(count, 2)
