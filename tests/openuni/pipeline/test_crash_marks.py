"""A clip that kills the process of a run without workers: what the next run makes of it."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

import openuni
from openuni.console.progress import Reporter
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.writer import StorageFailed
from openuni.pipeline.runners import crash_marks
from openuni.pipeline.runners.crash_marks import CrashMarks
from openuni.pipeline.runners.resources import MAX_ATTEMPTS, Resources
from openuni.pipeline.scope import RunScope
from tests.coded_clips import encode
from tests.killed import _context

NAME = "tests.operators.dying"
CRASHES = ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "raw").mkdir()
    for name in ("a", "b_deadly", "c", "d"):
        encode(tmp_path / "raw" / f"{name}.mp4", times=range(5))
    return tmp_path


def build(folder: str, how: str, scope: dict[str, Any]) -> None:
    """A run without workers, in whatever process this is called."""
    recipe = {"work": {"short_side_px": 24}, "annotators": {NAME: {"how": how}}}
    reporter, resources = Reporter(quiet=True), Resources(workers=0)
    openuni.run(
        recipe, f"{folder}/raw", out=f"{folder}/c", reporter=reporter, resources=resources, scope=RunScope(**scope)
    )


def run(folder: Path, how: str = "SIGSEGV", **scope: Any) -> int:
    """A run in a process of its own; its exit code, negative for a signal."""
    process = _context().Process(target=build, args=(str(folder), how, scope))
    process.start()
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode


def rows(folder: Path) -> dict[str, dict[str, Any]]:
    """The rows of the annotator by name of the source."""
    corpus = Corpus.open(folder / "c")
    sources = {row["clip_id"]: Path(row["source"]).stem for row in corpus.table("clips").to_pylist()}
    found = corpus.table(f"annotations/{NAME}").to_pylist()
    assert len({row["clip_id"] for row in found}) == len(found), "a clip has two rows"
    return {sources[row["clip_id"]]: row[NAME] for row in found}


def times_seen(folder: Path) -> dict[str, int]:
    return {path.stem: len(path.read_text()) for path in (folder / "raw").glob("*.seen")}


def marks(folder: Path) -> list[str]:
    return [path.name for path in (folder / "c").glob(".*") if not path.name.endswith(".lock")]


@pytest.mark.parametrize("how", [CRASHES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in CRASHES[1:])])
def test_a_clip_that_crashes_the_process_is_a_failed_row_of_the_next_run(folder: Path, how: str) -> None:
    assert run(folder, how) == -signal.Signals[how]
    assert run(folder, how) == 0
    found = rows(folder)
    assert {name: row["status"] for name, row in found.items()} == {
        "a": "ok",
        "b_deadly": "failed",
        "c": "ok",
        "d": "ok",
    }
    assert found["b_deadly"]["error"].startswith(f"WorkerDied: the process crashed ({how}")
    seen = times_seen(folder)
    assert seen.pop("a") in (1, 2)  # its row was being written while the process crashed
    assert seen == {"b_deadly": 1, "c": 1, "d": 1}
    assert marks(folder) == []
    logs = (folder / "c" / "runs").glob("*.failures.jsonl")
    (failure,) = (json.loads(line) for path in logs for line in path.read_text().splitlines())
    assert "Fatal Python error" in failure["traceback"] and "dying.py" in failure["traceback"]
    assert "worker.py" not in failure["traceback"]


@pytest.mark.slow
def test_retry_failed_tries_it_again(folder: Path) -> None:
    assert [run(folder), run(folder)] == [-signal.SIGSEGV, 0]
    (folder / "raw" / "b_deadly.mp4.spare").touch()
    assert run(folder, retry_failed=True) == 0
    assert rows(folder)["b_deadly"]["status"] == "ok"


def test_a_run_that_is_killed_twice_loses_no_clip(folder: Path) -> None:
    assert [run(folder, "SIGKILL") for _ in range(2)] == 2 * [-signal.SIGKILL]
    (folder / "raw" / "b_deadly.mp4.spare").touch()
    assert run(folder, "SIGKILL") == 0
    assert {row["status"] for row in rows(folder).values()} == {"ok"} and marks(folder) == []


@pytest.mark.slow
def test_a_clip_with_which_the_process_dies_three_times_fails(folder: Path) -> None:
    assert [run(folder, "SIGKILL") for _ in range(MAX_ATTEMPTS)] == MAX_ATTEMPTS * [-signal.SIGKILL]
    assert run(folder, "SIGKILL") == 0
    found = rows(folder)
    assert {name for name, row in found.items() if row["status"] == "ok"} == {"a", "c", "d"}
    assert found["b_deadly"]["error"].startswith(f"WorkerDied: the process died {MAX_ATTEMPTS} times")
    assert times_seen(folder)["b_deadly"] == MAX_ATTEMPTS
    assert all(times_seen(folder)[name] <= 2 for name in "acd"), "others are computed at most once more"
    assert marks(folder) == []


def died(folder: Path, phase: str, crash: str, key: str = "clip") -> None:
    """Leave the marks of a process that died while a thread worked on an item."""
    left = CrashMarks(folder, phase)
    assert left.path is not None and left.crash_path is not None
    left.in_flight = {"7f00": key}
    left._write()
    left.crash_path.write_text(crash)


SEGFAULT = 'Fatal Python error: Segmentation fault\n\n{thread} (most recent call first):\n  File "x.py", line 1 in f\n'


def test_a_crash_in_another_thread_and_no_crash_count_as_an_attempt(tmp_path: Path) -> None:
    for crash in (
        "",
        SEGFAULT.format(thread="Current thread 0x00006f00"),
        SEGFAULT.format(thread="Thread 0x00007f00"),
        "\0",
    ):
        died(tmp_path, "phase", crash)
        found = CrashMarks(tmp_path, "phase")
        assert (found.attempts, found.deaths) == ({"clip": 1}, {}), crash
        found.finished("clip")
        assert not any(tmp_path.iterdir())
    died(tmp_path, "phase", SEGFAULT.format(thread="Current thread 0x0000000000007f00"))
    death = CrashMarks(tmp_path, "phase").take_death("clip")
    assert death is not None and "SIGSEGV, segmentation fault" in death.error and "x.py" in death.traceback
    assert CrashMarks(tmp_path, "phase").take_death("clip") is None


def test_a_death_counts_once_and_for_its_phase_and_machine_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    died(tmp_path, "phase", "")
    with CrashMarks(tmp_path, "other phase").watching():
        pass
    monkeypatch.setattr(crash_marks.platform, "node", lambda: "another machine")
    assert CrashMarks(tmp_path, "phase").attempts == {}
    monkeypatch.undo()
    for _ in range(3):  # of starts that die before they work on anything
        assert CrashMarks(tmp_path, "phase").attempts == {"clip": 1}


def test_an_interrupted_run_leaves_no_marks(tmp_path: Path) -> None:
    left = CrashMarks(tmp_path, "phase")
    with pytest.raises(KeyboardInterrupt), left.watching(), left.working_on("clip"):
        assert len(list(tmp_path.iterdir())) == 2
        raise KeyboardInterrupt
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"phase": {}}', b'{"phase": 1}', b"\xff", b"\0" * 2**21])
def test_damaged_marks_are_no_marks(tmp_path: Path, content: bytes) -> None:
    path = CrashMarks(tmp_path, "phase").path
    assert path is not None
    path.write_bytes(content)
    found = CrashMarks(tmp_path, "phase")
    assert not found.attempts and not found.deaths
    with found.working_on("clip"):
        assert "clip" in path.read_text()
    assert not path.exists()


def test_marks_that_cannot_be_written_end_the_run_and_fail_no_clip(folder: Path) -> None:
    Corpus.create(str(folder / "c"))
    marks = CrashMarks(folder / "c", "any")
    assert marks.path is not None
    in_the_way = marks.path.with_name(f"{marks.path.name}.tmp")
    in_the_way.mkdir()
    with pytest.raises(StorageFailed, match=r"cannot write to .*Everything finished is kept"):
        build(str(folder), "none", {})
    in_the_way.rmdir()
    build(str(folder), "none", {})
    assert {row["status"] for row in Corpus.open(folder / "c").table("clips").to_pylist()} == {"ok"}
