"""Maps are coded in threads behind the operators: at the same time, within a bound, each error where it belongs."""

import dataclasses
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import openuni
from openuni.console.progress import Reporter
from openuni.manifests.contracts.modality import Payload
from openuni.manifests.errors import ClipError, OpenUniError
from openuni.manifests.modalities.densepose import DensePose
from openuni.pipeline.long_clips.map_coding import MapCoders, coded_payload, discard
from openuni.pipeline.long_clips.worker import OperatorResult
from openuni.pipeline.operator_phase import OperatorSpec
from openuni.pipeline.phases import ClipItem
from openuni.pipeline.planning.planner import Planner
from openuni.pipeline.scope import RunScope
from openuni.pipeline.worker import ItemOutcome, WorkerLoop
from tests.openuni.pipeline.test_worker import PATIENCE_S, Recorder
from tests.raw_clips import contents, write_clips

PAYLOAD = Payload(b"", "mkv", ())


def test_as_many_maps_are_coded_at_a_time_as_there_are_threads() -> None:
    coders, all_here = MapCoders(3, 10**9), threading.Barrier(3)

    def code() -> Payload:
        all_here.wait(PATIENCE_S)  # broken if fewer come
        return PAYLOAD

    futures = [coders.submit(10, code) for _ in range(3)]
    assert [coded_payload(future) for future in futures] == [PAYLOAD] * 3
    coders.close()


@pytest.mark.parametrize(("nbytes", "at_a_time"), [(30, 3), (40, 2), (60, 1), (1000, 1)])
def test_maps_that_are_coded_at_a_time_are_within_the_bound(nbytes: int, at_a_time: int) -> None:
    coders, lock, counts = MapCoders(4, 100), threading.Lock(), [0, 0]

    def code() -> Payload:
        with lock:
            counts[0] += 1
            counts[1] = max(counts)
        time.sleep(0.02)
        with lock:
            counts[0] -= 1
        return PAYLOAD

    for future in [coders.submit(nbytes, code) for _ in range(12)]:
        future.result()
    coders.close()
    assert counts == [0, at_a_time]


def test_an_error_of_coding_is_raised_where_the_payload_is_needed_and_frees_its_place() -> None:
    coders = MapCoders(1, 10)

    def fail() -> Payload:
        raise ClipError("cannot be coded")

    failed, fine = coders.submit(10, fail), coders.submit(10, lambda: PAYLOAD)
    with pytest.raises(ClipError, match="cannot be coded"):
        coded_payload(failed)
    assert coded_payload(fine) is PAYLOAD
    discard(failed)
    coders.close()


class Patient(Recorder):
    """Lets two items wait."""

    def may_wait(self, waiting: Any) -> bool:
        return len(waiting) <= 2


def test_items_may_wait_to_be_written_as_long_as_the_worker_says() -> None:
    worker = Patient()
    worker.let_write.clear()
    loop = WorkerLoop(worker)
    assert loop.step("a", "b") == loop.step("b", "c") == []
    third = threading.Thread(target=loop.step, args=("c", None))
    third.start()
    third.join(0.3)
    assert third.is_alive() and ("compute", "c") in worker.events
    worker.let_write.set()
    third.join(PATIENCE_S)
    loop.flush()
    loop.finish()
    assert [item for what, item in worker.events if what == "store"] == ["a", "b", "c"]


def test_nothing_is_written_behind_a_write_that_ended_the_run() -> None:
    worker = Patient()
    worker.let_write.clear()
    loop = WorkerLoop(worker)
    loop.step("fatal in store", "b")
    loop.step("b", None)
    worker.let_write.set()
    with pytest.raises(OpenUniError, match="no space left"):
        loop.flush()
    loop.finish()
    assert ("store", "b") not in worker.events and worker.events[-1] == ("finish", "")


SHORT = "tests.operators.window_maps"
RECIPE = {"annotators": {"dis": {"preset": "ultrafast"}, "retinex": {}}}


def test_the_threads_that_code_are_known_to_work_on_the_clip(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    write_clips(raw, 3)
    corpus = openuni.run({}, raw, out=tmp_path / "corpus", reporter=Reporter(quiet=True))
    recipe = openuni.CorpusRecipe.parse(RECIPE)
    spec = Planner(recipe, corpus, RunScope()).operators_work("annotator", ["dis", "retinex"]).spec
    assert isinstance(spec, OperatorSpec)
    marked: list[tuple[str, str]] = []

    class Mark:
        def __init__(self, *keys: str) -> None:
            marked.extend((threading.current_thread().name.split("_")[0], key) for key in keys)

        def __enter__(self) -> None: ...
        def __exit__(self, *given: object) -> None: ...

    loop = WorkerLoop(spec.start("cpu"), Mark)
    items = [ClipItem(clip.clip, ("dis", "retinex")) for clip in corpus]
    outcomes: list[ItemOutcome] = []
    for item, following in zip(items, [*items[1:], None], strict=True):
        outcomes += loop.step(item, following)
    outcomes += loop.flush()
    loop.finish()
    assert [(one.key, one.status) for one in outcomes] == [(item.key, "ok") for item in items]
    assert sorted(key for thread, key in marked if thread == "code") == sorted(3 * [item.key for item in items])


@pytest.mark.parametrize(("clips", "nbytes", "may"), [(1, 9, True), (2, 498, True), (2, 504, False), (3, 3, False)])
def test_clips_whose_maps_wait_are_few_and_small(clips: int, nbytes: int, may: bool, tmp_path: Path) -> None:
    corpus = openuni.run({}, write_clips(tmp_path, 1), out=tmp_path / "corpus", reporter=Reporter(quiet=True))
    spec = Planner(openuni.CorpusRecipe.parse(RECIPE), corpus, RunScope()).operators_work("annotator", ["dis"]).spec
    assert isinstance(spec, OperatorSpec)
    limits = dataclasses.replace(spec.limits, max_decoded_bytes=4 * 1000)
    worker = dataclasses.replace(spec, limits=limits).start("cpu")
    maps = DensePose(np.zeros((1, 1, nbytes // 3, 3), np.uint8))
    assert maps.array.nbytes == nbytes
    result = {"dis": OperatorResult((maps, 0.5), None, None), "failed": OperatorResult(None, "no", None, "failed")}
    assert worker.may_wait([(object(), result)] * clips) is may
    worker.finish()


def test_a_map_that_cannot_be_coded_fails_its_annotator_alone(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    write_clips(raw, 3)
    tables = {"annotators": RECIPE["annotators"] | {SHORT: {"forgets": 1}}}
    corpus = openuni.run(tables, raw, out=tmp_path / "corpus", reporter=Reporter(quiet=True))
    plain = openuni.run(RECIPE, raw, out=tmp_path / "plain", reporter=Reporter(quiet=True))
    found, expected = contents(corpus), contents(plain)
    assert {group: found[group] for group in expected if "annotations" in group} == {
        group: rows for group, rows in expected.items() if "annotations" in group
    }
    for clip in corpus:
        row = clip.row(SHORT)
        assert row["status"] == "failed" and "depth has 5 frames, the clip has 6" in row["error"]
