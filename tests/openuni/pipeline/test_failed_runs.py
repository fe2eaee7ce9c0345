"""A run that fails leaves nothing locked in its process, whoever keeps its exception, as notebooks do."""

import time
from pathlib import Path
from typing import Any

import pytest

import openuni
from openuni.console.progress import Reporter
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.writer import StorageFailed
from openuni.manifests.storage.store import Store
from openuni.pipeline.phases import CorpusWorker
from tests.raw_clips import contents_by_name, write_clips

RECIPE = {"work": {"short_side_px": 24}, "filters": {"luminance": {}, "motion": {}}, "annotators": {"dis": {}}}


def run(folder: Path, out: str) -> Corpus:
    return openuni.run(RECIPE, folder / "raw", out=folder / out, reporter=Reporter(quiet=True))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_clips(tmp_path / "raw", 2)
    return tmp_path


@pytest.mark.parametrize("group", ["clips", "filters/luminance", "annotations/dis"])
def test_the_next_run_in_this_process_goes_on_at_once(
    folder: Path, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = Store.put

    def failing(store: Store, name: str, data: bytes) -> None:
        if name.startswith(f"{group}/"):
            raise OSError("of the test")
        put(store, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "put", failing)
        with pytest.raises(StorageFailed) as kept:
            run(folder, "corpus")
    started = time.monotonic()
    corpus = run(folder, "corpus")
    assert time.monotonic() - started < 20  # it would wait 30 s for workers
    assert contents_by_name(corpus) == contents_by_name(run(folder, "undisturbed"))
    assert "of the test" in str(kept.value)  # its traceback has held the workers until now
    assert not list(folder.glob("corpus/**/*.journal"))


def test_a_worker_that_could_not_start_holds_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = CorpusWorker.__init__

    def failing(worker: CorpusWorker, *arguments: Any) -> None:
        start(worker, *arguments)
        raise OSError("of the test")

    with monkeypatch.context() as patch:
        patch.setattr(CorpusWorker, "__init__", failing)
        with pytest.raises(OSError, match="of the test") as kept:
            run(folder, "corpus")
    started = time.monotonic()
    assert len(run(folder, "corpus")) == 2
    assert time.monotonic() - started < 20 and kept.value.__traceback__ is not None
