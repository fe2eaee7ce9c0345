"""Corpora and training runs that OpenUni 0.1.0 made open, go on, and nothing of them is computed anew.

The data and what is expected of it were made by that version: see make_data.py beside the data.
"""

import json
import shutil
import tarfile
import tomllib
from pathlib import Path
from typing import Any

import fsspec
import pytest

import openuni
from openuni.manifests.contracts.options import recorded
from tests.command_line import cli
from tests.openuni.compatibility_facts import (
    CORPORA,
    DATA,
    IMPORT_OPTIONS,
    PLACES,
    RUNS,
    SOURCES,
    TIMINGS,
    UNSTEADY,
    assert_holds,
    assert_near,
    assert_nothing_done,
    corpus_facts,
    files,
    jsonable,
    ledgers,
    recipe_facts,
    run_facts,
    summary_facts,
    without,
)

ADDED = ("content_hash",)  # columns of `clips` that version 0.1 did not have


def sources_in_memory(folder: Path) -> None:
    """The raw clips as `memory://raw/NAME`, which is what the corpora call their sources."""
    memory = fsspec.filesystem("memory")
    for path in folder.iterdir():
        memory.pipe(f"/raw/{path.name}", path.read_bytes())


@pytest.fixture
def expected() -> dict[str, Any]:
    """What version 0.1.0 said of its own data."""
    found: dict[str, Any] = json.loads((DATA / "expected.json").read_text())
    return found


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the data, and the current folder: the recipes name a run by a relative path."""
    shutil.copytree(DATA, tmp_path / "data")
    for packed in (tmp_path / "data").glob("*.tar.xz"):
        with tarfile.open(packed) as tar:
            tar.extractall(tmp_path / "data", filter="data")
    monkeypatch.chdir(tmp_path / "data")
    sources_in_memory(Path("raw"))
    return tmp_path / "data"


# ---------------------------------------------------------------------- corpora


@pytest.mark.parametrize("name", CORPORA)
def test_a_corpus_says_what_it_said(name: str, place: Path, expected: dict[str, Any]) -> None:
    found, wanted = corpus_facts(place / name), expected["corpora"][name]
    for key in ("record", "summary", "kept", "latent_families", "text_families"):
        assert found[key] == wanted[key], key
    assert sorted(found["groups"]) == sorted(wanted["groups"])
    for group, facts in wanted["groups"].items():
        assert found["groups"][group] == facts, group
    assert_near(found["maps"], wanted["maps"], rel=1e-3, least=1e-4)
    assert_near(found["rgb"], wanted["rgb"], rel=1e-3, least=1e-2)


@pytest.mark.parametrize("name", CORPORA)
def test_a_recipe_says_what_it_said(name: str, place: Path, expected: dict[str, Any]) -> None:
    found, wanted = recipe_facts(f"{name}.toml"), expected["recipes"][name]
    assert found["versions"] == wanted["versions"]
    assert found["tables"]["filters"] == wanted["tables"]["filters"]  # a new option would be another version
    assert found["tables"]["annotators"] == wanted["tables"]["annotators"]
    assert_holds(found["tables"], wanted["tables"])


@pytest.mark.parametrize("given", ["recipe and sources", "recipe alone", "the tables of its ledger"])
@pytest.mark.parametrize("name", CORPORA)
def test_running_again_computes_nothing(name: str, given: str, place: Path, expected: dict[str, Any]) -> None:
    before, runs = files(place / name), ledgers(place / name)
    recipe: Any = f"{name}.toml"
    if given == "the tables of its ledger":
        recipe = json.loads((place / name / "runs" / max(runs)).read_text())["recipe"]
    sources = SOURCES[name] if given == "recipe and sources" else ()
    corpus = openuni.run(recipe, sources, out=name)
    assert files(place / name) == before
    assert_nothing_done(place / name, runs)
    assert jsonable(summary_facts(corpus)) == expected["corpora"][name]["summary"]


def test_importing_again_reads_nothing(place: Path) -> None:
    before, runs = files(place / "corpus"), ledgers(place / "corpus")
    openuni.import_set("interiorvid", "rooms", out="corpus", options=IMPORT_OPTIONS)
    assert files(place / "corpus") == before
    assert_nothing_done(place / "corpus", runs)


def test_splitting_again_moves_no_clip(place: Path) -> None:
    before = files(place / "corpus")
    openuni.split("corpus", {"validation": 0.3})
    assert files(place / "corpus") == before


def command(*arguments: Any) -> None:
    done = cli(*arguments)
    assert done.returncode in (0, 1), done.stderr  # 1: clips of the data failed, as they should


def test_the_command_line_computes_nothing(place: Path) -> None:
    before, runs = files(place / "corpus"), ledgers(place / "corpus")
    command("run", "corpus.toml", "--out", "corpus", "--workers", 0)
    assert_nothing_done(place / "corpus", runs)
    command("duplicates", "corpus")
    assert files(place / "corpus") == before
    command("train", "univigu.toml", "--corpus", "corpus", "--out", "runs/univigu")


def test_a_changed_operator_alone_is_computed_and_the_old_rows_come_back(place: Path) -> None:
    before, runs = files(place / "corpus"), ledgers(place / "corpus")
    tables = tomllib.loads(Path("corpus.toml").read_text())
    changed = tables | {"annotators": tables["annotators"] | {"retinex": {"scales": [0.2]}}}
    openuni.run(changed, out="corpus")
    after = files(place / "corpus")
    gone = {name for name in before if after.get(name) != before[name]}
    groups = {name.rpartition("/")[0] for name in gone}
    assert {name.rpartition("/")[2] for name in groups} == {"retinex", "albedo", "irradiance"}, groups
    openuni.run("corpus.toml", out="corpus")
    back = files(place / "corpus")
    assert {name: back.get(name) for name in before} == before
    phases = [
        json.loads((place / "corpus/runs" / name).read_text())["phases"] for name in ledgers(place / "corpus") - runs
    ]
    assert sorted(map(len, phases)) == [0, 2]  # the annotator and the encoding of what it makes, then nothing


def error_types(facts: Any) -> Any:
    """The same with only the type of each error: the wording of messages may change between versions."""
    if not isinstance(facts, dict):
        return facts
    return {
        key: value.partition(":")[0] if key == "error" and isinstance(value, str) else error_types(value)
        for key, value in facts.items()
    }


def test_a_corpus_made_anew_is_the_same(place: Path) -> None:
    """The same ids, versions, fates and scores; payloads may differ where another library codes them."""
    tables = tomllib.loads(Path("corpus.toml").read_text())
    tables["keep"] = "motion.speed_diag_per_s > 0.001"
    openuni.run(tables, SOURCES["corpus"], out="anew")
    openuni.run("annotated.toml", SOURCES["annotated"], out="annotated anew")
    for old, new in (("corpus", "anew"), ("annotated", "annotated anew")):
        one, other = openuni.open_corpus(old), openuni.open_corpus(new)
        for group in other.groups():
            assert one.group_version(group) == other.group_version(group), group
            before = {row["clip_id"]: row for row in one.table(group).to_pylist()}
            rows = {row["clip_id"]: row for row in other.table(group).to_pylist()}
            shared = sorted(before.keys() & rows.keys())
            assert len(shared) >= (1 if old == "annotated" else 3), group
            for clip_id in shared:
                left_out = (*TIMINGS, *PLACES, *ADDED, *(UNSTEADY if group == "filters/motion_vectors" else ()))
                found, wanted = (error_types(without(some[clip_id], left_out)) for some in (rows, before))
                assert_near(found, wanted, f"{group} {clip_id}")


# ---------------------------------------------------------------------- components


def test_components_are_called_what_they_were_called(expected: dict[str, Any]) -> None:
    """Versions are made of name, revision, options and weights; the first three are the code's."""
    for place, facts in expected["components"].items():
        kind, _, name = place.partition("/")
        recipe = openuni.CorpusRecipe.parse({kind: {name: {}}})
        operator = getattr(recipe, kind)[name]
        assert operator.name() == facts["name"]
        assert operator.revision == facts["revision"], place
        assert jsonable(recorded(operator)) == facts["options"], place  # renamed options under their former names
        assert facts["version"] is None or operator.version() == facts["version"], place


