"""HTTP sources: bounded in time and memory whatever the server does; overload is retried, and the status is told."""

import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from openuni.manifests.contracts.decoded_clip import decode
from openuni.manifests.corpus.sidecars import read_bounded
from openuni.manifests.errors import ClipError
from openuni.manifests.video import http_file
from openuni.manifests.video.container import Limits
from openuni.manifests.video.http_file import BLOCK_BYTES, HttpFile
from openuni.manifests.video.probe import probe, probe_clip
from openuni.manifests.video.video_errors import LimitExceeded, NotAVideo, VideoError
from tests.coded_clips import encode, numbers
from tests.file_server import Served, file_server

QUICK = Limits(max_probe_s=0.5)
LATEST_S = 6.0  # that a probe may take with this limit, on a machine with other work


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return encode(tmp_path_factory.mktemp("http") / "a.mp4", times=range(30)).read_bytes()


@pytest.fixture
def served(video: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv("OPENUNI_DECODER", "in-process")  # where the delays are changed
    monkeypatch.setattr(http_file, "RETRY_DELAYS_S", (0.01, 0.01, 0.01))
    files = {"/a.mp4": video, "/a.txt": b"a caption", "/large.bin": np.arange(2**20, dtype="<u4").tobytes()}
    with file_server(files) as server:
        yield server


def fails_in_time(url: str, limits: Limits = QUICK) -> str:
    """The error of a probe that must end shortly after its limit."""
    started = time.monotonic()
    with pytest.raises(VideoError) as error:
        probe(url, limits)
    assert time.monotonic() - started < LATEST_S
    return str(error.value)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_small_video_is_read_from_any_server(served: Served, ranges: bool) -> None:
    served.ranges = ranges
    clip = probe_clip(f"{served.url}/a.mp4")
    assert numbers(decode(clip).frames) == list(range(30))


def test_bytes_are_read_at_any_position_in_blocks(served: Served) -> None:
    file = HttpFile(f"{served.url}/large.bin", 10)
    data = served.files["/large.bin"]
    assert file.size == len(data) == 4 * BLOCK_BYTES
    for first, count in ((0, 10), (BLOCK_BYTES - 5, 10), (len(data) - 3, 100), (2 * BLOCK_BYTES, BLOCK_BYTES)):
        file.seek(first)
        assert file.read(count) == data[first : first + count]
        assert file.tell() == min(len(data), first + count)
    assert len(served.asked) == 4
    file.seek(0)
    assert file.read() == data


def test_without_ranges_a_large_file_is_an_error(served: Served) -> None:
    served.ranges = False
    file = HttpFile(f"{served.url}/large.bin", 10)
    file.seek(BLOCK_BYTES)
    with pytest.raises(VideoError, match="does not support range requests"):
        file.read(1)


def test_a_body_that_never_ends_is_not_read(served: Served) -> None:
    served.endless = True
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert len(probe(f"{served.url}/a.mp4", Limits(max_probe_s=5)).pts) == 30  # its size is known from the range
    served.ranges = False
    assert "does not support range requests" in fails_in_time(f"{served.url}/a.mp4", Limits(max_probe_s=2))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 100_000
    assert served.sent < 64 * 2**20


@pytest.mark.parametrize("how", [{"wait_s": 5.0}, {"header_s": 0.02}, {"body_s": 0.1}])
def test_waiting_slow_headers_and_slow_bodies_end_with_the_limit(served: Served, how: dict[str, float]) -> None:
    vars(served).update(how)
    text = fails_in_time(f"{served.url}/a.mp4")
    assert "took longer than 0.5 s" in text and "probe_timeout_s" in text


def test_a_connection_that_hangs_ends_with_the_limit() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(1)
        assert "took longer than 0.5 s" in fails_in_time(f"http://127.0.0.1:{silent.getsockname()[1]}/a.mp4")


def test_decoding_is_limited_per_request(served: Served) -> None:
    clip = probe_clip(f"{served.url}/a.mp4")
    served.wait_s = 5.0
    started = time.monotonic()
    with pytest.raises(LimitExceeded, match=r"took longer than 0\.5 s"):
        decode(clip, limits=QUICK)
    assert time.monotonic() - started < LATEST_S


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_overload_is_retried(served: Served, status: int) -> None:
    served.statuses = [status, status]
    assert len(probe(f"{served.url}/a.mp4").pts) == 30
    assert not served.statuses


@pytest.mark.parametrize("status", [429, 500, 503])
def test_lasting_overload_is_an_error_with_the_status(served: Served, status: int) -> None:
    served.statuses = [status] * 100
    with pytest.raises(VideoError, match=rf"a\.mp4 failed: HTTP {status} .*4 times"):
        probe(f"{served.url}/a.mp4")
    assert len(served.statuses) == 96


@pytest.mark.parametrize(("status", "text"), [(403, "failed: HTTP 403"), (401, "HTTP 401"), (404, "cannot open .*404")])
def test_other_statuses_are_told_and_not_retried(served: Served, status: int, text: str) -> None:
    served.statuses = [status] * 2
    with pytest.raises(VideoError, match=text):
        probe(f"{served.url}/a.mp4")
    assert len(served.statuses) == 1


def test_a_server_may_ask_to_wait_but_not_beyond_the_limit(served: Served) -> None:
    served.statuses, served.headers = [503], {"Retry-After": "1"}
    started = time.monotonic()
    assert len(probe(f"{served.url}/a.mp4").pts) == 30
    assert 1 <= time.monotonic() - started < 10
    served.statuses, served.headers = [503], {"Retry-After": "3600"}
    assert "503" in fails_in_time(f"{served.url}/a.mp4")


def test_a_lost_connection_is_retried(served: Served) -> None:
    served.cut_at = 1000
    assert len(probe(f"{served.url}/a.mp4").pts) == 30


def test_a_file_that_changes_while_it_is_read_is_an_error(served: Served) -> None:
    file = HttpFile(f"{served.url}/large.bin", 10)
    served.files["/large.bin"] = bytes(len(served.files["/large.bin"]))
    file.seek(BLOCK_BYTES)
    with pytest.raises(OSError, match="changed while it was read"):
        file.read(1)


def test_an_empty_file_is_not_a_video(served: Served) -> None:
    served.files["/empty.mp4"] = b""
    with pytest.raises(NotAVideo, match="0 bytes"):
        probe(f"{served.url}/empty.mp4")


def test_captions_are_bounded_and_retried_too(served: Served) -> None:
    assert read_bounded(f"{served.url}/a.txt", 100) == b"a caption"
    assert read_bounded(f"{served.url}/none.txt", 100) is None
    served.statuses = [503]
    assert read_bounded(f"{served.url}/a.txt", 100) == b"a caption"
    served.statuses = [503] * 4
    with pytest.raises(ClipError, match="HTTP 503"):
        read_bounded(f"{served.url}/a.txt", 100)
    served.endless = True
    with pytest.raises(ClipError, match="more than 100 bytes"):
        read_bounded(f"{served.url}/a.txt", 100)
    served.endless, served.wait_s = False, 5.0
    with pytest.raises(ClipError, match=r"took longer than 0\.2 s"):
        read_bounded(f"{served.url}/a.txt", 100, timeout_s=0.2)


def test_a_byte_range_of_a_file_on_a_server(served: Served, tmp_path: Path) -> None:
    video = served.files["/a.mp4"]
    served.files["/shard.tar"] = bytes(3000) + video + bytes(500)
    source = f"{served.url}/shard.tar#bytes=3000-{2999 + len(video)}"
    assert numbers(decode(probe_clip(source)).frames) == list(range(30))
    served.wait_s = 5.0
    assert "took longer than 0.5 s" in fails_in_time(source)
