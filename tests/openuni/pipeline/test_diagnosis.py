"""What a failure leaves behind: the traceback in the run's files, in `explain`, and with --raise-errors; log lines."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import openuni
from openuni.console.logs import handler_at, openuni_logger
from openuni.console.progress import Phase, Reporter, duration_text
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.errors import OpenUniError
from openuni.pipeline.failures import MAX_TRACEBACK_CHARS, ItemFailed, trimmed_traceback
from openuni.pipeline.runners import ray_session
from openuni.pipeline.runners.ray_session import ControlStoreWatch, RaySession
from openuni.pipeline.runners.resources import Resources
from openuni.pipeline.scope import RunScope
from openuni.report.explain import explain
from tests.command_line import cli
from tests.raw_clips import write_clips

BROKEN = "tests.operators.broken"
RECIPE = {"filters": {"luminance": {}, BROKEN: {}}}


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    write_clips(folder, 2)
    (folder / "prose.mp4").write_text("no video")
    return folder


@pytest.fixture(params=["in-process", "Ray"])
def resources(request):
    return Resources() if request.param == "in-process" else request.getfixturevalue("ray_workers")(2)


def run(raw: Path, out: Path, resources: Resources | None = None, **scope: bool) -> Corpus:
    how = {"reporter": Reporter(quiet=True), "resources": resources, "scope": RunScope(**scope)}
    return openuni.run(RECIPE, raw, out=out, **how)


def run_files(corpus: Corpus, suffix: str) -> list[str]:
    return [path.read_text() for path in sorted(Path(corpus.store.root, "runs").glob(f"*{suffix}"))]


def test_a_failed_row_has_its_traceback_in_the_runs_files_and_in_explain(raw, tmp_path, resources):
    corpus = run(raw, tmp_path / "corpus", resources)
    (lines,) = run_files(corpus, ".failures.jsonl")
    records = [json.loads(line) for line in lines.splitlines()]
    assert sorted(record["operator"] for record in records) == ["ingest", BROKEN, BROKEN]
    broken = next(record for record in records if record["operator"] == BROKEN)
    assert broken["error"] == "KeyError: 'bbox'" == corpus[0].row(BROKEN)["error"]
    assert 'return table["bbox"]' in broken["traceback"] and "in look_up" in broken["traceback"]
    for record in records:  # of `compute` and of `prepare`, which runs in another thread
        assert "pipeline/worker.py" not in record["traceback"] and "concurrent" not in record["traceback"]
    (log,) = run_files(corpus, ".log")
    assert broken["traceback"].splitlines()[-2] in log and "phase ingest started: 3 items" in log
    shown = cli("explain", corpus.store.url, corpus[0].clip_id)
    assert shown.returncode == 0 and f"traceback of {BROKEN}: KeyError: 'bbox'" in shown.stdout
    assert "in look_up" in shown.stdout
    assert "traceback of ingest: NotAVideo" in cli("explain", corpus.store.url, "prose.mp4").stdout


def test_explain_leaves_out_failures_that_a_later_run_resolved(raw, tmp_path):
    corpus = run(raw, tmp_path / "corpus")
    assert f"traceback of {BROKEN}" in explain(corpus, corpus[0].clip_id)
    mended = {"filters": {"luminance": {}, BROKEN: {"limit": 0.0}}}
    corpus = openuni.run(mended, raw, out=tmp_path / "corpus", reporter=Reporter(quiet=True))
    assert f"filter {BROKEN}: ok" in explain(corpus, corpus[0].clip_id)
    assert "traceback" not in explain(corpus, corpus[0].clip_id)
    assert "traceback of ingest: NotAVideo" in explain(corpus, "prose.mp4")


def test_a_run_without_failures_leaves_a_log_and_no_failures(raw, tmp_path):
    corpus = openuni.run(
        {"filters": {"luminance": {}}}, raw / "clip-000.mp4", out=tmp_path, reporter=Reporter(quiet=True)
    )
    assert run_files(corpus, ".failures.jsonl") == [] and len(run_files(corpus, ".log")) == 1
    assert len(list(corpus.runs())) == 1


def test_raise_errors_stops_at_the_first_failure_and_keeps_what_is_finished(raw, tmp_path, resources):
    with pytest.raises(ItemFailed, match=r"prose\.mp4 failed: NotAVideo") as failed:
        run(raw, tmp_path / "corpus", resources, raise_errors=True)
    assert "Traceback" in str(failed.value)
    assert resources.workers or type(failed.value.__cause__).__name__ == "NotAVideo"
    again = run(raw, tmp_path / "corpus")
    assert again.summary().clips == 3


def test_raise_errors_on_the_command_line_is_exit_code_1_with_the_traceback(raw, tmp_path):
    recipe = tmp_path / "corpus.toml"
    recipe.write_text(f'[filters."{BROKEN}"]\n')
    done = cli("run", recipe, raw / "clip-000.mp4", "--out", tmp_path / "corpus", "--workers", 0, "--raise-errors")
    assert done.returncode == 1 and f"failed in {BROKEN}: KeyError: 'bbox'" in done.stderr
    assert "in look_up" in done.stderr and "internal error" not in done.stderr


def test_v_shows_log_lines_and_without_it_there_are_none(raw, tmp_path):
    recipe = tmp_path / "corpus.toml"
    recipe.write_text("[filters.luminance]\n")
    arguments = ("run", recipe, raw / "clip-000.mp4", "--workers", 0, "--out")
    quiet, loud = cli(*arguments, tmp_path / "a"), cli("-v", *arguments, tmp_path / "b")
    assert "phase ingest started" in loud.stderr and "INFO" in loud.stderr
    assert "phase ingest" not in quiet.stderr and "INFO" not in quiet.stderr


def test_the_cause_of_an_error_is_shown_with_v_alone(tmp_path):
    recipe = tmp_path / "corpus.toml"
    recipe.write_text("[filters\n")
    plain, loud = cli("doctor", recipe), cli("-v", "doctor", recipe)
    assert plain.returncode == loud.returncode == 2
    assert "Traceback" not in plain.stderr and "TOMLDecodeError" in loud.stderr


def test_lines_of_workers_are_in_the_runs_log(raw, tmp_path, ray_workers):
    corpus = openuni.run(
        {"filters": {"tests.operators.talking": {}}},
        raw / "clip-000.mp4",
        out=tmp_path,
        reporter=Reporter(quiet=True),
        resources=ray_workers(1),
    )
    (log,) = run_files(corpus, ".log")
    (line,) = [line for line in log.splitlines() if "measured 6 frames" in line]
    assert "worker-" in line and "INFO" in line and "openuni.talking" in line


def test_an_application_sees_what_it_saw_before():
    """The run's log lowers the level; handlers of the application get no more records for it."""
    seen: list[str] = []
    root = logging.getLogger()
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())  # type: ignore[method-assign]
    root.addHandler(handler)
    logger, before = openuni_logger(), (openuni_logger().level, openuni_logger().propagate)
    logger.setLevel(logging.NOTSET)
    logger.propagate = True
    collected: list[str] = []
    inner = logging.Handler()
    inner.emit = lambda record: collected.append(record.getMessage())  # type: ignore[method-assign]
    try:
        with handler_at(inner, logging.INFO):
            logger.info("quiet")
            logger.warning("loud")
    finally:
        root.removeHandler(handler)
        logger.level, logger.propagate = before
    assert collected == ["quiet", "loud"] and seen == ["loud"]


