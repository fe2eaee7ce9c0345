"""Runs and imports that leave many small parts merge them at the end of each phase, and nothing is computed again."""

import json

import openuni
from openuni.console.progress import Reporter
from openuni.manifests.corpus.corpus import Corpus
from tests.raw_clips import contents, write_clips

RECIPE = {
    "keep": "luminance.mean > 0.05",
    "work": {"short_side_px": 32},
    "filters": {"luminance": {}},
    "annotators": {"dis": {"preset": "ultrafast"}},
    "encode": {"modalities": ["rgb", "flow"], "size_px": [16, 16], "frames": 5},
}
CLIPS = 9


def test_a_run_merges_the_parts_of_its_phases(tmp_path, monkeypatch):
    write_clips(tmp_path / "raw", CLIPS)
    quiet = Reporter(quiet=True)
    whole = openuni.run(RECIPE, tmp_path / "raw", out=tmp_path / "whole", reporter=quiet)
    monkeypatch.setattr("openuni.manifests.corpus.writer.MAX_PART_ROWS", 1)
    corpus = openuni.run(RECIPE, tmp_path / "raw", out=tmp_path / "corpus", reporter=quiet)
    assert {group: len(corpus.parts(group)) for group in corpus.groups()} == dict.fromkeys(whole.groups(), 1)
    assert len(corpus.store.names("annotations/dis", ".tar")) == CLIPS
    assert contents(corpus) == contents(whole) and [clip.clip_id for clip in corpus] == [c.clip_id for c in whole]
    assert openuni.verify(corpus, reporter=quiet).damage == ()
    openuni.run(RECIPE, tmp_path / "raw", out=tmp_path / "corpus", reporter=Reporter(quiet=True))
    ledger = json.loads(max((tmp_path / "corpus" / "runs").glob("*.json")).read_text())
    assert ledger["phases"] == [] and contents(Corpus.open(str(tmp_path / "corpus"))) == contents(whole)


def test_an_import_merges_its_parts_and_their_frames_are_found(tmp_path, monkeypatch):
    folder = tmp_path / "drawn"
    folder.mkdir()
    for number in range(CLIPS, 2 * CLIPS):
        (folder / f"clip{number:02}.clip").write_text(str(number))
    name, quiet = "tests.operators.drawn_set", Reporter(quiet=True)
    monkeypatch.setattr("openuni.manifests.corpus.writer.MAX_PART_ROWS", 1)
    corpus = openuni.import_set(name, folder, out=tmp_path / "corpus", reporter=quiet)
    assert [len(corpus.parts(group)) for group in ("clips", f"annotations/{name}")] == [1, 1]
    assert len(corpus.store.names(f"annotations/{name}", ".tar")) == CLIPS
    assert [len(clip.rgb) for clip in corpus] == [5] * CLIPS  # decoded from several shards
    cut = openuni.select(corpus, "caption = 'number 12'", out=tmp_path / "cut")
    assert len(cut[0].rgb) == 5 and len(cut.store.names(f"annotations/{name}", ".tar")) == 1
    assert openuni.verify(corpus, reporter=quiet).damage == ()
