"""Damaged videos by the hundred: each ends as a clip or a failed row, and opening them leaves nothing behind."""

import random
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

import openuni
from openuni.manifests.contracts.decoded_clip import decode
from openuni.manifests.video.container import Limits
from openuni.manifests.video.probe import make_clip, probe
from openuni.manifests.video.video_errors import VideoError
from openuni.pipeline.runners.resources import Resources
from tests.coded_clips import encode

FILES = 200
OPENS = 10_000
MAX_S_PER_FILE = 20.0
MAX_GROWTH_BYTES = 24 * 2**20
RECIPE = {"filters": {"luminance": {}}, "ingest": {"probe_timeout_s": MAX_S_PER_FILE}}
CODED = {
    "h264.mp4": ("libx264", {"bf": "2"}),
    "h264.mkv": ("libx264", {}),
    "hevc.mp4": ("libx265", {"x265-params": "log-level=none"}),
    "vp9.webm": ("libvpx-vp9", {}),
    "mpeg4.avi": ("mpeg4", {}),
    "av1.mkv": ("libsvtav1", {"preset": "10"}),
    "mpeg2.mpg": ("mpeg2video", {}),
    "h264.ts": ("libx264", {}),
}


def cut(data: bytes, rng: random.Random) -> bytes:
    """Ends somewhere."""
    return data[: rng.randrange(len(data))]


def flip(data: bytes, rng: random.Random) -> bytes:
    """Bits changed, many or few."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 4, 32, 256))):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def flip_head(data: bytes, rng: random.Random) -> bytes:
    """Bits changed where sizes, counts and codecs are declared."""
    out = bytearray(data)
    for _ in range(8):
        out[rng.randrange(min(600, len(out)))] = rng.randrange(256)
    return bytes(out)


def move(data: bytes, rng: random.Random) -> bytes:
    """A piece taken out and put elsewhere."""
    start, end = sorted(rng.sample(range(len(data)), 2))
    rest = data[:start] + data[end:]
    place = rng.randrange(len(rest) + 1)
    return rest[:place] + data[start:end] + rest[place:]


def shuffle_boxes(data: bytes, rng: random.Random) -> bytes:
    """The boxes of an mp4, outer and those of its index, in another order; other containers: pieces."""
    if data[4:8] != b"ftyp":
        pieces = [data[at : at + 1000] for at in range(0, len(data), 1000)]
        rng.shuffle(pieces)
        return b"".join(pieces)
    outer = boxes(data)
    mixed = []
    for box in outer:
        inner = boxes(box[8:]) if box[4:8] == b"moov" else []
        rng.shuffle(inner)
        mixed.append(box[:8] + b"".join(inner) if inner else box)
    rng.shuffle(mixed)
    return b"".join(mixed)


def boxes(data: bytes) -> list[bytes]:
    """The boxes side by side in some bytes of an mp4."""
    found, at = [], 0
    while at + 8 <= len(data):
        size = struct.unpack(">I", data[at : at + 4])[0] or len(data) - at
        size = max(8, min(size, len(data) - at))
        found.append(data[at : at + size])
        at += size
    return found


DAMAGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (cut, flip, flip_head, move, shuffle_boxes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A sound video in each container and codec, by name."""
    folder = tmp_path_factory.mktemp("whole")
    for name, (codec, options) in CODED.items():
        encode(folder / name, codec, options=options)
    return {name: (folder / name).read_bytes() for name in CODED}


def write_damaged(folder: Path, whole: dict[str, bytes], count: int) -> list[Path]:
    folder.mkdir()
    paths = []
    for number in range(count):
        rng = random.Random(number)
        name = list(whole)[number % len(whole)]
        damage = DAMAGES[number // len(whole) % len(DAMAGES)]
        path = folder / f"{number:03}-{damage.__name__}-{name}"
        path.write_bytes(damage(whole[name], rng))
        paths.append(path)
    return paths


@pytest.mark.slow
def test_every_damaged_file_is_a_clip_or_a_failed_row(whole: dict[str, bytes], tmp_path: Path) -> None:
    paths = write_damaged(tmp_path / "damaged", whole, FILES)
    for name, data in whole.items():
        (tmp_path / "damaged" / f"sound-{name}").write_bytes(data)
    started = time.monotonic()
    corpus = openuni.run(RECIPE, tmp_path / "damaged", out=tmp_path / "corpus", resources=Resources(workers=2))
    assert time.monotonic() - started < MAX_S_PER_FILE * 10
    ledger = corpus.summary()
    assert ledger.clips == len(paths) + len(whole)
    assert ledger.is_consistent and ledger.pending == 0
    failed = {(failure.operator, failure.reason): failure.clips for failure in ledger.failed}
    assert 40 < sum(failed.values()) < FILES  # most damage is found, some is harmless
    known = {"NotAVideo", "CorruptVideo", "LimitExceeded", "UnsafeSource", "VideoError", "WorkerDied"}
    assert {reason for _, reason in failed} <= known
    sound = [clip for clip in corpus if "/sound-" in clip.clip.source]
    assert len(sound) == len(whole)
    assert all(clip.row("luminance")["status"] == "ok" for clip in sound)


@pytest.mark.slow
def test_damaged_files_that_pyav_opens_are_frames_or_errors_by_decord(whole: dict[str, bytes], tmp_path: Path) -> None:
    read, failed = 0, 0
    for path in write_damaged(tmp_path / "damaged", whole, FILES // 2):
        with suppress(VideoError):
            clip = make_clip(str(path), probe(str(path)))
            try:
                frames = decode(clip, limits=Limits(max_stall_s=MAX_S_PER_FILE), threads=1, reader="decord").frames
            except VideoError:
                failed += 1
                continue
            assert len(frames) == clip.frame_count
            read += 1
    assert read > 5 and failed > 5, (read, failed)


@pytest.mark.slow
def test_memory_stays_flat_over_many_opens(whole: dict[str, bytes], tmp_path: Path) -> None:
    paths = write_damaged(tmp_path / "damaged", whole, 40)
    for name, data in whole.items():
        paths.append(tmp_path / name)
        paths[-1].write_bytes(data)
    fields = {"flags": "+ildct+ilme", "x264-params": "tff=1", "sar": "4/3"}  # takes a filter and a stretch
    paths.append(encode(tmp_path / "fields.mp4", options=fields))
    limits = Limits(max_probe_s=MAX_S_PER_FILE)
    process = psutil.Process()

    def open_all(count: int) -> None:
        for number in range(count):
            path = str(paths[number % len(paths)])
            with suppress(VideoError):
                info = probe(path, limits)
                if number % 10 == 0:
                    decode(make_clip(path, info), limits=limits, threads=1)

    open_all(OPENS // 5)  # caches of the libraries fill
    before = process.memory_info().rss
    open_all(OPENS)
    assert process.memory_info().rss - before < MAX_GROWTH_BYTES
