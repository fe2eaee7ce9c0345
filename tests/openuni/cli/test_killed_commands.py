"""Commands that create a corpus, killed before any of their changes to the disk: the same command completes them."""

import json
import shutil
from pathlib import Path

import pytest

import openuni
from openuni.console.progress import Reporter
from openuni.manifests.corpus.corpus import Corpus
from openuni.pipeline.scope import RunScope
from tests.bare_corpora import bare_corpus, splits_of
from tests.command_line import cli
from tests.killed import killed_at
from tests.raw_clips import contents, write_clips

RECIPE = {
    "keep": "luminance.mean > 0.05",
    "work": {"short_side_px": 32},
    "filters": {"luminance": {}},
    "annotators": {"dis": {"preset": "ultrafast"}},
    "encode": {"modalities": ["rgb"], "size_px": [16, 16], "frames": 5},
}
KEEP = "luminance.mean > 0.06"


def run(raw: Path, out: Path, *only: str) -> Corpus:
    return openuni.run(RECIPE, raw, out=out, scope=RunScope(only=only), reporter=Reporter(quiet=True))


def select(corpus: str, out: Path, keep: str = KEEP) -> None:
    openuni.select(corpus, keep, out=out)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("source")
    write_clips(folder / "raw", 3)
    made = run(folder / "raw", folder / "corpus")
    write_clips(folder / "more", 2)  # a second part of every group
    return (
        openuni.run(
            RECIPE, folder / "more", out=folder / "corpus", scope=RunScope(add=True), reporter=Reporter(quiet=True)
        )
        or made
    )


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def check_select(corpus: Corpus, tmp_path: Path, numbers: "range | list[int]") -> int:
    """Select, killed at each of these changes, then again; returns how many kills there were."""
    whole = openuni.select(corpus, KEEP, out=tmp_path / "whole")
    kills = 0
    for number in numbers:
        out = tmp_path / f"killed-{number}"
        if not killed_at(number, out, select, corpus.store.url, out):
            break
        kills += 1
        record = json.loads((out / "corpus.json").read_text()) if (out / "corpus.json").exists() else {}
        if record and "selected_by" not in record:  # nothing half-done passes for a corpus
            done = cli("summary", out)
            assert done.returncode == 2 and "is an unfinished selection. Finish it with: openuni select" in done.stderr
            assert cli("train", "unityvideo_debug", "--corpus", out, "--out", tmp_path / "run").returncode == 2
        done = cli("select", corpus.store.url, "--keep", KEEP, "--out", out)
        assert done.returncode == 0, f"killed before change {number}: {done.stderr}"
        assert contents(Corpus.open(str(out))) == contents(whole)
        assert files(out) == files(tmp_path / "whole")
    return kills


def test_select_killed_here_and_there(corpus: Corpus, tmp_path: Path) -> None:
    assert check_select(corpus, tmp_path, [1, 2, 4, 8, 16, 32]) == 6


@pytest.mark.slow
def test_select_killed_before_every_change(corpus: Corpus, tmp_path: Path) -> None:
    assert check_select(corpus, tmp_path, range(1, 1000)) > 40


def test_select_again_changes_nothing(corpus: Corpus, tmp_path: Path) -> None:
    out = tmp_path / "selected"
    for _ in range(2):
        assert cli("select", corpus.store.url, "--keep", KEEP, "--out", out).returncode == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    assert cli("select", corpus.store.url, "--keep", KEEP, "--out", out).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")} == before
    done = cli("select", corpus.store.url, "--keep", "true", "--out", corpus.store.url)
    assert done.returncode == 2 and "already contains another corpus" in done.stderr


def test_select_killed_then_with_another_rule(corpus: Corpus, tmp_path: Path) -> None:
    out = tmp_path / "selected"
    one = f"source = '{corpus[0].clip.source}'"
    assert killed_at(30, out, select, corpus.store.url, out)
    assert cli("select", corpus.store.url, "--keep", one, "--out", out).returncode == 0
    assert contents(Corpus.open(str(out))) == contents(openuni.select(corpus, one, out=tmp_path / "whole"))
    done = cli("select", corpus.store.url, "--keep", KEEP, "--out", out)
    assert done.returncode == 2 and "already contains another corpus" in done.stderr