# ---------------------------------------------------------------------- training runs


@pytest.mark.parametrize("name", RUNS)
def test_a_run_opens_and_makes_what_it_made(name: str, place: Path, expected: dict[str, Any]) -> None:
    found, wanted = run_facts(place / "runs" / name), expected["runs"][name]
    assert found["step"] == 2
    assert found["record"] == wanted["record"]
    assert_holds(found["recipe"], wanted["recipe"])
    assert found["log"] == wanted["log"]
    assert_near(found["tasks"], wanted["tasks"], "tasks", rel=1e-2, least=1e-3)
    assert_near(found["weights"], wanted["weights"], "weights", rel=1e-5, least=0)


@pytest.mark.parametrize("name", RUNS)
def test_a_finished_run_has_nothing_left_to_do(name: str, place: Path) -> None:
    folder = place / "runs" / name
    before, record = files(folder), json.loads((folder / "run.json").read_text())
    reported: list[Any] = []
    openuni.train(f"{name}.toml", "corpus", out=folder, progress=reported.append)
    after = files(folder)
    assert reported == []
    assert_holds(json.loads((folder / "run.json").read_text()), record)
    assert {key: after[key] for key in before if key != "run.json"} == {
        key: value for key, value in before.items() if key != "run.json"
    }


@pytest.mark.parametrize("name", RUNS)
def test_a_run_goes_on_as_it_would_have(name: str, place: Path, expected: dict[str, Any]) -> None:
    folder = place / "runs" / name
    text = Path(f"{name}.toml").read_text()
    assert text.count("steps = 2\n") > 1  # optimizer.steps comes first
    Path("raised.toml").write_text(text.replace("steps = 2\n", "steps = 3\n", 1))
    reported: list[Any] = []
    openuni.train("raised.toml", "corpus", out=folder, progress=reported.append)
    assert {row["step"] for row in reported} == {3}
    found, wanted = run_facts(folder), expected["runs"][name]["resumed"]
    assert found["step"] == 3
    assert found["log"][: len(expected["runs"][name]["log"])] == expected["runs"][name]["log"]
    assert_holds(found["record"], wanted["record"])
    assert_near(found["log"], wanted["log"], "log", rel=1e-3, least=1e-6)
    assert_near(found["tasks"], wanted["tasks"], "tasks", rel=1e-2, least=1e-3)
    assert_near(found["weights"], wanted["weights"], "weights", rel=1e-2, least=0)
