"""Operators in environments of their own: two versions of one package in one recipe, built from the registry."""

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import openuni
from openuni.config.recipe import CorpusRecipe
from openuni.console.progress import Reporter
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.hosting.environment import Environment
from openuni.pipeline.runners.resources import Resources
from tests.annotators.test_caption import tiny_checkpoint
from tests.coded_clips import encode
from tests.command_line import cli

ONE, OTHER, FILTER = (
    f"tests.operators.{name}" for name in ("in_environment", "in_other_environment", "filter_in_environment")
)
BATCHING, STARTING = "tests.operators.batching", "tests.operators.starting"
NAMES = ("a", "absent", "b", "nan", "refused", "wrong")


pytest_plugins = ("tests.two_environments",)
pytestmark = pytest.mark.usefixtures("environment_cache")


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clips(tmp_path_factory.mktemp("raw"), *NAMES)


def clips(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        encode(folder / f"{name}.mp4", times=range(3 + number))
    return folder


def run(raw: Path, out: Path, workers: int | Resources = 0, **tables: Any) -> Corpus:
    recipe = {"work": {"short_side_px": 24}} | tables
    resources = workers if isinstance(workers, Resources) else Resources(workers=workers)
    openuni.run(recipe, str(raw), out=str(out), reporter=Reporter(quiet=True), resources=resources)
    return Corpus.open(out)


def rows(corpus: Corpus, name: str, group: str = "annotations") -> dict[str, Any]:
    """Rows by name of the source, without durations, versions and places; maps by their checksum."""
    sources = {row["clip_id"]: Path(row["source"]).stem for row in corpus.table("clips").to_pylist()}
    found = {}
    for row in corpus.table(f"{group}/{name}").to_pylist():
        values = {key: value for key, value in row[name].items() if key not in ("ms", "version")}
        for key, value in values.items():
            if isinstance(value, dict) and "xxh3" in value:
                values[key] = value["xxh3"]
        found[sources[row["clip_id"]]] = values
    return found


@pytest.fixture(scope="module")
def both(raw: Path, old_and_new: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Two annotators in two environments, one of which starts from the map of the other, and a filter."""
    old, new = old_and_new
    annotators = {ONE: {"requirements": old, "size": [5, 6]}, OTHER: {"requirements": new}}
    return run(
        raw, tmp_path_factory.mktemp("both") / "c", annotators=annotators, filters={FILTER: {"requirements": new}}
    )


def test_each_operator_has_its_own_version_of_a_package(both: Corpus) -> None:
    found, others = rows(both, ONE), rows(both, OTHER)
    assert {row["package"] for row in found.values() if row["status"] == "ok"} == {"1.1.1"}
    assert {row["package"] for row in others.values() if row["status"] == "ok"} == {"2.0.0"}
    assert {row["device"] for row in found.values() if row["status"] == "ok"} == {"cpu"}
    assert not any(row["heavy"] for row in rows(both, FILTER, "filters").values())


def test_the_rows_are_those_of_the_same_operators_in_this_process(both: Corpus, raw: Path, tmp_path: Path) -> None:
    """Results, maps and errors; what they did not find here is the other version."""
    here = run(raw, tmp_path / "c", annotators={ONE: {"size": [5, 6]}, OTHER: {}}, filters={FILTER: {}})
    for name, group in ((ONE, "annotations"), (OTHER, "annotations"), (FILTER, "filters")):
        plain, hosted = rows(here, name, group), rows(both, name, group)
        for row in (*plain.values(), *hosted.values()):
            row.pop("package", None), row.pop("heavy", None)
        assert hosted == plain
    assert rows(both, ONE)["wrong"]["error"] == "ValueError: a bug"
    assert rows(both, ONE)["absent"]["status"] == "unavailable"


def test_tracebacks_and_what_it_writes_reach_the_log_of_the_run(both: Corpus) -> None:
    runs = Path(both.store.url) / "runs"
    (failures,) = runs.glob("*.failures.jsonl")
    assert any("misbehave" in json.loads(line)["traceback"] for line in failures.read_text().splitlines())
    (log,) = runs.glob("*.log")
    assert "loaded iniconfig on cpu" in log.read_text() and "lab: looking at a" in log.read_text()


@pytest.mark.slow
def test_workers_of_ray_give_the_same(
    both: Corpus, raw: Path, tmp_path: Path, old_and_new: tuple[str, str], ray_workers: Callable[[int], Resources]
) -> None:
    old, new = old_and_new
    annotators = {ONE: {"requirements": old, "size": [5, 6]}, OTHER: {"requirements": new}}
    there = run(raw, tmp_path / "c", ray_workers(2), annotators=annotators)
    assert rows(there, ONE) == rows(both, ONE) and rows(there, OTHER) == rows(both, OTHER)


def test_another_environment_recomputes_and_the_same_packages_do_not(
    raw: Path, tmp_path: Path, old_and_new: tuple[str, str], python: str
) -> None:
    def version(**table: str) -> str:
        corpus = run(raw, tmp_path / "c", annotators={ONE: table})
        return corpus.group_version(f"annotations/{ONE}")

    first = version(requirements=old_and_new[0])
    ledgers = set((tmp_path / "c" / "runs").glob("*.json"))
    assert version(python=python) == first
    (ledger,) = set((tmp_path / "c" / "runs").glob("*.json")) - ledgers
    assert json.loads(ledger.read_text())["phases"] == []
    assert len({first, version(requirements=old_and_new[1]), version()}) == 3


def test_the_record_of_a_run_names_the_environment(old_and_new: tuple[str, str]) -> None:
    table = {"requirements": old_and_new[0], "timeout_s": 9.0, "size": [1]}
    recipe = CorpusRecipe.parse({"annotators": {ONE: table}})
    assert recipe.environments == {f"annotators.{ONE}": Environment(requirements=old_and_new[0], timeout_s=9.0)}
    again = CorpusRecipe.parse(json.loads(json.dumps(recipe.as_tables())))
    assert again.environments == recipe.environments and again.annotators == recipe.annotators
    assert "python" not in CorpusRecipe.parse({"annotators": {ONE: {}}}).as_tables()["annotators"][ONE]


# ---------------------------------------------------------------------- death and time


def test_a_process_that_dies_costs_the_clip_alone_after_three_tries(tmp_path: Path, python: str) -> None:
    raw = clips(tmp_path, "a", "deadly", "once", "z")
    found = rows(run(raw, tmp_path / "c", annotators={ONE: {"python": python}}), ONE)
    assert {name: row["status"] for name, row in found.items()} == {
        "a": "ok",
        "deadly": "failed",
        "once": "ok",  # at the second try
        "z": "ok",
    }
    text = found["deadly"]["error"]
    assert text.startswith("WorkerDied: the process of its environment was killed (SIGSEGV), 3 times with this clip")
    failures = next((tmp_path / "c" / "runs").glob("*.failures.jsonl")).read_text()
    assert "native code is about to crash" in failures and "Segmentation fault" in failures


@pytest.mark.slow
def test_a_clip_that_takes_too_long_fails(tmp_path: Path, python: str) -> None:
    raw = clips(tmp_path, "a", "slow", "z")
    found = rows(run(raw, tmp_path / "c", annotators={ONE: {"python": python, "timeout_s": 1.5}}), ONE)
    assert {name: row["status"] for name, row in found.items()} == {"a": "ok", "slow": "failed", "z": "ok"}
    assert "took longer than 1.5 s for one clip; its process was ended. Raise timeout_s" in found["slow"]["error"]


@pytest.mark.slow
def test_several_clips_together(tmp_path: Path, python: str) -> None:
    raw = clips(tmp_path, "a", "b", "broken-c", "deadly", "d", "e")
    options = {"clips": 3, "deadly": "deadly", "log": str(tmp_path / "log")}
    found = rows(run(raw, tmp_path / "c", annotators={BATCHING: {"python": python, **options}}), BATCHING)
    assert {name for name, row in found.items() if row["status"] == "ok"} == {"a", "b", "d", "e"}
    assert found["broken-c"]["error"] == "ClipError: broken-c cannot be read"
    assert found["deadly"]["error"].startswith("WorkerDied: the process of its environment was killed (SIGKILL)")
    assert max(len(line.split()) for line in (tmp_path / "log").read_text().splitlines()) == 3
    plain = rows(run(raw, tmp_path / "d", annotators={BATCHING: {"clips": 1, "deadly": "none"}}), BATCHING)
    assert {name: plain[name] for name in "abde"} == {name: found[name] for name in "abde"}


HOLD = """
import sys, time
from openuni.manifests.contracts.operator import find_operator
from openuni.manifests.hosting.process import HostedModel
operator = find_operator("annotator", sys.argv[1], imports=True)()
model = HostedModel(operator, sys.argv[2], "cpu", 60.0, 1)
print(model.process.process.pid, flush=True)
if sys.argv[3] == "close":
    model.close()
    print("closed", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("how", ["close", "kill"])
def test_the_process_and_what_it_has_started_end_with_its_worker(how: str, python: str) -> None:
    """Also when the worker is killed: engines hold the memory of GPUs."""
    command = [sys.executable, "-c", HOLD, STARTING, python, how]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    if how == "close":
        assert parent.stdout.readline() == "closed\n"
    else:
        assert len(members(child)) == 2
        parent.send_signal(signal.SIGKILL)
    until = time.monotonic() + 10
    while members(child) and time.monotonic() < until:
        time.sleep(0.05)
    assert members(child) == []
    parent.kill()
    parent.communicate()


def members(group: int) -> list[int]:
    """The living processes of a group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
            found += [int(path.parent.name)] if int(its_group) == group and state != "Z" else []
    return found


# ---------------------------------------------------------------------- what a corpus may say


def test_a_corpus_starts_no_interpreter_and_imports_no_module(raw: Path, tmp_path: Path) -> None:
    """The record of a run names both: nothing but a recipe that a person gives does anything with them."""
    run(raw, tmp_path / "c", annotators={ONE: {}})
    (ledger,) = (tmp_path / "c" / "runs").glob("*.json")
    script = tmp_path / "script"
    script.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    script.chmod(0o755)
    (tmp_path / "planted").mkdir()
    (tmp_path / "planted" / "operator.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\n")
    told = json.loads(ledger.read_text())
    told.pop("checksum", None)
    for names in ({ONE: {"python": str(script)}}, {"planted.operator": {}}):
        told["recipe"]["annotators"] = names
        ledger.write_text(json.dumps(told))
        (tmp_path / "c" / "corpus.json").unlink()  # it is rebuilt from the ledger
        with contextlib.chdir(tmp_path):
            assert cli("verify", tmp_path / "c", "--repair").returncode in (0, 1)
            assert (tmp_path / "c" / "corpus.json").exists()
            cli("summary", tmp_path / "c")
    assert not (tmp_path / "started").exists() and not (tmp_path / "imported").exists()


# ---------------------------------------------------------------------- our own operators


def test_an_annotator_of_ours_with_maps(tmp_path: Path) -> None:
    """In the environment of this process: the same code, in another process."""
    raw = clips(tmp_path, "a", "b")
    hosted = run(raw, tmp_path / "c", annotators={"dis": {"python": sys.executable}})
    plain = run(raw, tmp_path / "d", annotators={"dis": {}})
    assert rows(hosted, "dis") == rows(plain, "dis") and {row["status"] for row in rows(plain, "dis").values()} == {
        "ok"
    }


@pytest.mark.slow
def test_captions_of_several_clips_together(tmp_path: Path) -> None:
    raw = clips(tmp_path, "a", "b", "c")
    options = {"checkpoint": tiny_checkpoint(tmp_path), "max_new_tokens": 8, "precision": "fp32"}
    hosted = run(raw, tmp_path / "c", annotators={"caption": {"python": sys.executable, "batch_clips": 3, **options}})
    plain = run(raw, tmp_path / "d", annotators={"caption": options})
    assert rows(hosted, "caption") == rows(plain, "caption")
    assert all(row["brief"] for row in rows(plain, "caption").values())


@pytest.mark.slow
def test_a_clip_that_is_too_long_says_so(tmp_path: Path, python: str) -> None:
    """Windows do not travel: such operators get all frames at once."""
    raw = clips(tmp_path, "a", "long")
    work = {"short_side_px": 24, "max_decoded_gb": 24 * 32 * 3 * 3.5 / 1e9}
    found = rows(run(raw, tmp_path / "c", work=work, annotators={"dis": {"python": sys.executable}}), "dis")
    assert found["a"]["status"] == "ok" and "needs all 4 frames at once" in found["long"]["error"]
