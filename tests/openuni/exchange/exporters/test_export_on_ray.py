"""Exports written by the workers of a Ray cluster are those of threads, whatever becomes of the workers."""

import shutil
from pathlib import Path

import pytest

import openuni
from openuni.exchange.export_batches import BatchItem, read_failures, write_batch, write_failed_batch, written_folder
from openuni.exchange.export_selection import ExportOptions, Selection
from openuni.exchange.exporter import ExportBatch
from openuni.exchange.exporters.univid import UniVid
from openuni.manifests.errors import OpenUniError
from tests.command_line import cli
from tests.openuni.exchange.exporters.rooms import QUIET, tree

DYING = "tests.operators.dying_exporter"


def export(corpus, name, out, **given):
    return openuni.export(corpus, name, out=out, reporter=QUIET, **given)


def test_workers_of_a_cluster_write_the_bytes_of_threads(corpus, ray_address, tmp_path):
    export(corpus, "univid", tmp_path / "threads", prefix="/set")
    out = tmp_path / "cluster"
    command = ("export", corpus.store.url, "--format", "univid", "--out", out, "--set", "prefix=/set", "--workers", 2)
    done = cli(*command, "--address", ray_address)
    assert (done.returncode, "4 clips = 4 written" in done.stdout) == (0, True), done.stderr
    assert tree(out) == tree(tmp_path / "threads")
    assert "4 already present" in cli(*command, "--address", ray_address).stdout


@pytest.mark.slow
def test_batches_of_dead_workers_are_written_again_and_a_deadly_clip_is_a_failure(corpus, ids, ray_address, tmp_path):
    (tmp_path / "marks").mkdir()
    options = {"prefix": "/set", "marks": str(tmp_path / "marks"), "workers": 2, "address": ray_address}
    report = export(corpus, DYING, tmp_path / "set", always=ids["odd"], **options)
    assert [(failure.clip_id, failure.error[:10]) for failure in report.failed] == [(ids["odd"], "WorkerDied")]
    assert (report.written, report.already_present) == (3, 0)
    export(corpus, "univid", tmp_path / "threads", prefix="/set")
    whole, found = tree(tmp_path / "threads"), tree(tmp_path / "set")
    assert {name for name in whole if ids["odd"] not in name} <= found.keys()
    assert not [name for name in found if ids["odd"] in name or ".unfinished" in name]
    again = export(corpus, DYING, tmp_path / "set", always=ids["odd"], **options)
    assert len(again.failed) == 1 and tree(tmp_path / "set") == found


def test_a_node_without_the_folder_is_named(corpus, ray_address, tmp_path, monkeypatch):
    monkeypatch.setattr("openuni.exchange.export_job.RECORD", "other.json")  # the driver's record, unseen elsewhere
    with pytest.raises(OpenUniError, match=r"cannot see .*set\. Mount it there under the same path"):
        export(corpus, "univid", tmp_path / "set", prefix="/set", workers=1, address=ray_address)


def test_a_batch_is_written_once_whoever_writes_it_again(corpus, tmp_path):
    selection = Selection(corpus, UniVid(prefix="/set"), ExportOptions(limit=1), tmp_path)
    item = BatchItem.of(3, ExportBatch(list(selection.clips())))
    folder = written_folder(tmp_path, item)
    write_batch(UniVid(prefix="/set"), selection.contents, item)
    first = tree(folder)
    (folder / "mark").touch()
    write_batch(UniVid(prefix="/set"), selection.contents, item)
    write_failed_batch(selection.contents, item, "too late")
    assert tree(folder) == first | {"mark": b""} and [path.name for path in folder.parent.iterdir()] == ["00000003"]
    shutil.rmtree(folder)
    write_failed_batch(selection.contents, item, "WorkerDied: three times")
    assert [failure.error for failure in read_failures(Path(folder) / "failed.csv")] == ["WorkerDied: three times"]
