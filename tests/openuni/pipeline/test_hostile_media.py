"""Hostile media through a run: each is a failed row or exit code 2, in bounded time and memory, and reaches nothing."""

import contextlib
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.video.container import Limits
from openuni.manifests.video.probe import probe
from openuni.manifests.video.video_errors import VideoError
from tests.coded_clips import encode
from tests.command_line import cli
from tests.file_server import Served, file_server
from tests.hostile import files_under
from tests.hostile_media import SECRET, all_files

RECIPE = "[ingest]\nprobe_timeout_s = 5\n[work]\ndecoder_timeout_s = 5\ndecoder_memory_gb = 1\n[filters.luminance]\n"
# the others fail when they are probed
PROBED = {"huge_track.mkv", "no_timescale.mkv", "matroska.avi", "attached.mkv", "link.mkv", "size_changes.mkv"}
PROBED |= {"cut_1.ts", "cut_2.ts", "cut_3.ts", "cut_1.flv", "cut_2.flv", "cut_3.flv"}
REASONS = {
    "huge.mp4": "max_pixels|cannot be decoded",
    "many_samples.mp4": "declares 60000000 samples",
    "many_edits.mp4": "edit list",
    "tracks.mp4": "could not allocate memory: the file has over 1000 streams, or needs more than 1 GB",
    "hls_file.mp4": "is a playlist",
    "hls_marked_http.ts": "is a playlist",
    "sdp_http.mp4": "container format is not allowed",
    "gif.mp4": "container format is not allowed",
    "cover_only.mkv": "not a readable video|no video stream",
    "sound.mp4": "it contains audio",
    "empty.mp4": "is empty",
    "cut_2.avi": "is truncated",
}
LONGEST_S = 40.0


def test_every_hostile_file_is_its_row_and_reaches_nothing(tmp_path: Path) -> None:
    canary = encode(tmp_path / "canary.ts", "mpeg2video", range(5))
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / "raw").mkdir()
    with file_server({"/secret.ts": canary.read_bytes()}) as served:
        files = all_files(tmp_path / "made", str(canary), served.url)
        for name, data in files.items():
            (tmp_path / "raw" / name).write_bytes(data)
        before, began, memory = files_under(tmp_path), time.monotonic(), peak_bytes(reset=True)
        done = cli("run", tmp_path / "recipe.toml", tmp_path / "raw", "--out", tmp_path / "corpus", "--workers", 0)
        assert time.monotonic() - began < LONGEST_S
        assert peak_bytes() - memory < 300e6, "a file took memory of this process"
        assert served.asked == [], "a file reached the network"
    assert done.returncode == 1, done.stderr
    after = {name: data for name, data in files_under(tmp_path).items() if not name.startswith("corpus/")}
    assert after == before, "a file was written or changed outside of the corpus"
    assert not any(SECRET.encode() in data for data in files_under(tmp_path / "corpus").values())

    corpus = Corpus.open(tmp_path / "corpus")
    rows = {Path(row["source"]).name: row for row in corpus.table("clips").to_pylist()}
    assert set(rows) == set(files) and len(files) > 90
    assert {name for name, row in rows.items() if row["status"] == "ok"} == PROBED
    for name, reason in REASONS.items():
        assert _matches(reason, rows[name]["error"]), (name, rows[name]["error"])
    names = {row["clip_id"]: name for name, row in rows.items()}
    scores = {names[row["clip_id"]]: row["luminance"] for row in corpus.table("filters/luminance").to_pylist()}
    assert {name for name, row in scores.items() if row["status"] == "failed"} == {"size_changes.mkv"}
    assert "CorruptVideo" in scores["size_changes.mkv"]["error"]


