"""Videos that are encoded together: the same latents as one at a time, whatever fails."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import openuni
from openuni.console.progress import Reporter
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.modalities.rgb import RGB
from openuni.pipeline.batching.video_batches import VideoBatches
from openuni.pipeline.runners.resources import Resources
from openuni.training.codecs.wan_vae import WanVae
from tests.coded_clips import encode
from tests.moving_pictures import panned
from tests.train.tiny_codecs import tiny_vae

CODEC = "tests.operators.batching_codec"


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five clips, two of them shorter, one black."""
    folder = tmp_path_factory.mktemp("raw")
    for name, frames in {"a": 6, "b": 9, "black": 9, "c": 5, "d": 9}.items():
        pictures = [np.full((48, 64, 3), 0 if name == "black" else 60 + 5 * t, np.uint8) for t in range(frames)]
        encode(folder / f"{name}.mp4", times=range(frames), pictures=pictures)
    return folder


def run(raw: Path, out: Path, **options: Any) -> dict[tuple[str, str], Any]:
    """By clip and stream: the row and its latents."""
    recipe = {
        "annotators": {"dis": {"preset": "ultrafast"}},
        "encode": {"latents": CODEC, "modalities": ["rgb", "flow"], "size_px": [16, 16], "frames": 9, CODEC: options},
    }
    openuni.run(recipe, str(raw), out=str(out), reporter=Reporter(quiet=True), resources=Resources(workers=0))
    return contents(Corpus.open(out))


def contents(corpus: Corpus) -> dict[tuple[str, str], Any]:
    sources = {row["clip_id"]: Path(row["source"]).stem for row in corpus.table("clips").to_pylist()}
    found: dict[tuple[str, str], Any] = {}
    for group in corpus.groups():
        if not group.startswith(("latents/", "text/")):
            continue
        rows = corpus.table(group).to_pylist()
        assert len({row["clip_id"] for row in rows}) == len(rows), "a clip has two rows"
        for row in rows:
            place = [row.pop(key) for key in ("shard", "offset", "nbytes", "xxh3")]
            data = corpus.read(group, *place) if row["status"] == "ok" else None
            key = sources[row["clip_id"]], group.rpartition("/")[2] if group.startswith("latents/") else "text"
            found[key] = {name: value for name, value in row.items() if name not in ("ms", "clip_id")}, data
    return found


@pytest.fixture(scope="module")
def alone(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Any]:
    return run(raw, tmp_path_factory.mktemp("alone") / "c", dark=0.1)


def batches(log: Path) -> list[list[int]]:
    """Per batch: videos, shapes, frames."""
    return [[int(word) for word in line.split()] for line in log.read_text().splitlines()]


def test_one_at_a_time(alone: dict[tuple[str, str], Any]) -> None:
    assert len(alone) == 5 * 3
    assert {key for key, (row, _) in alone.items() if row["status"] == "failed"} == {("black", "rgb")}
    assert alone["black", "rgb"][0]["error"] == "ClipError: too dark"


@pytest.mark.parametrize("videos", [2, 3, 100])
def test_several_together_give_the_same_latents(
    raw: Path, tmp_path: Path, alone: dict[tuple[str, str], Any], videos: int
) -> None:
    log = tmp_path / "log"
    assert run(raw, tmp_path / "c", dark=0.1, videos=videos, log=str(log)) == alone
    given = batches(log)
    assert max(count for count, _, _ in given) == min(videos, 6)  # of nine frames: three clips with two modalities
    assert {shapes for _, shapes, _ in given} == {1}
    assert {frames for _, _, frames in given} == {5, 9}
    assert min(count for count, _, frames in given if frames == 9) == 1  # the one that fails, in the end alone


def test_out_of_memory_makes_this_and_later_batches_smaller(
    raw: Path, tmp_path: Path, alone: dict[tuple[str, str], Any]
) -> None:
    log = tmp_path / "log"
    assert run(raw, tmp_path / "c", dark=0.1, videos=4, most=2, log=str(log)) == alone
    assert [count for count, _, _ in batches(log)].count(4) == 1


