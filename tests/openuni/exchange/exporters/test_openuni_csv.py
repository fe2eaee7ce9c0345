"""The layout of UnityVideo's loader, read the way it reads: csv.DictReader, all frames of each video, paths beside."""

import csv
import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

import openuni
from openuni.exchange.export_selection import ExportOptions
from openuni.manifests.contracts.decoded_clip import decode
from openuni.manifests.contracts.modality import find_modality
from openuni.manifests.video.probe import make_clip, probe
from tests.openuni.exchange.exporters.rooms import CAPTION, QUIET, tree

COLUMNS = ["video", "prompt", "depth", "densepose", "raft", "segmentation", "skeleton"]
MAX_READ = 400


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def frames_of(path: Path) -> np.ndarray:
    """uint8 [T, H, W, 3], as imageio's reader gives them; by PyAV where imageio has no FFmpeg to call."""
    try:
        import imageio.v2 as imageio
        import imageio_ffmpeg  # noqa: F401
    except ImportError:
        with av.open(str(path)) as container:
            return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    with imageio.get_reader(str(path)) as reader:
        return np.stack([frame for frame in reader])


def read_pair(metadata: Path, row: dict[str, str], column: str, num_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """`num_frames` spread evenly over the clip, and the same frames of the other video, by the CSV's folder."""
    video = frames_of(metadata.parent / row["video"])[:MAX_READ]
    chosen = [round(number * (len(video) - 1) / max(num_frames - 1, 1)) for number in range(num_frames)]
    return video[chosen], frames_of(metadata.parent / row[column])[chosen]


@pytest.fixture(scope="module")
def out(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("csv") / "set"
    report = openuni.export(corpus, "openuni-csv", out=folder, reporter=QUIET)
    assert (report.clips, report.written, report.failed) == (4, 4, [])
    return folder


def test_one_row_per_kept_clip_and_an_empty_cell_per_gap(out, ids):
    text = (out / "metadata.csv").read_bytes()
    assert text.startswith(",".join(COLUMNS).encode() + b"\n") and b"\r" not in text
    rows = {Path(row["video"]).stem: row for row in rows_of(out / "metadata.csv")}
    assert list(rows) == [ids[name] for name in ("all", "depth", "mkv", "odd")]  # still is dropped
    there = {name: [column for column in COLUMNS if rows[ids[name]][column]] for name in ids if name != "still"}
    assert there == {
        "all": COLUMNS,
        "depth": ["video", "depth"],
        "mkv": ["video", "prompt", "segmentation"],
        "odd": ["video", "prompt", "raft"],
    }
    assert rows[ids["all"]]["prompt"] == CAPTION
    for row in rows.values():
        for column in (column for column in COLUMNS if column != "prompt" and row[column]):
            assert (out / row[column]).is_file() and not Path(row[column]).is_absolute()


def test_the_loader_finds_every_modality_aligned_with_the_video(out, corpus, ids):
    row = rows_of(out / "metadata.csv")[0]
    truth = corpus[ids["all"]]
    for column, modality in {"raft": "flow"}.items() | {(name, name) for name in COLUMNS[2:] if name != "raft"}:
        video, condition = read_pair(out / "metadata.csv", row, column, 5)
        assert video.shape == condition.shape == (5, 48, 64, 3)
        expected = truth.modality(modality).resize(48, 64).to_rgb()[[0, 2, 4, 6, 8]] * 255
        assert np.abs(condition - expected).mean() < 3, modality
        assert np.abs(video - truth.rgb[[0, 2, 4, 6, 8]].astype(float)).mean() < 4
    assert (
        np.abs(read_pair(out / "metadata.csv", row, "raft", 5)[0] - truth.rgb[:5].astype(float)).mean() > 8
    )  # it moves


def test_all_videos_of_a_clip_have_one_length_rate_and_size(out):
    for row in rows_of(out / "metadata.csv"):
        facts = set()
        for column in (column for column in COLUMNS if column != "prompt" and row[column]):
            info = probe(str(out / row[column]))
            facts.add((len(info.pts), info.width_px, info.height_px, Fraction(info.fps).limit_denominator(1001)))
            with av.open(str(out / row[column])) as container:
                assert container.streams.video[0].pix_fmt == ("yuv420p" if column == "video" else "yuv444p")
        assert len(facts) == 1
    assert facts == {(5, 46, 32, 12)}  # 47 x 33 without the last column and row


def test_each_modality_has_a_csv_without_gaps(out, ids):
    assert [Path(row["video"]).stem for row in rows_of(out / "metadata-depth.csv")] == [ids["all"], ids["depth"]]
    assert [Path(row["video"]).stem for row in rows_of(out / "metadata-raft.csv")] == [ids["all"], ids["odd"]]
    assert all(list(row) == COLUMNS for row in rows_of(out / "metadata-raft.csv"))


def test_constants_read_a_rendering_back(out, corpus, ids):
    records = [json.loads(line) for line in (out / "clips.jsonl").read_text(encoding="utf-8").splitlines()]
    record = next(record for record in records if record["clip_id"] == ids["all"])
    assert (record["frames"], record["fps"], record["caption"]) == (9, 12, CAPTION)
    assert record["scores"]["motion"]["speed_diag_per_s"] > 0.01
    entry = record["modalities"]["depth"]
    kind = find_modality("depth")
    path = str(out / entry["file"])
    rgb = decode(make_clip(path, probe(path))).frames / np.float32(255)
    depth = kind.from_rgb(rgb, kind.constants_type(**entry["constants"])).resize(entry["height_px"], entry["width_px"])
    truth = corpus[ids["all"]].depth
    assert depth.array.shape == truth.shape
    assert np.abs(1 / depth.array - 1 / truth).max() < 0.1 and truth.max() == pytest.approx(9)


def test_options_choose_size_and_pixels(corpus, ids, tmp_path):
    choice = ExportOptions(("segmentation",), limit=1)
    openuni.export(
        corpus,
        "openuni-csv",
        out=tmp_path / "a",
        export_options=choice,
        reporter=QUIET,
        short_side_px=24,
        pixels="yuv420p",
    )
    for folder in ("video", "segmentation"):
        with av.open(str(tmp_path / "a" / folder / f"{ids['all']}.mp4")) as container:
            stream = container.streams.video[0]
            assert (stream.width, stream.height, stream.pix_fmt) == (32, 24, "yuv420p")
    assert not (tmp_path / "a" / "depth").exists()
    with pytest.raises(openuni.OpenUniError, match=r"crf = 99\. Allowed: 0 to 51"):
        openuni.export(corpus, "openuni-csv", out=tmp_path / "b", crf=99)
    with pytest.raises(openuni.OpenUniError, match=r'no option "crv"\. Did you mean "crf"'):
        openuni.export(corpus, "openuni-csv", out=tmp_path / "b", crv=9)
    assert not (tmp_path / "b").exists()


def test_clips_of_the_same_colours_are_sharper_in_444(corpus, ids, tmp_path):
    errors = {}
    truth = corpus[ids["all"]].modality("segmentation").to_rgb() * 255
    for pixels in ("yuv444p", "yuv420p"):
        choice = ExportOptions(("segmentation",), limit=1)
        openuni.export(
            corpus, "openuni-csv", out=tmp_path / pixels, export_options=choice, reporter=QUIET, pixels=pixels
        )
        frames = frames_of(tmp_path / pixels / "segmentation" / f"{ids['all']}.mp4")
        errors[pixels] = np.abs(frames - truth).mean()
    assert errors["yuv444p"] < 0.6 * errors["yuv420p"]


def test_rendering_a_frame_at_a_time_changes_nothing(corpus, out, tmp_path, monkeypatch):
    monkeypatch.setattr("openuni.exchange.exporters._rendered.PIXELS_AT_ONCE", 1)
    openuni.export(corpus, "openuni-csv", out=tmp_path / "set", reporter=QUIET)
    assert tree(tmp_path / "set") == tree(out)