def test_long_tracebacks_are_cut_and_causes_are_shown():
    def deep(depth: int) -> None:
        if not depth:
            raise ValueError("x" * 3 * MAX_TRACEBACK_CHARS)
        deep(depth - 1)

    try:
        try:
            deep(3)
        except ValueError as error:
            raise RuntimeError("outer") from error
    except RuntimeError as error:
        text = trimmed_traceback(error)
    assert len(text) < MAX_TRACEBACK_CHARS + 20 and text.endswith("RuntimeError: outer\n") and "in deep" in text


def test_progress_tells_rate_and_time_left():
    phase = Phase("motion", 10)
    assert phase.text() == "0/10 done, 0 failed, 0.0/s"
    phase.ok, phase.seconds = 2, 40.0
    assert phase.text() == "2/10 done, 0 failed, 20 s per item, ETA 3 min"
    phase.ok, phase.seconds = 10, 5.0
    assert phase.text() == "10/10 done, 0 failed, 2.0/s"
    assert [duration_text(seconds) for seconds in (40.2, 600, 12_000)] == ["40 s", "10 min", "3 h 20 min"]


def test_a_ray_that_does_not_start_is_retried_and_told(monkeypatch):
    tries = []

    def refuse(self: RaySession, ray: object) -> None:
        tries.append(1)
        raise TimeoutError("The current node timed out during startup.\nmore")

    monkeypatch.setattr(RaySession, "_init", refuse)
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "30")
    with pytest.raises(OpenUniError, match=r"did not start in 3 attempts: TimeoutError: .*startup\..*--workers 0"):
        _ = RaySession(Resources(2)).ray
    assert len(tries) == ray_session.MAX_STARTS


def test_a_cluster_that_does_not_answer_is_told_at_once():
    with pytest.raises(OpenUniError, match=r"cannot join the Ray cluster at 127\.0\.0\.1:9: .*ray status"):
        _ = RaySession(Resources(2, address="127.0.0.1:9")).ray


def test_a_control_store_that_is_gone_ends_the_process_and_one_that_answers_does_not(capsys):
    """A call of Ray that waits for it cannot be interrupted: see `ControlStoreWatch`."""
    ended = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        watch = ControlStoreWatch("127.0.0.1", port, 0.2, lambda: ended.append(1))
        watch.start()
        watch.join(1.0)
        assert watch.is_alive() and not ended
    watch.join(10)
    assert ended == [1]
    assert "openuni: the connection to Ray was lost: the control store" in capsys.readouterr().err
    stopped = ControlStoreWatch("127.0.0.1", port, 0.2, lambda: ended.append(2))
    stopped.stop.set()
    stopped.start()
    stopped.join(10)
    assert ended == [1]


@pytest.mark.slow
def test_a_ray_that_is_killed_is_started_again_and_the_run_ends_well(tmp_path):
    raw = tmp_path / "raw"
    write_clips(raw, 24)
    recipe = tmp_path / "corpus.toml"
    recipe.write_text(
        f'[filters.luminance]\n[annotators."tests.operators.logged"]\nlog = "{tmp_path}/log"\nseconds = 0.5\n'
    )
    (tmp_path / "log").touch()
    command = [sys.executable, "-m", "openuni", "run", recipe, raw, "--out", tmp_path / "corpus", "--workers", "2"]
    driver = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while len((tmp_path / "log").read_text().splitlines()) < 4:
        assert driver.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    (raylet,) = [child for child in psutil.Process(driver.pid).children(recursive=True) if child.name() == "raylet"]
    os.kill(raylet.pid, signal.SIGKILL)
    _, said = driver.communicate(timeout=240)
    assert driver.returncode in (0, 2), said
    assert driver.returncode == 0 or "connection to Ray was lost" in said
    done = cli("run", recipe, raw, "--out", tmp_path / "corpus", "--workers", 0)
    assert done.returncode == 0 and Corpus.open(str(tmp_path / "corpus")).summary().ok == 24
