"""DiffSynth-Studio's layout, read as its UnifiedDataset does: pandas or lines of JSON, paths below a base."""

import json
from pathlib import Path
from typing import Any

import pandas
import pytest

import openuni
from openuni.manifests.contracts.decoded_clip import decode
from openuni.manifests.video.probe import make_clip, probe
from tests.openuni.exchange.exporters.rooms import CAPTION, MODALITIES, QUIET


@pytest.fixture(scope="module")
def out(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("diffsynth") / "set"
    openuni.export(corpus, "diffsynth", out=folder, reporter=QUIET)
    return folder


def metadata(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    table = pandas.read_csv(path)
    return [table.iloc[number].to_dict() for number in range(len(table))]


def load(base: Path, row: dict[str, Any], file_keys: list[str]) -> dict[str, Any]:
    """A row with its files opened; a key that the row does not have is passed over, one without a path is an error."""
    found = dict(row)
    for key in (key for key in file_keys if key in row):
        if not isinstance(row[key], str):
            raise ValueError(f"unsupported data: {row[key]}")
        path = str(base / row[key])
        found[key] = decode(make_clip(path, probe(path))).frames
    return found


def test_the_csv_has_a_column_per_modality_and_nothing_where_there_is_a_gap(out, ids):
    rows = metadata(out / "metadata.csv")
    assert list(rows[0]) == ["video", "prompt", *MODALITIES]
    assert [Path(row["video"]).stem for row in rows] == [ids[name] for name in ("all", "depth", "mkv", "odd")]
    whole = load(out, rows[0], ["video", *MODALITIES])
    assert {whole[name].shape for name in ("video", *MODALITIES)} == {(9, 48, 64, 3)}
    assert whole["prompt"] == CAPTION
    with pytest.raises(ValueError, match="nan"):  # why there are the other lists
        load(out, rows[1], ["video", "flow"])


def test_the_lines_leave_out_what_a_clip_lacks(out):
    rows = metadata(out / "metadata.jsonl")
    assert [sorted(row) for row in rows[1:]] == [
        ["depth", "video"],
        ["alpha", "prompt", "segmentation", "video"],
        ["flow", "normal", "prompt", "video"],
    ]
    for row in rows:
        assert load(out, row, ["video", "flow"])["video"].ndim == 4


@pytest.mark.parametrize("key", ["control_video", "vace_video"])
def test_control_videos_have_the_names_of_the_pipelines_and_no_gaps(out, ids, key):
    rows = metadata(out / "metadata-normal.csv")
    assert [Path(row["video"]).stem for row in rows] == [ids["all"], ids["odd"]]
    assert list(rows[0]) == ["video", "prompt", "control_video", "vace_video"]
    for row, size in zip(rows, [(9, 48, 64, 3), (5, 32, 46, 3)], strict=True):
        loaded = load(out, row, ["video", key])
        assert loaded["video"].shape == loaded[key].shape == size
        assert row[key] == row["video"].replace("video/", "normal/")
