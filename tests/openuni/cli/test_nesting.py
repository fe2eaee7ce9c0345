"""Folders, conditions and JSON nested far deeper than anybody needs: exit code 2, never an internal error."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from openuni.manifests.corpus.layout import OPEN
from openuni.manifests.storage.store import Store
from tests.bare_corpora import bare_corpus
from tests.command_line import cli


def nest(root: Path, depth: int = 1100) -> Path:
    """A chain of folders below `root`; built from within, because its path is longer than some calls take."""
    root.mkdir(parents=True, exist_ok=True)
    place = os.open(root, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=place)
        inner = os.open("d", os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = inner
    os.close(place)
    return root


def flatten(root: Path) -> None:
    """Remove the chain, which pytest cannot: shutil.rmtree recurses."""
    while (root / "d" / "d").is_dir():
        (root / "d" / "d").rename(root / "next")
        (root / "d").rmdir()
        (root / "next").rename(root / "d")


@pytest.fixture(scope="module")
def deep(tmp_path_factory) -> Iterator[Path]:
    root = nest(tmp_path_factory.mktemp("nested") / "deep")
    yield root
    flatten(root)


def test_sources_in_a_deep_folder(deep, tmp_path):
    (tmp_path / "recipe.toml").write_text("[filters.luminance]\n")
    done = cli("run", tmp_path / "recipe.toml", deep, "--out", tmp_path / "corpus", "--workers", 0)
    assert done.returncode == 2 and "contains no video" in done.stderr


@pytest.mark.parametrize("name", ["folder", "webdataset", "openuni-csv", "interiorvid", "videomatte"])
def test_every_importer_with_a_deep_folder(deep, tmp_path, name):
    done = cli("import", name, deep, "--out", tmp_path / "corpus", "--workers", 0)
    assert done.returncode == 2, done.stderr


def test_a_corpus_with_a_deep_folder_is_used_as_any_other(tmp_path):
    corpus = bare_corpus(tmp_path / "corpus", [{"clip_id": "a"}, {"clip_id": "b"}])
    nest(tmp_path / "corpus" / "extra")
    try:
        done = cli("split", tmp_path / "corpus", "--fraction", "test=0.5")
        assert done.returncode == 0, done.stderr
        assert corpus.recover() == 0
    finally:
        flatten(tmp_path / "corpus" / "extra")


def test_temporary_files_and_open_parts_are_found_at_every_level_that_a_corpus_has(tmp_path):
    store = Store(str(tmp_path / "corpus"))
    folders = ["", "clips", "runs", "filters/motion", "latents/f/rgb", "latents/f/rgb/superseded/1"]
    for folder in folders:
        store.local(folder).mkdir(parents=True, exist_ok=True)
        (store.local(folder) / ".part.parquet.0123abcd.tmp").write_bytes(b"")
    store.delete_temp_files()
    assert not [path for path in Path(store.root).rglob("*.tmp")]
    corpus = bare_corpus(tmp_path / "bare", [{"clip_id": "a"}])
    groups = ["clips", "filters/motion", "annotations/dis", "latents/f/rgb", "text/f"]
    for group in groups:
        (tmp_path / "bare" / group / OPEN).mkdir(parents=True, exist_ok=True)
    assert sorted(corpus.groups_with_open_parts()) == sorted(groups)


@pytest.mark.parametrize(
    "keep",
    ["(" * 5000 + "width_px > 0" + ")" * 5000, "not " * 900 + "width_px > 0", "+".join(["width_px"] * 3000) + " > 0"],
)
def test_a_nested_keep_rule(tmp_path, keep):
    bare_corpus(tmp_path / "corpus", [{"clip_id": "a"}])
    done = cli("select", tmp_path / "corpus", "--keep", keep, "--out", tmp_path / "chosen")
    assert done.returncode == 2 and "keep = " in done.stderr


def test_nested_json_of_runs_and_exports(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text("[" * 100_000)
    done = cli("generate", tmp_path / "run", "--make", "rgb", "--out", tmp_path / "made")
    assert done.returncode == 2 and "run.json is damaged" in done.stderr
    bare_corpus(tmp_path / "corpus", [{"clip_id": "a"}])
    for text in ("[" * 100_000, "{}", "[]", '{"made_from": 1}'):
        (tmp_path / "set").mkdir(exist_ok=True)
        (tmp_path / "set/export.json").write_text(text)
        done = cli("export", tmp_path / "corpus", "--format", "univid", "--out", tmp_path / "set", "--workers", 1)
        assert done.returncode == 2 and "export.json is damaged" in done.stderr, done.stderr


@pytest.mark.parametrize("value", ["[" * 3000, "9" * 5000], ids=["brackets", "digits"])
def test_values_in_toml_of_thousands_of_signs(tmp_path, value):
    (tmp_path / "recipe.toml").write_text(f"[work]\nshort_side_px = {value}\n")
    (tmp_path / "raw").mkdir()
    for command in (
        ("doctor", tmp_path / "recipe.toml"),
        ("import", "folder", tmp_path / "raw", "--set", f"fps={value}", "--out", tmp_path / "corpus"),
    ):
        done = cli(*command)
        assert done.returncode == 2 and "not valid TOML" in done.stderr and len(done.stderr) < 1000, done.stderr
