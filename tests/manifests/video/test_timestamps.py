"""Files whose decoding timestamps lie above the presentation timestamps, and short files: every span is exact."""

import itertools
import struct
from collections.abc import Iterator
from pathlib import Path

import av
import pytest

from openuni.manifests.contracts.decoded_clip import decode
from openuni.manifests.video.file_head import NULL_PACKET, TINY_PACKETS, padded_transport_stream
from openuni.manifests.video.probe import make_clip, probe
from tests.coded_clips import encode, numbers

TICKS = 512  # of one frame in the time base of the MOV files, 1 / 12800 s


def boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[bytes, int]]:
    """Kind and position of the contents of every box of an MOV file."""
    end = len(data) if end is None else end
    while start + 8 <= end:
        size, kind = struct.unpack(">I4s", data[start : start + 8])
        yield kind, start + 8
        if kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts"):
            yield from boxes(data, start + 8, start + size)
        start += size


def shown_earlier(path: Path, ticks: int, *, edit_list: bool) -> None:
    """Lower all composition offsets of an MOV by `ticks`; the edit list begins at 0, or is removed."""
    data = bytearray(path.read_bytes())
    for kind, at in list(boxes(data)):
        if kind == b"ctts":
            data[at] = 1  # version with negative offsets
            for entry in range(struct.unpack(">I", data[at + 4 : at + 8])[0]):
                place = at + 12 + 8 * entry
                offset = struct.unpack(">i", data[place : place + 4])[0]
                data[place : place + 4] = struct.pack(">i", offset - ticks)
        elif kind == b"elst":
            data[at + 12 : at + 16] = struct.pack(">i", 0)
        elif kind == b"edts" and not edit_list:
            data[at - 4 : at] = b"free"
    path.write_bytes(data)


def flv_shown_earlier(path: Path, ms: int) -> None:
    """Lower all composition offsets of an FLV file by `ms`."""
    data, at = bytearray(path.read_bytes()), 13
    while at < len(data):
        if data[at] == 9 and data[at + 11] & 15 == 7 and data[at + 12] == 1:  # a picture in H.264
            offset = int.from_bytes(data[at + 13 : at + 16], "big", signed=True) - ms
            data[at + 13 : at + 16] = offset.to_bytes(3, "big", signed=True)
        at += 15 + int.from_bytes(data[at + 1 : at + 4], "big")
    path.write_bytes(data)


def most_ahead(path: Path) -> int:
    """How far the decoding timestamps are above the presentation timestamps at most."""
    with av.open(str(path)) as container:
        return max(packet.dts - packet.pts for packet in container.demux(video=0) if packet.size)


def check_every_span(path: Path, expected: list[int]) -> None:
    info = probe(str(path))
    assert numbers(decode(make_clip(str(path), info)).frames) == expected
    for start, stop in itertools.combinations(range(len(expected) + 1), 2):
        assert numbers(decode(make_clip(str(path), info, start, stop)).frames) == expected[start:stop], (start, stop)


@pytest.mark.parametrize("edit_list", [False, True])
@pytest.mark.parametrize("frames_early", [2, 3, 4])
def test_a_mov_whose_decoding_times_are_above_the_presentation_times(
    tmp_path: Path, frames_early: int, edit_list: bool
) -> None:
    if edit_list and frames_early > 2:
        pytest.skip("the edit list then hides frames")
    path = encode(tmp_path / "clip.mov", times=range(4), options={"bf": "2"})
    shown_earlier(path, frames_early * TICKS, edit_list=edit_list)
    assert most_ahead(path) >= TICKS
    check_every_span(path, [0, 1, 2, 3])


def test_an_edit_list_that_hides_the_keyframe_of_such_a_mov(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mov", times=range(4), options={"bf": "2"})
    shown_earlier(path, 3 * TICKS, edit_list=True)
    assert most_ahead(path) >= TICKS
    check_every_span(path, [1, 2, 3])


@pytest.mark.parametrize("count", [2, 5, 16])
@pytest.mark.parametrize("ms_early", [0, 80, 160, 240])
def test_an_flv_whatever_its_composition_offsets(tmp_path: Path, count: int, ms_early: int) -> None:
    path = encode(tmp_path / "clip.flv", times=range(count), options={"bf": "3", "g": "10"})
    flv_shown_earlier(path, ms_early)
    if count > 1 and ms_early > 160:
        assert most_ahead(path) > 0
    check_every_span(path, list(range(count)))


@pytest.mark.parametrize(
    ("suffix", "count"),
    [*itertools.product(["mp4", "mov", "mkv", "avi"], [1, 2, 5]), ("ts", 1), ("ts", 5)],  # FFmpeg opens no "ts" of 2
)
def test_every_span_of_a_short_file(tmp_path: Path, suffix: str, count: int) -> None:
    path = encode(tmp_path / f"clip.{suffix}", times=range(count), options={"bf": "0" if suffix == "avi" else "2"})
    check_every_span(path, list(range(count)))


@pytest.mark.parametrize("suffix", ["flv", "ts", "mp4", "mkv", "avi", "mpg", "mov"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_shortest_videos_are_exact(tmp_path: Path, suffix: str, count: int) -> None:
    codec = "mpeg2video" if suffix == "mpg" else "libx264"
    path = encode(tmp_path / f"short.{suffix}", codec, times=range(count))
    info = probe(str(path))
    assert (len(info.pts), info.fps) == (count, 25.0)
    assert numbers(decode(make_clip(str(path), info)).frames) == [*range(count)]
    last = make_clip(str(path), info, count - 1, count)
    assert numbers(decode(last).frames) == [count - 1]


def test_a_tiny_transport_stream_is_padded_and_nothing_else(tmp_path: Path) -> None:
    path = encode(tmp_path / "short.ts", times=range(2))
    data = path.read_bytes()
    assert padded_transport_stream(str(path)) == data + NULL_PACKET * TINY_PACKETS
    for other in (data[:-1] + b"x" * 90, b"x" + data[1:], data * 20, data[:100], b""):
        path.write_bytes(other)
        assert padded_transport_stream(str(path)) is None