@pytest.mark.parametrize("videos", [1, 4])
def test_an_error_of_one_video_fails_that_stream_alone(raw: Path, tmp_path: Path, videos: int) -> None:
    found = run(raw, tmp_path / "c", broken=0.1, videos=videos)
    failed = {key: row["error"] for key, (row, _) in found.items() if row["status"] == "failed"}
    assert failed == {("black", "rgb"): "RuntimeError: a kernel failed"}


def test_windows_and_sizes_are_batched_by_shape(raw: Path, tmp_path: Path) -> None:
    """Several windows of a clip go together; clips of other sizes and lengths never do."""
    tall = [np.full((64, 32, 3), 90 + 5 * t, np.uint8) for t in range(9)]
    for name in ("tall", "high"):
        encode(tmp_path / f"{name}.mp4", times=range(9), pictures=tall)

    def encoded(videos: int, **options: Any) -> dict[tuple[str, str], Any]:
        log = tmp_path / f"log{videos}{len(options)}"
        sizes = {"size_px": [[16, 16], [32, 16]], "frames": [1, 5], "modalities": ["rgb"]} | options
        codec = {CODEC: {"videos": videos, "log": str(log)}}
        out = tmp_path / f"out{videos}{len(options)}"
        sources = [raw, *(tmp_path / f"{name}.mp4" for name in ("tall", "high"))]
        quiet = Reporter(quiet=True)
        openuni.run({"encode": {"latents": CODEC} | sizes | codec}, sources, out=out, reporter=quiet)
        assert {shapes for _, shapes, _ in batches(log)} == {1}
        assert max(count for count, _, _ in batches(log)) == videos
        return contents(Corpus.open(out))

    assert encoded(1) == encoded(3)
    windows = {"windows": 3, "fps": 25.0}
    one, several = encoded(1, **windows), encoded(2, **windows)
    assert one == several
    assert {row["shape"][0] for (_, stream), (row, _) in several.items() if stream == "rgb"} == {1, 2, 3}


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> WanVae:
    return WanVae(checkpoint=tiny_vae(tmp_path_factory.mktemp("vae")))


def test_the_vae_gives_the_same_for_several_videos(vae: WanVae) -> None:
    model = vae.load("cpu")
    videos = [panned([(step * way, step) for step in range(9)], 32, 48) for way in (-1, 1, 2)]
    signals = {number: RGB(video) for number, video in enumerate(videos)} | {3: RGB(videos[0][:5])}
    together = VideoBatches(vae, model, 3).encode(signals)
    for number, signal in signals.items():
        found: Any = together[number]
        alone = vae.encode(model, signal.to_rgb())
        assert (found.array.shape, found.frames, found.dtype) == (alone.shape, len(signal.array), "float16")
        np.testing.assert_allclose(found.array, alone, rtol=0, atol=2e-6 * float(np.abs(alone).max()))


def test_how_many_videos_the_vae_takes(vae: WanVae) -> None:
    model = vae.load("cpu")
    assert vae.videos_per_batch(model, 64, 64) == 1  # a CPU gains nothing
    assert WanVae(checkpoint=vae.checkpoint, batch_videos=5).videos_per_batch(model, 480, 832) == 5
    on_gpu = type("OnGpu", (), {"device": type("Device", (), {"type": "cuda"})})
    sizes = ((480, 832), (720, 1280), (256, 256), (240, 416))
    assert [vae.videos_per_batch(on_gpu, *size) for size in sizes] == [1, 1, 6, 4]


def test_only_the_arithmetic_is_part_of_the_version(vae: WanVae) -> None:
    assert WanVae(checkpoint=vae.checkpoint, batch_videos=5).version() == vae.version()
    assert WanVae(checkpoint=vae.checkpoint, tf32=False).version() != vae.version()