@pytest.mark.parametrize("number", [1, 2, 3, 4, 6])
def test_run_killed_in_its_first_writes(corpus: Corpus, tmp_path: Path, number: int) -> None:
    raw, out = tmp_path / "raw", tmp_path / "corpus"
    write_clips(raw, 1)
    assert killed_at(number, out, run, raw, out, "ingest")
    assert len(run(raw, out, "ingest")) == 1
    assert not [path for path in out.rglob(".*.tmp")]


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 6, 8])
def test_split_killed_gives_the_splits_of_an_undisturbed_one(tmp_path: Path, number: int) -> None:
    def make(name: str) -> Corpus:
        for first in range(0, 60, 20):  # three parts
            made = bare_corpus(tmp_path / name, [{"clip_id": f"{index:02}"} for index in range(first, first + 20)])
        return made

    shares = {"validation": 0.2, "test": 0.2}
    expected = make("whole")
    openuni.split(expected, shares)
    killed = make("killed")
    died = killed_at(number, Path(killed.store.url), openuni.split, killed.store.url, shares)
    assert died, number
    if killed.store.exists("splits.pending.parquet"):
        done = cli("select", killed.store.url, "--keep", "true", "--out", tmp_path / "selected")
        assert done.returncode == 2 and "complete it with: openuni split" in done.stderr
    counts = openuni.split(killed, shares)
    assert splits_of(killed) == splits_of(expected)
    assert sum(counts.values()) == 60
    assert not killed.store.exists("splits.pending.parquet")
    grown = bare_corpus(tmp_path / "killed", [{"clip_id": f"{index:02}"} for index in range(60, 80)])
    openuni.split(grown, shares)
    before = splits_of(expected)
    assert {clip_id: split for clip_id, split in splits_of(grown).items() if clip_id in before} == before


def test_a_run_completes_an_interrupted_split(tmp_path: Path) -> None:
    write_clips(tmp_path / "raw", 2)
    corpus = run(tmp_path / "raw", tmp_path / "corpus", "ingest")
    write_clips(tmp_path / "more", 5)
    scope = RunScope(add=True, only=("ingest",))
    openuni.run(RECIPE, tmp_path / "more", out=tmp_path / "corpus", scope=scope, reporter=Reporter(quiet=True))
    openuni.split(openuni.select(corpus, "true", out=tmp_path / "whole"), {"test": 0.4})
    number = 1
    while killed_at(number, tmp_path / "corpus", openuni.split, tmp_path / "corpus", {"test": 0.4}):
        if corpus.store.exists("splits.pending.parquet"):
            break
        number += 1
    run(tmp_path / "raw", tmp_path / "corpus", "ingest")
    assert splits_of(corpus) == splits_of(Corpus.open(str(tmp_path / "whole")))
    assert None not in splits_of(corpus).values()


@pytest.mark.parametrize(("number", "next_version"), [(6, "another"), (6, "former"), (10, "former")])
def test_a_change_of_version_killed_between_a_part_and_its_shard(
    corpus: Corpus, tmp_path: Path, number: int, next_version: str
) -> None:
    """It is no damage; whichever version comes next has all its payloads."""
    group = "annotations/dis"
    former, before = corpus.group_version(group), contents(corpus)[group]
    copy = Path(shutil.copytree(corpus.store.local(""), tmp_path / "corpus"))
    assert killed_at(number, copy / group, activate, copy, group, "another")
    alone = {path.stem for path in (copy / group).glob("*.tar")} - {
        path.stem for path in (copy / group).glob("*.parquet")
    }
    assert len(alone) == 1
    assert openuni.verify(copy, reporter=Reporter(quiet=True)).damage == ()
    activate(copy, group, {"another": "another", "former": former}[next_version])
    assert {path.stem for path in (copy / group).glob("*.tar")} == {
        path.stem for path in (copy / group).glob("*.parquet")
    }
    assert openuni.verify(copy, reporter=Reporter(quiet=True)).damage == ()
    activate(copy, group, former)
    assert contents(Corpus.open(str(copy)))[group] == before


def activate(folder: Path, group: str, version: str) -> None:
    Corpus.open(str(folder)).activate_version(group, version)


def test_a_run_killed_in_its_first_write_of_a_family_is_not_damaged(corpus: Corpus, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(corpus.store.local(""), tmp_path / "corpus"))
    for kind in ("latents", "text"):
        (copy / kind / "dct-0123456789abcdef").mkdir()
        assert openuni.verify(copy, reporter=Reporter(quiet=True)).damage == ()
    family = next((copy / "text").glob("bytes-*"))
    (family / "family.json").unlink()  # its rows are there
    (damage,) = openuni.verify(copy, reporter=Reporter(quiet=True)).damage
    assert (damage.file, damage.reason) == (f"text/{family.name}/family.json", "the file is missing")
