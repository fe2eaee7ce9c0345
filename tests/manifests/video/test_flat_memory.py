"""Opening, probing and decoding leave nothing behind: no packets, no frames, no files; nor do their failures."""

import contextlib

import av
import numpy as np
import psutil
import pytest

from openuni.manifests.video.encode import decode_lossless, encode_lossless
from openuni.manifests.video.http_file import HttpError, HttpFile
from openuni.manifests.video.probe import probe, probe_clip
from openuni.manifests.video.reader import decode_frames, iter_frames
from openuni.manifests.video.video_errors import CorruptVideo
from tests.benchmarks.memory import file_cases, http_cases
from tests.coded_clips import encode
from tests.file_server import file_server
from tests.memory_in_use import growth_per_call

MAX_BYTES = 100  # per call; an AVPacket takes 150, a frame of 64 x 48 pixels 4,600


@pytest.fixture(autouse=True)
def in_process(monkeypatch):
    """What is left behind is left in the process that decodes."""
    monkeypatch.setenv("OPENUNI_DECODER", "in-process")


@pytest.fixture
def clip(tmp_path):
    return probe_clip(str(encode(tmp_path / "clip.mp4", times=range(40), options={"g": "5", "bf": "0"})))


def test_a_decode_that_ends_early_or_jumps_leaves_no_packets(clip):
    assert growth_per_call(lambda _: probe(clip.source)) < MAX_BYTES

    def leave_early(_):
        with contextlib.closing(iter_frames(clip)) as frames:
            next(frames)

    assert growth_per_call(leave_early) < MAX_BYTES
    jumps = np.array([0, 14, 28, 39])  # each from another keyframe
    assert growth_per_call(lambda _: decode_frames(clip, jumps, threads=1)) < MAX_BYTES


def test_reading_motion_vectors_keeps_no_frames(clip):
    assert growth_per_call(lambda _: decode_frames(clip, np.array([3]), vectors=True)) < MAX_BYTES


def test_damaged_maps_leave_nothing():
    planes = np.random.default_rng(0).integers(0, 2**16, (3, 32, 32, 1)).astype(np.uint16)
    data = encode_lossless(planes, 25.0)
    damaged = data[: len(data) // 2] + bytes(len(data) - len(data) // 2)

    def fail(_):
        with pytest.raises(CorruptVideo):
            decode_lossless(damaged)

    assert growth_per_call(lambda _: decode_lossless(data)) < MAX_BYTES
    assert growth_per_call(fail) < MAX_BYTES


def test_a_download_that_fails_keeps_no_blocks():
    with file_server({"/a.mp4": bytes(3 * 2**20)}) as served:

        def fail(_):
            file = HttpFile(f"{served.url}/a.mp4", 20.0)
            served.statuses = [418]
            file.seek(2**21)
            with pytest.raises(HttpError):
                file.read(10)

        assert growth_per_call(fail, calls=8, warm_up=4) < 2**19  # one block takes 2^20


def test_what_is_mended_here_would_be_seen(clip):
    """PyAV's own ways of doing the same: a generator that is dropped, and `frame.side_data`."""

    def drop(_):
        with av.open(clip.source) as container:
            next(container.demux(container.streams.video[0]))

    assert growth_per_call(drop) > MAX_BYTES, "PyAV has mended it: manifests.video.container.demux can go"

    def cycle(_):
        with av.open(clip.source) as container:
            next(iter(container.decode(container.streams.video[0]))).side_data.get("DISPLAYMATRIX")

    assert growth_per_call(cycle) > 10 * MAX_BYTES, "PyAV has mended it: side_data can use frame.side_data"


@pytest.mark.slow
def test_no_way_of_opening_leaves_anything(tmp_path):
    process = psutil.Process()
    with contextlib.ExitStack() as stack:
        cases = file_cases(tmp_path) | http_cases(tmp_path, stack)
        for name, call in cases.items():
            call(0)
            held = process.num_fds(), process.num_threads()
            limit = 2000 if name.startswith("http") else MAX_BYTES  # of asyncio's tasks, which wait for the collector
            assert growth_per_call(call) < limit, name
            assert process.num_fds() <= held[0] + 2, name
            assert process.num_threads() <= held[1] + 2, name
