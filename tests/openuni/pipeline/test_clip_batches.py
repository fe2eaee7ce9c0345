"""Operators that process several clips together: the same rows as one at a time, whatever fails."""

import json
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import openuni
from openuni.console.progress import Reporter
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.errors import OpenUniError
from openuni.pipeline.runners.crash_marks import CrashMarks
from openuni.pipeline.runners.resources import Resources
from tests.coded_clips import encode
from tests.killed import _context
from tests.operators.logged import Logged

NAME = "tests.operators.batching"
LOGGED = "tests.operators.logged"
NAMES = ("a", "b", "broken-c", "d", "e", "no-excerpt", "f", "g")


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    for number, name in enumerate(NAMES):
        encode(folder / f"{name}.mp4", times=range(3 + number))
    return folder


def run(
    raw: Path, out: Path, workers: int | Resources = 0, others: Mapping[str, Any] = {}, **options: Any
) -> dict[str, Any]:
    """The rows of the annotator by name of the source, without durations and version."""
    recipe = {"work": {"short_side_px": 24}, "annotators": {**others, NAME: options}}
    resources = workers if isinstance(workers, Resources) else Resources(workers=workers)
    openuni.run(recipe, str(raw), out=str(out), reporter=Reporter(quiet=True), resources=resources)
    return rows(out)


def rows(out: Path, name: str = NAME) -> dict[str, Any]:
    corpus = Corpus.open(out)
    sources = {row["clip_id"]: Path(row["source"]).stem for row in corpus.table("clips").to_pylist()}
    found = corpus.table(f"annotations/{name}").to_pylist()
    assert len({row["clip_id"] for row in found}) == len(found), "a clip has two rows"
    return {
        sources[row["clip_id"]]: {key: value for key, value in row[name].items() if key not in ("ms", "version")}
        for row in found
    }


