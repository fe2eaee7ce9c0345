"""kill -9 at random moments: after resuming, the corpus equals that of an uninterrupted run."""

import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import openuni
from openuni.console.progress import Reporter
from openuni.manifests.corpus.corpus import Corpus
from tests.command_line import cli
from tests.raw_clips import contents, write_clips

KILLS = 10
CLIPS = 60
WORKERS = 2
RECIPE = """
keep = "motion.speed_diag_per_s > 0.01"
[work]
short_side_px = 24
[filters.motion]
[filters.luminance]
[annotators."tests.operators.logged"]
log = "{log}"
seconds = {seconds}
[encode]
modalities = ["rgb", "segmentation"]
size_px = [16, 16]
frames = 5
"""


def write_recipe(path: Path, log: Path | str, seconds: float) -> Path:
    path.write_text(RECIPE.format(log=log, seconds=seconds))
    return path


def start(recipe: Path, raw: Path, out: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "openuni", "run", recipe, raw, "--out", out, "--workers", WORKERS]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def workers_of(driver: subprocess.Popen) -> list[psutil.Process]:
    try:
        family = psutil.Process(driver.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    found = []
    for process in family:
        try:
            if process.name().startswith("ray::") and "RayWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue  # it ended between the listing and the question
    return found


def kill_driver(driver: subprocess.Popen) -> None:
    driver.send_signal(signal.SIGKILL)
    driver.wait()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_ten_kills_change_nothing(tmp_path):
    """Kills workers and drivers until there were ten, over as many runs as that takes."""
    chance = random.Random(20)
    raw = tmp_path / "raw"
    write_clips(raw, CLIPS)
    (tmp_path / "log").touch()
    recipe = write_recipe(tmp_path / "corpus.toml", tmp_path / "log", 0.15)
    whole = openuni.run(recipe, raw, out=tmp_path / "whole", reporter=Reporter(quiet=True))
    expected = contents(whole)
    wanted = len(whole.kept_clip_ids())

    kills = {"worker": 0, "driver": 0}
    rounds = 0
    while sum(kills.values()) < KILLS:
        out = tmp_path / f"round-{rounds}"
        (tmp_path / "log").write_text("")
        in_round = _kill_through_one_run(recipe, raw, out, kills, chance)
        assert contents(openuni.open_corpus(out)) == expected, f"round {rounds} differs after {in_round}"
        runs = len((tmp_path / "log").read_text().splitlines())
        in_hand = 2 * (in_round["worker"] + in_round["driver"] * WORKERS)  # one computed, one being written
        assert wanted <= runs <= wanted + in_hand, f"{runs} runs of {wanted} clips after {in_round}"
        leftovers = [path for path in out.rglob("*") if path.suffix in (".journal", ".tmp")]
        assert not leftovers
        rounds += 1
    assert kills["worker"] and kills["driver"], kills


def _kill_through_one_run(recipe: Path, raw: Path, out: Path, kills: dict, chance: random.Random) -> dict[str, int]:
    """Runs until the corpus is complete, killing now and then; returns how often which kind was killed."""
    mine = {"worker": 0, "driver": 0}
    driver = start(recipe, raw, out)
    while True:
        try:
            code = driver.wait(timeout=chance.uniform(0.3, 4.0))
        except subprocess.TimeoutExpired:
            code = None
        if code is not None:
            assert code == 0, driver.stderr.read()
            return mine
        if sum(kills.values()) >= KILLS:
            continue
        victims = workers_of(driver)
        if not victims:
            continue  # Ray is still starting
        if chance.random() < 0.3:
            kill_driver(driver)
            kind, driver = "driver", start(recipe, raw, out)
        else:
            chance.choice(victims).kill()
            kind = "worker"
        mine[kind] += 1
        kills[kind] += 1


def test_a_killed_driver_resumes(tmp_path):
    """The short form of the same, in the ordinary suite: one process, killed once it has begun to annotate."""
    raw = tmp_path / "raw"
    write_clips(raw, 8)
    log = tmp_path / "log"
    log.touch()
    recipe = write_recipe(tmp_path / "corpus.toml", log, 0.3)
    command = [
        sys.executable,
        "-m",
        "openuni.cli.main",
        "run",
        recipe,
        raw,
        "--out",
        tmp_path / "corpus",
        "--workers",
        "0",
    ]
    driver = subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(log.read_text().splitlines()) < 4:
        assert driver.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    kill_driver(driver)
    killed = Corpus.open(str(tmp_path / "corpus"))
    assert "annotations/tests.operators.logged" not in killed.groups() or not killed.parts(
        "annotations/tests.operators.logged"
    )
    resumed = openuni.run(recipe, raw, out=tmp_path / "corpus", reporter=Reporter(quiet=True))
    # only the clip in hand, and at worst the one being written, were done twice
    assert len(log.read_text().splitlines()) <= len(resumed.kept_clip_ids()) + 2
    whole = openuni.run(recipe, raw, out=tmp_path / "whole", reporter=Reporter(quiet=True))
    assert contents(resumed) == contents(whole)


def test_a_clip_that_kills_its_worker_is_retried_then_failed(tmp_path, ray_address):
    raw = tmp_path / "raw"
    paths = write_clips(raw, 4)
    paths[1].rename(raw / "deadly.mp4")
    recipe = tmp_path / "corpus.toml"
    recipe.write_text('[work]\nshort_side_px = 24\n[annotators."tests.operators.aborting"]\n')
    workers = ("--workers", WORKERS, "--address", ray_address)
    done = cli("run", recipe, raw, "--out", tmp_path / "corpus", *workers)
    assert done.returncode == 1, done.stderr
    corpus = openuni.open_corpus(tmp_path / "corpus")
    summary = corpus.summary()
    assert (summary.clips, summary.ok) == (4, 3)
    assert [(failure.operator, failure.reason) for failure in summary.failed] == [
        ("tests.operators.aborting", "WorkerDied")
    ]
    rows = {Path(clip.clip.source).name: clip.row("tests.operators.aborting") for clip in corpus}
    assert "died 3 times" in rows.pop("deadly.mp4")["error"]
    *_, record = corpus.runs()
    assert sum(node["deaths"] for node in record["nodes"]) == 3
    assert {(row["status"], row["frames"]) for row in rows.values()} == {("ok", 6)}
    assert not list((tmp_path / "corpus" / "annotations" / "tests.operators.aborting" / ".open").iterdir())


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_ctrl_c_says_what_is_kept_and_how_to_go_on(tmp_path, workers):
    """A real SIGINT to all processes of the run, as a terminal sends it."""
    raw = tmp_path / "raw"
    write_clips(raw, 8)
    log = tmp_path / "log"
    log.touch()
    recipe = write_recipe(tmp_path / "corpus.toml", log, 0.3)
    command = list(map(str, ["run", recipe, raw, "--out", tmp_path / "corpus", "--workers", workers]))
    driver = subprocess.Popen(
        [sys.executable, "-m", "openuni", *command],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background may ignore it
    )
    deadline = time.monotonic() + 90
    while len(log.read_text().splitlines()) < 3:
        assert driver.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(driver.pid, signal.SIGINT)
    _, said = driver.communicate(timeout=30)
    assert driver.returncode == 130, said
    assert f"openuni: stopped. Finished items are kept. Resume with: {shlex.join(['openuni', *command])}" in said
    assert "Traceback" not in said and "Aborted" not in said
    done = len(log.read_text().splitlines())
    resumed = openuni.run(recipe, raw, out=tmp_path / "corpus", reporter=Reporter(quiet=True))
    assert resumed.summary().pending == 0
    again = len(log.read_text().splitlines()) - (len(resumed.kept_clip_ids()) - done)
    assert done <= again <= done + 2 * max(1, workers)  # only what was in hand
