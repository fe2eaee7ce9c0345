"""Trackers: what the real packages get, offline, and that one that fails does not end the training."""

import importlib.util
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.errors import MissingRequirement, OpenUniError
from openuni.training.loop.trainer import train
from openuni.training.recipe import TrainingRecipe
from openuni.training.tracker import parse_tracker
from tests.command_line import cli
from tests.train.corpora import random_clips, write_corpus
from tests.train.loop.rank_jobs import trainings
from tests.train.loop.rank_processes import run_ranks
from tests.train.loop.test_trainer import assert_same, recipe, state
from tests.train.tracker_that_fails import Failing

FAILING = "tests.train.tracker_that_fails"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write_corpus(tmp_path_factory.mktemp("corpus"), random_clips(6))


def tracked(**tracking: Any) -> TrainingRecipe:
    return recipe(optimizer={"steps": 2}, tracking=tracking, samples={"every_steps": 2, "clips": 1, "solver_steps": 1})


def records(data: bytes) -> Iterator[bytes]:
    """Records of a file of wandb: after 7 bytes, LevelDB's log format (blocks of 32 KiB; CRC, length, type, bytes)."""
    at, parts = 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield parts
            parts = b""


def offline_rows(folder: Path) -> list[dict[str, str]]:
    """Rows of all files that wandb wrote, as JSON texts by key."""
    from wandb.proto.wandb_internal_pb2 import Record

    rows = []
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        for data in records(path.read_bytes()):
            record = Record.FromString(data)
            if record.HasField("history"):
                items = record.history.item
                rows.append({item.key or "/".join(item.nested_key): item.value_json for item in items})
    return rows


def written_rows(folder: Path, step: int) -> list[dict[str, str]]:
    """`offline_rows`, once a process of wandb has written the samples of the step."""
    deadline = time.monotonic() + 20.0
    while True:
        rows = offline_rows(folder)
        made = [row for row in rows if row.get("step") == str(step) and any(key.startswith("samples/") for key in row)]
        if len(made) == 4 or time.monotonic() > deadline:
            return rows
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed: pip install wandb")
def test_wandb_gets_every_row_and_a_resumed_run_has_the_same_id(corpus: Corpus, tmp_path: Path):
    tables = tracked(name="wandb", mode="offline").to_dict()
    run = train(TrainingRecipe.from_dict(tables, quiet=True), corpus, tmp_path / "run")
    rows = written_rows(tmp_path / "run", 2)
    losses = {int(row["step"]): float(row["loss"]) for row in rows if "loss" in row}
    assert losses == {row["step"]: row["loss"] for row in run.log if "loss" in row}
    assert any(key.startswith("task_loss/") for row in rows for key in row)
    assert any(key.startswith("samples/rgb->depth/") for row in rows for key in row)
    tables["optimizer"]["steps"] = 3
    train(TrainingRecipe.from_dict(tables, quiet=True), corpus, tmp_path / "run")
    ids = {path.stem.removeprefix("run-") for path in (tmp_path / "run").glob("wandb/offline-run-*/run-*.wandb")}
    assert ids == {(tmp_path / "run/wandb/openuni-run-id").read_text()}
    assert max(int(row["step"]) for row in written_rows(tmp_path / "run", 3) if "step" in row) == 3


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("gradio_client") is None or importlib.util.find_spec("trackio") is None,
    reason="trackio is not installed: it needs pillow<13, and constraints.txt has 13",
)
def test_trackio_gets_every_row(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    run = train(tracked(name="trackio"), corpus, tmp_path / "run")
    from trackio.sqlite_storage import SQLiteStorage

    rows = SQLiteStorage.get_logs("openuni", "run")
    losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
    assert losses == {row["step"]: row["loss"] for row in run.log if "loss" in row}


@pytest.mark.parametrize(
    ("at", "calls"),
    [
        ("start", ["start"]),
        ("log", ["start", "log", "close"]),
        ("video", ["start", "log", "log", "log", "log", "video", "close"]),
        ("close", ["start", "log", "log", "log", "log", "video", "video", "video", "video", "close"]),
    ],
)
def test_a_tracker_that_fails_is_a_warning(
    at: str, calls: list[str], corpus: Corpus, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    Failing.calls.clear()
    plain = train(tracked(), corpus, tmp_path / "plain")
    run = train(tracked(name=FAILING, at=at), corpus, tmp_path / "run")
    assert Failing.calls == calls
    assert caplog.text.count("ConnectionError: the service does not answer. The training continues without it") == 1
    assert_same(state(run.folder), state(plain.folder))


@pytest.mark.slow
def test_only_the_first_rank_has_one(corpus: Corpus, tmp_path: Path):
    """Each rank would write a warning of its own; ranks besides the first write none at all."""
    table = tracked(name=FAILING, at="start").to_dict()
    job = {"recipe": table, "corpus": corpus.store.url, "out": str(tmp_path / "run")}
    assert run_ranks(2, tmp_path / "ranks", tracked_calls, job) == [["start"], []]


def tracked_calls(job: dict[str, Any]) -> list[str]:
    assert trainings([job]) == [""]
    return Failing.calls


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"name": "wandbb"}, 'tracker "wandbb" is not known'),
        ({"project": "x"}, r"\[tracking\] needs a name"),
        ({"name": "wandb", "mode": "sometimes"}, "mode"),
        ({"name": "wandb", "projct": "x"}, "projct"),
    ],
)
def test_trackers_that_do_not_exist_are_refused(table: dict[str, Any], message: str):
    with pytest.raises(OpenUniError, match=message):
        parse_tracker(table)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_missing_package_is_named_before_anything_is_trained(
    name: str, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(f"openuni.training.trackers.{name}.find_spec", lambda package: None)
    with pytest.raises(MissingRequirement, match=rf"pip install 'openuni\[{name}\]'"):
        train(tracked(name=name), corpus, tmp_path / "run")
    done = cli("train", "unityvideo_debug", "--corpus", corpus.store.url, "-o", tmp_path / "run", "--tracker", name)
    assert done.returncode == 2 and f"openuni[{name}]" in done.stderr
    assert not (tmp_path / "run" / "log.jsonl").exists()