def batches(log: Path) -> list[list[str]]:
    return [line.split() for line in log.read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The rows of clips that are processed one at a time."""
    return run(raw, tmp_path_factory.mktemp("alone") / "c", clips=1)


def test_one_at_a_time(alone: dict[str, Any]) -> None:
    assert {name: row["status"] for name, row in alone.items()} == {
        **dict.fromkeys("abdefg", "ok"),
        "broken-c": "failed",
        "no-excerpt": "unavailable",
    }
    assert alone["broken-c"]["error"] == "ClipError: broken-c cannot be read"


@pytest.mark.parametrize("clips", [2, 3, 100])
def test_several_together_give_the_same_rows(raw: Path, tmp_path: Path, alone: dict[str, Any], clips: int) -> None:
    log = tmp_path / "log"
    assert run(raw, tmp_path / "c", clips=clips, log=str(log)) == alone
    given = batches(log)
    assert max(map(len, given)) == min(clips, 7), given
    assert ["broken-c"] in given, "the clip that failed was not tried alone"


def test_out_of_memory_makes_this_and_later_batches_smaller(raw: Path, tmp_path: Path, alone: dict[str, Any]) -> None:
    log = tmp_path / "log"
    assert run(raw, tmp_path / "c", clips=4, most=2, log=str(log)) == alone
    assert [len(batch) for batch in batches(log)].count(4) == 1


def test_others_of_the_same_clip_keep_their_own_rows(raw: Path, tmp_path: Path, alone: dict[str, Any]) -> None:
    """Their maps are stored at once: they do not wait in memory."""
    assert run(raw, tmp_path / "c", others={LOGGED: {}}, clips=3) == alone
    assert {row["status"] for row in rows(tmp_path / "c", LOGGED).values()} == {"ok"}
    (ledger,) = (tmp_path / "c" / "runs").glob("*.json")
    (phase,) = [phase for phase in json.loads(ledger.read_text())["phases"] if "batching" in phase["phase"]]
    assert (phase["ok"], phase["failed"]) == (7, 1)


@pytest.mark.slow
def test_workers_do_not_change_the_rows(
    raw: Path, tmp_path: Path, alone: dict[str, Any], ray_workers: Callable[[int], Resources]
) -> None:
    log = tmp_path / "log"
    assert run(raw, tmp_path / "c", ray_workers(2), clips=3, log=str(log)) == alone
    assert max(map(len, batches(log))) > 1


@pytest.mark.slow
def test_a_worker_that_dies_in_a_batch_costs_the_deadly_clip_alone(
    raw: Path, tmp_path: Path, alone: dict[str, Any], ray_workers: Callable[[int], Resources]
) -> None:
    log = tmp_path / "log"
    found = run(raw, tmp_path / "c", ray_workers(1), others={LOGGED: {}}, clips=3, deadly="e", log=str(log))
    assert found.pop("e")["error"].startswith("WorkerDied: the worker process died 3 times")
    assert found == {name: row for name, row in alone.items() if name != "e"}
    given = batches(log)
    assert sum("e" in batch for batch in given) == 3 and given.count(["e"]) == 2  # then alone
    assert {row["status"] for row in rows(tmp_path / "c", LOGGED).values()} == {"ok"}


def _in_this_process(raw: str, out: str, log: str) -> None:
    run(Path(raw), Path(out), clips=3, deadly="e", log=log)


def test_a_run_in_one_process_that_dies_in_a_batch_tries_each_clip_alone(
    raw: Path, tmp_path: Path, alone: dict[str, Any]
) -> None:
    codes = []
    for _ in range(4):
        process = _context().Process(target=_in_this_process, args=(str(raw), str(tmp_path / "c"), f"{tmp_path}/log"))
        process.start()
        process.join(60)
        codes.append(process.exitcode)
    assert codes == [-signal.SIGKILL] * 3 + [0]
    found = rows(tmp_path / "c")
    assert found.pop("e")["error"].startswith("WorkerDied: the process died 3 times")
    assert found == {name: row for name, row in alone.items() if name != "e"}
    given = [batch for batch in batches(tmp_path / "log") if "e" in batch]
    assert given[1:] == [["e"], ["e"]]


SEGFAULT = 'Fatal Python error: Segmentation fault\n\nCurrent thread 0x{thread} (most recent call first):\n  File "x"\n'


def test_a_crash_in_a_batch_is_one_attempt_of_each_of_its_clips(tmp_path: Path) -> None:
    """Nobody knows which of them it was."""
    marks = CrashMarks(tmp_path, "phase")
    with marks.working_on("a", "b"):
        assert marks.crash_path is not None and marks.path is not None
        (thread,) = {name.partition("/")[0] for name in marks.in_flight}
        left = marks.path.read_bytes()
    assert not marks.path.exists()
    marks.path.write_bytes(left)
    marks.crash_path.write_text(SEGFAULT.format(thread=thread))
    found = CrashMarks(tmp_path, "phase")
    assert (found.attempts, found.deaths) == ({"a": 1, "b": 1}, {})


class TooLarge(Logged):
    """Maps of several clips."""

    def clips_per_batch(self) -> int:
        return 2


def test_only_operators_without_maps_take_several_clips() -> None:
    from openuni.pipeline.clip_batches import ClipBatches
    from openuni.pipeline.planning.gpu_memory import VramMeter

    with pytest.raises(OpenUniError, match=r"gives maps \(segmentation\).*Only operators without maps"):
        ClipBatches({"x": TooLarge()}, {}, VramMeter("cpu"))


def test_of_a_clip_that_waits_only_the_excerpt_is_kept(tmp_path: Path) -> None:
    from openuni.manifests.contracts.decoded_clip import DecodedClip
    from tests.operators.batching import Batching

    frames = np.zeros((50, 24, 32, 3), np.uint8)
    kept = Batching().excerpt(None, DecodedClip.from_frames(frames))
    assert kept.first.base is None and kept.first.nbytes == 24 * 32 * 3
