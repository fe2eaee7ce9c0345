"""An mp4 that declares absurd numbers of samples fails at once, wherever it declares them; ordinary ones pass."""

import io
import struct
import time
import tracemalloc
import zlib
from pathlib import Path

import av
import pytest

from openuni.manifests.video.container import Limits
from openuni.manifests.video.mp4_tables import check_mp4_tables
from openuni.manifests.video.probe import probe
from openuni.manifests.video.video_errors import CorruptVideo, LimitExceeded
from tests.coded_clips import encode
from tests.mp4_boxes import box, compressed, file, fragment, movie, samples, table, track

MANY = 60_000_000
ABSURD = {
    "sizes": file(movie(track(*samples(MANY)))),
    "3 million": file(movie(track(*samples(3_000_000)))),
    "sizes only": file(movie(track(*samples(10, sizes=MANY)))),
    "times only": file(movie(track(*samples(10, times=MANY)))),
    "composition": file(movie(track(*samples(10), table(b"ctts", 1, MANY, 0)))),
    "sum of times": file(movie(track(*samples(10)[1:], table(b"stts", 20, *([4_000_000, 40] * 20))))),
    "sound": file(movie(track(*samples(MANY), handler=b"soun"))),
    "second track": file(movie(track(*samples(10)), track(*samples(MANY)))),
    "many tracks": file(movie(*[track(*samples(3000)) for _ in range(5)])),
    "within user data": file(movie(box(b"udta", track(*samples(MANY))))),
    "within metadata": file(movie(box(b"meta", bytes(4), track(*samples(MANY))))),
    "compressed header": file(compressed(movie(track(*samples(MANY))))),
    "fragment": file(movie(track(*samples(0))), fragment(MANY)),
    "second header": file(movie(track(*samples(10))), movie(track(*samples(MANY)))),
    "64-bit length": struct.pack(">I4sQ", 1, b"skip", 16) + file(movie(track(*samples(MANY)))),
}


@pytest.mark.parametrize("name", list(ABSURD))
def test_absurd_counts_fail_at_once(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(ABSURD[name])
    tracemalloc.start()
    started = time.monotonic()
    with pytest.raises((CorruptVideo, LimitExceeded), match=r"a\.mp4 (is damaged: it )?declares \d+ samples"):
        probe(str(path))
    assert time.monotonic() - started < 3
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()
    with pytest.raises((CorruptVideo, LimitExceeded), match="declares"):
        probe("given.mp4", data=ABSURD[name])


def test_a_compressed_header_that_expands_is_bounded() -> None:
    data = file(box(b"moov", box(b"cmov", box(b"cmvd", bytes(4), zlib.compress(bytes(2**27), 9)))))
    check_mp4_tables("a.mp4", io.BytesIO(data), 100, 10)
    with pytest.raises(CorruptVideo, match="compressed header"):
        check_mp4_tables("a.mp4", io.BytesIO(data.replace(b"\x78\xda", b"\0\0", 1)), 100, 10)


def test_edit_lists_that_multiply_the_samples_are_an_error() -> None:
    edits = box(b"edts", table(b"elst", 1000, *([40, 0, 65536] * 1000)))
    long = track(*samples(5000))
    data = file(movie(long[:8] + edits + long[8:]), bytes(5000))
    data = data.replace(long[:4] + b"trak", struct.pack(">I", len(long) + len(edits)) + b"trak")
    with pytest.raises(LimitExceeded, match="edit list of 1000 entries"):
        check_mp4_tables("a.mp4", io.BytesIO(data), 3_000_000, 10)
    check_mp4_tables("a.mp4", io.BytesIO(data), 5_000_000, 10)


def test_the_time_of_the_check_is_limited() -> None:
    with pytest.raises(LimitExceeded, match="probe_timeout_s"):
        check_mp4_tables("a.mp4", io.BytesIO(box(b"free") * 1000), 100, 0)


def test_uncompressed_sound_has_many_samples() -> None:
    tables = (table(b"stts", 1, 5000, 1), *samples(5000)[1:])
    data = file(movie(track(*tables, handler=b"soun")), box(b"free", bytes(5000)))
    check_mp4_tables("a.mov", io.BytesIO(data), 1000, 10)
    with pytest.raises(LimitExceeded, match="declares 5000 samples"):
        check_mp4_tables("a.mov", io.BytesIO(data.replace(b"soun", b"vide")), 1000, 10)


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "avi", "ts", "flv", "webm"])
def test_ordinary_files_pass(tmp_path: Path, suffix: str) -> None:
    codec = {"webm": "libvpx", "avi": "mpeg4"}.get(suffix, "libx264")
    path = encode(tmp_path / f"a.{suffix}", codec, range(30))
    assert len(probe(str(path), Limits(max_frame_count=30)).pts) == 30


def test_ordinary_fragments_pass_and_are_counted(tmp_path: Path) -> None:
    plain, path = encode(tmp_path / "plain.mp4", times=range(60), options={"g": "10"}), tmp_path / "fragmented.mp4"
    flags = {"movflags": "frag_keyframe+empty_moov"}
    with av.open(str(plain)) as source, av.open(str(path), "w", options=flags) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    assert path.read_bytes().count(b"moof") >= 6
    assert len(probe(str(path)).pts) == 60
    start = path.read_bytes().index(b"trun") + 8
    data = bytearray(path.read_bytes())
    data[start : start + 4] = struct.pack(">I", 10_000_000)
    path.write_bytes(data)
    with pytest.raises(LimitExceeded, match="declares 10000000 samples"):
        probe(str(path))
