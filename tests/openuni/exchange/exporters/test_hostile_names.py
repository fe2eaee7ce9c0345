"""Every exporter with a corpus of hostile clip ids: refused with exit code 2, and nothing is written elsewhere."""

import json
import shutil
from pathlib import Path

import pytest

from openuni.manifests.contracts.discovery import component_names
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.errors import OpenUniError
from openuni.training.data.index import open_index
from tests.command_line import cli
from tests.hostile import CLIP_IDS, files_under, rewrite, with_shard, with_value
from tests.train.corpora import FAMILY, random_clips, write_corpus

GROUPS = ("clips", "filters/motion", "annotations/supplied")


@pytest.fixture
def room(corpus, tmp_path) -> Path:
    """A folder two levels deep with a copy of the corpus that may be changed."""
    shutil.copytree(corpus.store.root, tmp_path / "deep" / "er" / "corpus")
    return tmp_path / "deep" / "er"


@pytest.mark.parametrize("name", component_names("exporters"))
@pytest.mark.parametrize("hostile", ["parent", "absolute", "newline", "long"])
def test_no_exporter_takes_a_clip_id_for_a_path(room, tmp_path, name, hostile):
    value = CLIP_IDS[hostile].replace("/tmp", str(tmp_path)) if hostile == "absolute" else CLIP_IDS[hostile]
    old = None
    for group in GROUPS:  # the same clip in all of its rows

        def change(rows):
            nonlocal old
            ids = rows.column("clip_id").to_pylist()
            old = old or ids[0]
            return with_value("clip_id", ids.index(old), value)(rows)

        rewrite(room / "corpus", group, change)
    before = files_under(tmp_path)
    done = cli("export", room / "corpus", "--format", name, "--out", room / "set", "--workers", 1)
    assert done.returncode == 2 and "row 0, column clip_id" in done.stderr, done.stderr
    assert files_under(tmp_path) == before


@pytest.mark.parametrize("name", component_names("exporters"))
def test_no_exporter_reads_a_shard_elsewhere(room, tmp_path, name):
    outside = tmp_path / "outside.tar"
    outside.write_bytes(b"private")
    rewrite(
        room / "corpus", "annotations/supplied", with_shard("supplied", "depth", 0, f"../../../../../{outside.name}")
    )
    done = cli("export", room / "corpus", "--format", name, "--out", room / "set", "--workers", 1)
    assert done.returncode == 2 and "column supplied.depth.shard" in done.stderr


@pytest.mark.parametrize("command", [["summary"], ["explain"], ["select"], ["split"]])
def test_no_command_works_on_such_a_corpus(room, tmp_path, command):
    rewrite(room / "corpus", "clips", with_value("clip_id", 0, "../../escaped"))
    rest = {"explain": ["escaped"], "select": ["--keep", "width_px > 0", "--out", room / "chosen"]}
    done = cli(*command, room / "corpus", *rest.get(command[0], []))
    assert done.returncode == 2 and "row 0, column clip_id" in done.stderr, done.stderr
    assert not (tmp_path / "escaped").exists() and not (tmp_path.parent / "escaped").exists()


def test_groups_that_corpus_json_names_lie_in_the_corpus(room):
    record = json.loads((room / "corpus/corpus.json").read_text())
    del record["checksum"]  # as whoever makes such a corpus would
    (room / "corpus/corpus.json").write_text(json.dumps(record | {"encoded": {"rgb": "../../elsewhere"}}))
    done = cli("summary", room / "corpus")
    assert done.returncode == 2 and "is not a name inside" in done.stderr


@pytest.mark.parametrize(("group", "column"), [("clips", "clip_id"), (f"latents/{FAMILY}/rgb", "shard")])
def test_training_refuses_them_too(tmp_path, group, column):
    corpus = write_corpus(tmp_path / "corpus", random_clips(4))
    rewrite(tmp_path / "corpus", group, with_value(column, 1, "../../escaped"))
    with pytest.raises(OpenUniError, match=f"row 1, column {column}"):
        open_index(Corpus.open(corpus.store.root), ("rgb",), "", "", 0.1)