def peak_bytes(*, reset: bool = False) -> int:
    """The most memory that this process has had; `reset`: forget what was before."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def _matches(reason: str, error: str) -> bool:
    return any(part in error for part in reason.split("|"))


def fifo(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as server:  # names of sockets are short
        server.bind(path.name)


ODD: dict[str, Callable[[Path], None]] = {
    "fifo without a writer": fifo,
    "socket": unix_socket,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "terminal": lambda path: path.symlink_to("/dev/tty"),
    "folder": lambda path: path.mkdir(),
    "link to nothing": lambda path: path.symlink_to(path.with_name("nothing.mp4")),
    "link to itself": lambda path: path.symlink_to(path),
    "memory of a process": lambda path: path.symlink_to("/proc/self/mem"),
    "unreadable": lambda path: path.symlink_to("/proc/self/environ"),
}


@pytest.mark.parametrize("kind", list(ODD))
@pytest.mark.parametrize(
    "given", ["list", pytest.param("name", marks=pytest.mark.slow), pytest.param("folder", marks=pytest.mark.slow)]
)
def test_what_is_no_regular_file_fails_at_once(tmp_path: Path, kind: str, given: str) -> None:
    (tmp_path / "raw").mkdir()
    odd = tmp_path / "raw" / "odd.mp4"
    ODD[kind](odd)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / "list.txt").write_text(f"{odd}\n")
    source = {"name": odd, "list": tmp_path / "list.txt", "folder": tmp_path / "raw"}[given]
    began = time.monotonic()
    done = cli("run", tmp_path / "recipe.toml", source, "--out", tmp_path / "corpus", "--workers", 0)
    assert time.monotonic() - began < 15
    assert done.returncode in (1, 2), (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    assert odd.is_symlink() or stat.S_IFMT(odd.lstat().st_mode) != stat.S_IFREG


def test_a_file_that_grows_while_it_is_read_is_a_row(tmp_path: Path) -> None:
    data = encode(tmp_path / "whole.ts", "mpeg2video", range(40)).read_bytes()
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.ts").write_bytes(data)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    ended = threading.Event()

    def grow() -> None:
        with (tmp_path / "raw" / "a.ts").open("ab") as file:
            while not ended.is_set() and file.tell() < 5_000_000:
                file.write(data)
                file.flush()

    thread = threading.Thread(target=grow)
    thread.start()
    try:
        began = time.monotonic()
        done = cli("run", tmp_path / "recipe.toml", tmp_path / "raw", "--out", tmp_path / "corpus", "--workers", 0)
        assert time.monotonic() - began < 20
    finally:
        ended.set()
        thread.join()
    assert done.returncode in (0, 1), done.stderr
    assert Corpus.open(tmp_path / "corpus").table("clips").num_rows == 1


class Changing(dict[str, bytes]):
    """Files that have other bytes at every request."""

    def __getitem__(self, path: str) -> bytes:
        data = super().__getitem__(path)
        self[path] = data[:-1] + bytes([data[-1] ^ 1])
        return data


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A video with its index at the end, several blocks after the beginning."""
    data = encode(tmp_path_factory.mktemp("large") / "a.mp4", times=range(10)).read_bytes()
    index = data.index(b"moov") - 4
    return data[:index] + bytes.fromhex("00500000") + b"free" + bytes(0x500000 - 8) + data[index:]


@pytest.fixture
def served(large: bytes) -> Iterator[Served]:
    with file_server({"/a.mp4": large}) as server:
        probe(f"{server.url}/a.mp4")  # the decoder has loaded what it needs for HTTP
        yield server


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("manner", "reason"),
    [
        pytest.param({"wait_s": 3.0}, "took longer than 1 s", marks=SLOW),
        pytest.param({"header_s": 0.2}, "took longer than 1 s", marks=SLOW),
        pytest.param({"body_s": 0.2}, "took longer than 1 s", marks=SLOW),
        pytest.param({"statuses": [503] * 9}, "took longer than 1 s; the last status was 503", marks=SLOW),
        ({"statuses": [302] * 50, "headers": {"Location": "/a.mp4"}}, "too many redirects"),
        ({"statuses": [302], "headers": {"Location": "file:///etc/passwd"}}, "file:///etc/passwd|302"),
        ({"statuses": [302], "headers": {"Location": "ftp://127.0.0.1/a.mp4"}}, "ftp://127.0.0.1/a.mp4|302"),
        ({"headers": {"Content-Range": "bytes 0-9/99999999999"}}, ""),
        ({"endless": True, "ranges": False}, "does not support range requests|ended|length"),
    ],
)
def test_servers_that_misbehave_fail_in_time(served: Served, manner: dict[str, object], reason: str) -> None:
    for name, value in manner.items():
        setattr(served, name, list(value) if isinstance(value, list) else value)
    began = time.monotonic()
    with pytest.raises(VideoError) as error:
        probe(f"{served.url}/a.mp4", Limits(max_probe_s=1.0))
    assert time.monotonic() - began < 6
    assert _matches(reason, str(error.value)), str(error.value)


def test_a_file_that_changes_between_requests_is_an_error(large: bytes) -> None:
    with (
        file_server(Changing({"/a.mp4": large})) as served,
        pytest.raises(VideoError, match="changed while it was read"),
    ):
        probe(f"{served.url}/a.mp4", Limits(max_probe_s=5.0))
