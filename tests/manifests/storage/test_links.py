"""Links in a corpus: none leads out of it, except to the blobs of a Hugging Face snapshot or where the user says so."""

import shutil
from pathlib import Path

import pytest

from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.errors import OpenUniError
from openuni.manifests.storage.lock import lock
from openuni.manifests.storage.store import Store
from tests.bare_corpora import bare_corpus
from tests.command_line import cli
from tests.hostile import files_under


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    bare_corpus(tmp_path / "corpus", [{"clip_id": "a"}, {"clip_id": "b"}])
    return tmp_path / "corpus"


def moved_out(path: Path, to: Path) -> Path:
    """`path`, as a link to where it was moved."""
    to.parent.mkdir(parents=True, exist_ok=True)
    path.rename(to)
    path.symlink_to(to)
    return path


def test_a_part_that_is_a_link_out_of_the_corpus_is_refused(corpus: Path, tmp_path: Path, monkeypatch) -> None:
    (part,) = (corpus / "clips").glob("*.parquet")
    moved_out(part, tmp_path / "elsewhere/part")
    done = cli("summary", corpus)
    assert done.returncode == 2 and f"{part} leads to {tmp_path}/elsewhere/part, outside {corpus}" in done.stderr
    monkeypatch.setenv("OPENUNI_FOLLOW_LINKS", "1")
    assert cli("summary", corpus).returncode == 0


@pytest.mark.parametrize("name", ["clips", "corpus.json"])
def test_folders_and_records_too(corpus: Path, tmp_path: Path, name: str) -> None:
    moved_out(corpus / name, tmp_path / "elsewhere" / name)
    assert cli("summary", corpus).returncode == 2


@pytest.mark.parametrize("name", [".driver.lock", ".workers.lock"])
def test_a_lock_makes_no_file_elsewhere(corpus: Path, tmp_path: Path, name: str) -> None:
    (corpus / name).unlink(missing_ok=True)
    (corpus / name).symlink_to(tmp_path / "made")
    with pytest.raises(OpenUniError, match="leads to"), lock(Store(str(corpus))):
        pass
    assert not (tmp_path / "made").exists()


def test_nothing_is_written_or_deleted_through_a_linked_folder(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/.a.parquet.0123abcd.tmp").write_bytes(b"mine")
    (corpus / "runs").symlink_to(tmp_path / "elsewhere")
    before = files_under(tmp_path / "elsewhere")
    store = Store(str(corpus))
    for change in (
        lambda: store.put("runs/a.json", b"{}"),
        lambda: store.move("corpus.json", "runs/b"),
        store.delete_temp_files,
    ):
        with pytest.raises(OpenUniError, match="leads to"):
            change()
    assert files_under(tmp_path / "elsewhere") == before


def test_links_that_stay_inside_are_followed(corpus: Path) -> None:
    (part,) = (corpus / "clips").glob("*.parquet")
    moved_out(part, corpus / "parts" / part.name)
    assert len(Corpus.open(str(corpus))) == 2


def test_a_corpus_in_a_linked_folder_is_opened(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(corpus)
    assert len(Corpus.open(str(tmp_path / "link"))) == 2


def test_a_corpus_in_the_cache_of_a_hub_is_opened(corpus: Path, tmp_path: Path) -> None:
    repository = tmp_path / "hub/datasets--lab--corpus"
    snapshot = repository / "snapshots/0123"
    for number, path in enumerate(sorted(path for path in corpus.rglob("*") if path.is_file())):
        link = snapshot / path.relative_to(corpus)
        link.parent.mkdir(parents=True, exist_ok=True)
        (repository / "blobs").mkdir(exist_ok=True)
        shutil.copy(path, repository / "blobs" / f"{number:040x}")
        link.symlink_to(repository / "blobs" / f"{number:040x}")
    assert len(Corpus.open(str(snapshot))) == 2
    assert cli("explain", snapshot, "a").returncode == 0
