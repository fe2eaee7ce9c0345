"""Ten kinds of odd files through one run: each is its clips, exact to the frame, or a failed row that says why."""

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

import openuni
from openuni.console.progress import Reporter
from openuni.manifests.contracts.decoded_clip import decode
from tests.coded_clips import encode, numbers, picture

HOURS_3 = 3 * 3600 * 25
RUNS = {"bf": "2", "g": "10", "sc_threshold": "0"}


def all_marked_as_key_frames(folder: Path) -> None:
    """A Matroska file that claims of every frame that decoding can begin there."""
    path = encode(folder / "all_keys.mkv", options=RUNS | {"bf": "0"})
    data, marked = bytearray(path.read_bytes()), 0
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            place = data.find(bytes(packet)[:24]) if packet.size else -1
            if place > 0 and data[place - 1] == 0:  # the flags of its block
                data[place - 1], marked = 0x80, marked + 1
    assert marked > 30
    path.write_bytes(data)


def without_a_list_of_key_frames(folder: Path) -> None:
    path = encode(folder / "no_list.mp4", options=RUNS)
    path.write_bytes(path.read_bytes().replace(b"stss", b"free", 1))


def two_videos_in_one(folder: Path) -> None:
    with av.open(str(folder / "two.mkv"), "w") as container:
        streams = [container.add_stream("libx264", rate=25) for _ in range(2)]
        for size, stream in enumerate(streams, 1):
            stream.width, stream.height, stream.pix_fmt = 64 * size, 48 * size, "yuv420p"
        for number in range(40):
            for size, stream in enumerate(streams, 1):
                frame = av.VideoFrame.from_ndarray(picture(number).repeat(size, 0).repeat(size, 1), format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 25)
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("odd")
    all_marked_as_key_frames(folder)
    without_a_list_of_key_frames(folder)
    two_videos_in_one(folder)
    encode(folder / "pause.mp4", times=[*range(20), *range(HOURS_3, HOURS_3 + 20)], options=RUNS)
    encode(folder / "before_zero.mkv", times=range(-20, 20), options=RUNS | {"bf": "0"})
    first = encode(folder / "gap.ts", options=RUNS).read_bytes()
    later = encode(folder / "later.ts", options=RUNS, times=range(1000, 1040)).read_bytes()
    (folder / "gap.ts").write_bytes(first + later)
    (folder / "back.ts").write_bytes(later + first)
    (folder / "twice.ts").write_bytes(first + first)
    (folder / "later.ts").unlink()
    encode(folder / "name with\nbreak #bytes=1-2 %20.mp4")
    (folder / "loop.mp4").symlink_to("loop.mp4")
    with (folder / "zeros.mp4").open("wb") as file:
        file.truncate(8 * 2**30)
    encode(folder / "pipe.mp4")
    os.mkfifo(folder / "pipe.txt")
    os.mkfifo(folder / "only_a_pipe.mp4")
    recipe = {"ingest": {"shots": "content", "max_s": 30.0}, "filters": {"luminance": {}}}
    return openuni.run(recipe, folder, out=folder / "corpus", reporter=Reporter(quiet=True))


def by_source(corpus) -> dict[str, list]:
    found: dict[str, list] = {}
    for row in corpus.table("clips").to_pylist():
        found.setdefault(Path(row["source"]).name, []).append(row)
    return found


@pytest.mark.timeout(120)
def test_every_file_has_its_rows_and_filters_see_all_clips(corpus) -> None:
    rows = by_source(corpus)
    errors = {name: found[0]["error"] for name, found in rows.items() if found[0]["status"] == "failed"}
    assert errors.keys() == {"back.ts", "twice.ts", "loop.mp4", "zeros.mp4", "pipe.mp4"}
    for name, words in (
        ("back.ts", "CorruptVideo: "),
        ("twice.ts", "several frames with the same timestamp"),
        ("loop.mp4", "VideoError: "),
        ("zeros.mp4", "NotAVideo: "),
        ("pipe.mp4", r"pipe.txt is not a regular file"),
    ):
        assert words in errors[name], errors[name]
    assert len(rows) == 12 and "only_a_pipe.mp4" not in rows
    summary = corpus.summary()
    assert summary.is_consistent and summary.pending == 0 and sum(failure.clips for failure in summary.failed) == 5


def test_what_became_a_clip_is_exact_to_the_frame(corpus) -> None:
    shown: dict[str, list[list[int]]] = {}
    for clip in corpus:
        if clip.clip.frame_count:
            frames = decode(clip.clip, short_side_px=48).frames
            shown.setdefault(Path(clip.clip.source).name, []).append(numbers(frames))
            one = decode(clip.clip, np.array([clip.clip.frame_count // 2]), threads=1, short_side_px=48).frames
            assert numbers(one) == [shown[Path(clip.clip.source).name][-1][clip.clip.frame_count // 2]]
    everything = [*range(40)]
    for name in ("all_keys.mkv", "no_list.mp4", "two.mkv", "before_zero.mkv"):
        assert [number for part in shown[name] for number in part] == everything, name
    assert [number for part in shown["gap.ts"] for number in part][:39] == everything[:39]
    held = [number for part in shown["pause.mp4"] for number in part]
    assert held == [*range(19), *range(20, 40)]  # frame 19 is shown for three hours
