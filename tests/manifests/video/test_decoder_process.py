"""The decoder process: what it returns, and what becomes of it when it crashes, hangs, or needs too much memory."""

import contextlib
import gc
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from openuni.manifests.errors import OpenUniError
from openuni.manifests.video.clip import Clip
from openuni.manifests.video.container import Limits
from openuni.manifests.video.decoder import process
from openuni.manifests.video.decoder.memory import MAX_POOLED_BYTES
from openuni.manifests.video.encode import decode_lossless, encode_lossless, iter_lossless
from openuni.manifests.video.probe import probe, probe_clip
from openuni.manifests.video.reader import decode_count, decode_frames, iter_frames, iter_windows
from openuni.manifests.video.video_errors import CorruptVideo, LimitExceeded, NotAVideo, VideoError
from tests.coded_clips import encode, numbers
from tests.file_server import file_server

CRASHES = (signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    return probe_clip(str(encode(tmp_path_factory.mktemp("videos") / "a.mp4", times=range(60))))


@pytest.fixture
def one_decoder() -> Iterator[Callable[[], int]]:
    """The process number of the only decoder, started anew."""
    process.close_decoders()
    probed = []

    def number() -> int:
        decoders = [one for one in process._pool.all if one.connection.lifeline >= 0]
        probed.append(decoders[-1].connection.process.pid)
        return probed[-1]

    yield number
    process.close_decoders()


@contextlib.contextmanager
def soon(action: Callable[[], None], after_s: float = 0.2) -> Iterator[None]:
    """Run an action in the middle of what the context does."""
    timer = threading.Timer(after_s, action)
    timer.start()
    try:
        yield
    finally:
        timer.join()


def endless(times_s: np.ndarray) -> np.ndarray:
    """Frames to decode, chosen late: the decoder waits for the answer in the meantime."""
    time.sleep(0.4)
    return np.arange(len(times_s))


def test_frames_times_and_vectors_are_those_of_a_decode_in_this_process(
    clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    def choose(times_s: np.ndarray) -> np.ndarray:
        return np.flatnonzero(times_s >= times_s[-1] / 2)[::3]

    there = decode_frames(clip, choose, vectors=True)
    monkeypatch.setenv("OPENUNI_DECODER", "in-process")
    here = decode_frames(clip, choose, vectors=True)
    assert there.frames.flags.writeable and there.frames.tobytes() == here.frames.tobytes()
    assert there.times_s.tolist() == here.times_s.tolist() and len(there.frames) == 10
    assert there.vectors is not None and here.vectors is not None
    for one, other in zip(there.vectors, here.vectors, strict=True):
        assert (one is None) == (other is None)
        for values, expected in zip(one or (), other or (), strict=True):
            assert np.array_equal(values, expected)


def test_every_frame_of_a_generator_arrives_once_and_kept_frames_stay_as_they_are(clip: Clip) -> None:
    kept = []
    for number, frame in enumerate(iter_frames(clip)):
        if number % 7 == 0:
            kept.append(frame)
    assert number == 59
    decode_frames(clip)  # uses the memory of the frames that were not kept
    assert numbers(np.stack(kept)) == list(range(0, 60, 7))


def test_a_generator_that_is_left_early_leaves_a_usable_decoder(clip: Clip, one_decoder: Callable[[], int]) -> None:
    frames = iter_frames(clip)
    assert numbers(next(frames)[None]) == [0]
    first = one_decoder()
    frames.close()
    assert numbers(decode_frames(clip, np.array([59])).frames) == [59]
    assert one_decoder() == first


@pytest.mark.timeout(60)
def test_a_generator_that_calls_back_is_read_whole_or_left_early(clip: Clip, one_decoder: Callable[[], int]) -> None:
    """FFmpeg swallows what is raised while it reads a file that the parent reads for it."""
    planes = np.random.default_rng(0).integers(0, 256, (400, 96, 128, 1), np.uint8)
    file = io.BytesIO(encode_lossless(planes, 25))
    assert np.array_equal(np.stack(list(iter_lossless(file))), planes)
    first = one_decoder()
    for count in (1, 3, 200):  # the decoder waits for credit, or for a read
        frames = iter_lossless(file)
        assert np.array_equal(np.stack([next(frames) for _ in range(count)]), planes[:count])
        frames.close()
        assert numbers(decode_frames(clip, np.array([59])).frames) == [59]
    windows = iter_windows(clip, frames_per_window=4, indices=lambda times_s: np.arange(0, len(times_s), 5))
    assert [numbers(window.frames) for window in windows] == [[0, 5, 10, 15], [20, 25, 30, 35], [40, 45, 50, 55]]
    assert one_decoder() == first


def test_decodes_inside_a_generator_and_in_threads_do_not_wait_for_each_other(clip: Clip) -> None:
    found: list[list[int]] = []

    def work() -> None:
        for number, frame in enumerate(iter_frames(clip)):
            if number % 20 == 0:
                found.append([*numbers(frame[None]), *numbers(decode_frames(clip, np.array([number])).frames)])

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(found) == sorted(3 * [[0, 0], [20, 20], [40, 40]])


def test_decodes_are_counted_also_those_that_fail(clip: Clip) -> None:
    before = decode_count()
    decode_frames(clip)
    next(iter_frames(clip))
    probe(clip.source)
    with pytest.raises(VideoError):
        decode_frames(clip, np.array([60]))
    assert decode_count() - before == 3


def test_an_error_has_the_traceback_of_the_decoder_as_its_cause(tmp_path: Path, clip: Clip) -> None:
    data = Path(clip.source).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    with pytest.raises(NotAVideo, match="is truncated") as error:
        probe(str(tmp_path / "cut.mp4"))
    assert "container.py" in str(error.value.__cause__)


def test_an_error_of_a_function_that_chooses_frames_is_raised_here(clip: Clip, one_decoder: Callable[[], int]) -> None:
    class Mine(Exception):
        pass

    def choose(times_s: np.ndarray) -> np.ndarray:
        raise Mine(len(times_s))

    probe(clip.source)
    first = one_decoder()
    with pytest.raises(Mine, match="60"):
        decode_frames(clip, choose)
    assert len(decode_frames(clip).frames) == 60
    assert one_decoder() == first


@pytest.mark.parametrize(
    "number", [signal.SIGSEGV, *(pytest.param(number, marks=pytest.mark.slow) for number in CRASHES)]
)
def test_a_crash_is_an_error_of_the_clip_and_the_next_one_is_decoded(
    clip: Clip, one_decoder: Callable[[], int], number: signal.Signals
) -> None:
    probe(clip.source)
    with (
        soon(lambda: os.kill(one_decoder(), number)),
        pytest.raises(VideoError, match=rf"a\.mp4: the decoder crashed \({number.name}\)") as error,
    ):
        decode_frames(clip, endless)
    assert "Fatal Python error" in str(error.value.__cause__)
    assert numbers(decode_frames(clip, np.array([3])).frames) == [3]


def test_a_crash_while_frames_are_iterated_is_an_error_of_the_clip(clip: Clip, one_decoder: Callable[[], int]) -> None:
    frames = iter_frames(clip)
    next(frames)
    os.kill(one_decoder(), signal.SIGSEGV)
    with pytest.raises(VideoError, match="crashed"):
        list(frames)
    assert sum(1 for _ in iter_frames(clip)) == 60


@pytest.mark.slow
def test_a_decoder_that_another_process_kills_is_replaced_once_and_then_fails(
    clip: Clip, one_decoder: Callable[[], int]
) -> None:
    calls = []

    def once(times_s: np.ndarray) -> np.ndarray:
        calls.append(one_decoder())
        if len(calls) == 1:
            os.kill(calls[0], signal.SIGKILL)
        return np.arange(2)

    def always(times_s: np.ndarray) -> np.ndarray:
        os.kill(one_decoder(), signal.SIGKILL)
        return np.arange(2)

    assert numbers(decode_frames(clip, once).frames) == [0, 1] and len(calls) == 2
    with pytest.raises(VideoError, match="was killed \\(SIGKILL\\), perhaps because the machine ran out of memory"):
        decode_frames(clip, always)
    os.kill(one_decoder(), signal.SIGKILL) if process._pool.idle else None
    assert len(decode_frames(clip).frames) == 60


def test_a_decoder_without_progress_is_stopped(clip: Clip, one_decoder: Callable[[], int]) -> None:
    frames = iter_frames(clip, limits=Limits(max_stall_s=0.5))
    next(frames)
    time.sleep(0.6)  # the time that frames wait to be used does not count
    os.kill(one_decoder(), signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(LimitExceeded, match=r"no packet or frame for 0.5 s.*decoder_timeout_s"):
        list(frames)
    assert time.monotonic() - began < 10
    assert len(decode_frames(clip).frames) == 60


def test_a_decode_has_a_total_time(clip: Clip) -> None:
    with pytest.raises(LimitExceeded, match="longer than 1e-06 s"):
        decode_frames(clip, endless, limits=Limits(max_decode_s=1e-6))


def test_memory_of_the_decoder_is_limited(tmp_path: Path) -> None:
    """A small file whose decoder needs about 60 MB for its reference frames, and may have 10 MB."""
    pictures = 20 * [np.zeros((1600, 1600, 3), np.uint8)]
    large = encode(tmp_path / "large.mkv", times=range(20), pictures=pictures, options={"preset": "ultrafast"})
    clip = probe_clip(str(large))
    assert large.stat().st_size < 500_000
    with pytest.raises(LimitExceeded, match=r"large\.mkv: the decoder needed more than 0.01 GB.*decoder_memory_gb"):
        decode_frames(clip, limits=Limits(max_decoder_bytes=10_000_000))
    assert len(decode_frames(clip, np.arange(2), 64).frames) == 2


def test_memory_of_frames_is_given_back(clip: Clip, one_decoder: Callable[[], int]) -> None:
    process.close_decoders()
    for _ in range(5):
        frames = decode_frames(clip).frames
    del frames
    gc.collect()
    (idle,) = process._pool.idle
    mappings = idle.connection.mappings
    assert len(mappings.mapped) <= 2
    assert sum(one.nbytes for one in mappings.pooled.values()) <= MAX_POOLED_BYTES


def test_whoever_keeps_the_times_of_windows_does_not_keep_their_frames(
    tmp_path: Path, one_decoder: Callable[[], int]
) -> None:
    long = probe_clip(str(encode(tmp_path / "long.mp4", times=range(900))))
    times_s = [window.times_s[1:] for window in iter_windows(long, 0, Limits(), 300, 1)]  # with a view of each
    gc.collect()
    (idle,) = process._pool.idle
    mappings = idle.connection.mappings
    kept = [one.nbytes for number, one in mappings.mapped.items() if number not in mappings.pooled]
    assert sum(map(len, times_s)) == 899 and sum(kept) < 2**15


def test_maps_travel_as_bytes_and_come_back_exact() -> None:
    planes = np.random.default_rng(0).integers(0, 2**16, (3, 40, 50, 3)).astype(np.uint16)
    assert np.array_equal(decode_lossless(encode_lossless(planes, 25)), planes)
    with pytest.raises(CorruptVideo, match="stored planes are damaged"):
        decode_lossless(b"no video")


def test_files_of_the_memory_file_system_are_handed_over(clip: Clip) -> None:
    import fsspec

    fs = fsspec.filesystem("memory")
    data = Path(clip.source).read_bytes()
    fs.pipe_file("/decoder/a.mp4", data)
    fs.pipe_file("/decoder/tar", b"head" + data + b"tail")
    try:
        assert len(decode_frames(probe_clip("memory://decoder/a.mp4")).frames) == 60
        assert len(decode_frames(probe_clip(f"memory://decoder/tar#bytes=4-{len(data) + 3}")).frames) == 60
    finally:
        fs.rm("/decoder", recursive=True)
    with pytest.raises(VideoError, match=r"cannot open memory://decoder/a\.mp4"):
        probe("memory://decoder/a.mp4")


def test_settings_of_clients_are_those_at_the_time_of_the_request(
    clip: Clip, monkeypatch: pytest.MonkeyPatch, one_decoder: Callable[[], int]
) -> None:
    with file_server({"/a.mp4": Path(clip.source).read_bytes()}) as served:
        assert len(probe(f"{served.url}/a.mp4").pts) == 60
        before, asked = one_decoder(), len(served.asked)
        monkeypatch.setenv("OPENUNI_UNRELATED", "1")
        probe(clip.source)
        assert one_decoder() == before
        monkeypatch.setenv("AWS_ENDPOINT_URL", served.url)
        probe(clip.source)
        assert one_decoder() != before and len(served.asked) == asked


def test_relative_paths_are_of_the_current_folder(clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe(clip.source)
    monkeypatch.chdir(Path(clip.source).parent)
    assert len(probe("a.mp4").pts) == 60
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    probe(clip.source)
    (tmp_path / "gone").rmdir()
    assert len(probe(clip.source).pts) == 60


def test_a_decoder_ends_with_its_parent_even_if_it_hangs(clip: Clip) -> None:
    code = (
        "import os, signal, sys\n"
        "from openuni.manifests.video.decoder import process\n"
        "from openuni.manifests.video.probe import probe\n"
        f"probe({clip.source!r})\n"
        "pid = process._pool.idle[0].connection.process.pid\n"
        "os.kill(pid, signal.SIGSTOP)\n"
        "print(pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    pid = int(done.stdout)
    deadline = time.monotonic() + 5
    while _is_running(pid):
        assert time.monotonic() < deadline, "the decoder is still there"
        time.sleep(0.02)


def test_a_forked_process_has_decoders_of_its_own(clip: Clip, one_decoder: Callable[[], int]) -> None:
    probe(clip.source)
    ours = one_decoder()
    receiver, sender = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        with contextlib.suppress(BaseException):
            count = len(decode_frames(clip).frames)
            theirs = process._pool.idle[0].connection.process.pid
            os.write(sender, json.dumps([count, theirs]).encode())
            status = 0
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    count, theirs = json.loads(os.read(receiver, 100))
    os.close(receiver)
    os.close(sender)
    assert count == 60 and theirs != ours and one_decoder() == ours
    assert len(decode_frames(clip).frames) == 60


def test_code_of_the_current_folder_is_not_imported(
    clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("numpy", "json", "fractions"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('executed')")
    monkeypatch.chdir(tmp_path)
    process.close_decoders()
    assert len(probe(clip.source).pts) == 60


def test_an_unknown_mode_is_an_error(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENUNI_DECODER", "thread")
    with pytest.raises(OpenUniError, match="Allowed: in-process, or not set"):
        probe(clip.source)


def test_every_isolated_function_is_in_the_table() -> None:
    code = (
        "import json, sys\n"
        "from openuni.manifests.video.decoder.child import FUNCTIONS, main\n"
        "from openuni.manifests.video import encode, images, probe, reader\n"
        "from openuni.manifests.video.readers import nvdec_reader as nvdec\n"
        "found = [(m, n, f) for m in (encode, images, probe, reader, nvdec) for n, f in vars(m).items()]\n"
        "found = [(n, f) for m, n, f in found if f.__class__ is type(main) and f.__module__ == m.__name__]\n"
        "isolated = {n for n, f in found if hasattr(f, '__wrapped__') and n[0] != '_'}\n"
        "print(json.dumps([sorted(FUNCTIONS), sorted(isolated), 'torch' in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    table, isolated, has_torch = json.loads(done.stdout)
    assert table == isolated and {"decode_frames", "iter_frames"} <= set(table) and not has_torch


def _is_running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"
