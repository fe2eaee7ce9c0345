"""Duplicates from videos to a corpus without them: filters, `openuni duplicates`, `keep`, and what came later."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

import openuni
from openuni import api
from openuni.console.progress import Reporter
from openuni.manifests.corpus.corpus import Corpus
from tests.coded_clips import encode
from tests.command_line import cli
from tests.moving_pictures import texture
from tests.openuni.dedup.scored import clusters_of
from tests.tiny_clip import tiny_clip, tiny_head

FPS = 25
FILM, COPIES = "film.mp4", ("badly.mp4", "small.mp4", "trimmed.mp4")
OTHERS = ("other-1.mp4", "other-2.mp4", "black.mp4")


def film(seed, seconds=3):
    """uint8 [T, 120, 160, 3]: one picture turns into the next, every second another."""
    pictures = [texture(120, 160, seed=100 * seed + number, grain_px=9) for number in range(seconds + 1)]
    shares = np.arange(seconds * FPS) / FPS
    return [cv2.addWeighted(pictures[int(at)], 1 - at % 1, pictures[int(at) + 1], at % 1, 0) for at in shares]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder, pictures = tmp_path_factory.mktemp("raw"), film(1)
    whole, part = range(len(pictures)), pictures[17:-13]
    encode(folder / FILM, times=whole, options={"crf": "10"}, pictures=pictures)
    encode(folder / "badly.mp4", times=whole, options={"crf": "38"}, pictures=pictures)
    small = [cv2.resize(picture, (80, 60), interpolation=cv2.INTER_AREA) for picture in pictures]
    encode(folder / "small.mp4", "mpeg4", whole, {"qscale": "8"}, pictures=small)
    encode(folder / "trimmed.mp4", times=range(len(part)), pictures=part)
    for number, name in enumerate(OTHERS[:2], start=2):
        encode(folder / name, times=whole, pictures=film(number))
    encode(folder / "black.mp4", times=whole, pictures=[np.zeros((120, 160, 3), np.uint8)] * len(pictures))
    (folder / "film.txt").write_text("one texture after the other")
    return folder


def recipe(checkpoint, keep=""):
    clip = {"checkpoint": checkpoint, "frames_per_s": 2.0}
    filters = {"perceptual_hash": {"frames_per_s": 4.0}, "consistency": clip, "clip_text": clip, "embedding": clip}
    filters["aesthetic"] = clip | {"head": tiny_head(Path(checkpoint).parent)}
    return {"keep": keep, "work": {"short_side_px": 64}, "filters": filters}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_clip(tmp_path_factory.mktemp("weights"))


def run(raw, out, recipe):
    return openuni.run(recipe, raw, out=out, reporter=Reporter(quiet=True))


@pytest.fixture
def corpus(raw, checkpoint, made, tmp_path):
    """A corpus of its own for each test, all filters done."""
    made.select("true", str(tmp_path / "corpus"))
    return Corpus.open(str(tmp_path / "corpus"))


@pytest.fixture(scope="module")
def made(raw, checkpoint, tmp_path_factory):
    return run(raw, tmp_path_factory.mktemp("made") / "corpus", recipe(checkpoint))


def names(corpus):
    return {
        row["clip_id"]: Path(row["source"]).name for row in corpus.table("clips", ["clip_id", "source"]).to_pylist()
    }


def clusters(corpus, group="duplicates"):
    known = names(corpus)
    return {known[one]: known[kept] for one, kept in clusters_of(corpus, group).items()}


def test_reencoded_scaled_and_trimmed_copies_are_one_cluster_and_others_are_not(corpus):
    api.duplicates(corpus)
    found = clusters(corpus)
    best = found[FILM]
    assert best in (FILM, "badly.mp4")  # of one size and length: the first by id
    assert found == {name: best for name in (FILM, *COPIES)} | {name: name for name in OTHERS}


def test_a_fault_in_the_comparison_would_be_seen(corpus):
    """With no bits allowed to differ, the copies are no copies: the test above does look at the pictures."""
    api.duplicates(corpus, max_distance=0)
    assert clusters(corpus)["small.mp4"] == "small.mp4"


def test_semantic_duplicates_from_stored_embeddings(corpus):
    api.duplicates(corpus, by="embedding")
    found = clusters(corpus, "semantic_duplicates")
    assert found == {name: found[FILM] for name in (FILM, *COPIES)} | {name: name for name in OTHERS}
    vectors = {row["clip_id"]: row["embedding"]["vector"] for row in corpus.table("filters/embedding").to_pylist()}
    assert {len(vector) for vector in vectors.values()} == {768}


def test_all_clip_filters_have_scores_and_captions_are_no_failure(corpus):
    summary = corpus.summary()
    assert (summary.clips, summary.ok, summary.failed) == (7, 7, [])
    assert [(lack.operator, lack.clips) for lack in summary.unavailable] == [("clip_text", 6)]
    for name in ("aesthetic", "consistency"):
        assert all(row[name]["mean"] is not None for row in corpus.table(f"filters/{name}").to_pylist())


def test_select_and_the_next_run_keep_one_of_each(corpus, raw, checkpoint, tmp_path):
    api.duplicates(corpus)
    chosen = api.select(corpus, "duplicates.is_representative", out=tmp_path / "chosen")
    assert len(chosen) == 4
    assert chosen.summary().ok == 4

    again = run(raw, corpus.store.url, recipe(checkpoint, "duplicates.is_representative"))
    summary = again.summary()
    assert (summary.ok, summary.pending) == (4, 0)
    assert [(drop.rule, drop.clips) for drop in summary.dropped] == [("duplicates.is_representative", 3)]


def test_clips_that_came_later_are_pending_and_named(corpus, raw, checkpoint, tmp_path, capsys):
    api.duplicates(corpus)
    (tmp_path / "new").mkdir()
    encode(tmp_path / "new" / "late.mp4")
    rules = recipe(checkpoint, "duplicates.is_representative") | {"annotators": {"dis": {"preset": "ultrafast"}}}
    reporter = Reporter(quiet=False)
    grown = openuni.run(
        rules,
        tmp_path / "new",
        out=corpus.store.url,
        scope=openuni.pipeline.pipeline.RunScope(add=True),
        reporter=reporter,
    )
    assert "1 clips have no duplicates result yet" in "".join(capsys.readouterr())
    assert (grown.summary().ok, grown.summary().pending) == (4, 1)
    api.duplicates(grown)
    assert run(tmp_path / "new", corpus.store.url, rules).summary().ok == 5


def test_keep_before_the_duplicates_were_found_says_what_to_do(raw, checkpoint, tmp_path):
    rules = recipe(checkpoint, "duplicates.is_representative") | {"annotators": {"dis": {"preset": "ultrafast"}}}
    with pytest.raises(openuni.OpenUniError, match=r"Run: openuni duplicates .* --by hash"):
        run(raw, tmp_path / "corpus", rules)
    corpus = Corpus.open(str(tmp_path / "corpus"))
    assert corpus.summary().pending == 7
    api.duplicates(corpus)
    assert run(raw, tmp_path / "corpus", rules).summary().ok == 4
    with pytest.raises(openuni.OpenUniError, match='"duplicates" has no column "is_representativ"'):
        openuni.CorpusRecipe.parse(recipe(checkpoint, "duplicates.is_representativ"))


def test_the_command_reports_and_refuses(corpus, tmp_path):
    def duplicates(*arguments):
        return cli("duplicates", corpus.store.url, *arguments)

    done = duplicates("--max-distance", "5")
    assert done.returncode == 0, done.stderr
    assert "7 clips compared: 4 representatives, 3 duplicates (largest cluster: 4 clips)" in done.stdout
    refused = duplicates("--by", "embedding", "--max-distance", "5")
    assert refused.returncode == 2
    assert 'has no option "max_distance"' in refused.stderr


def test_exports_hold_the_verdict_and_neither_hashes_nor_embeddings(corpus, tmp_path):
    api.duplicates(corpus)
    api.export(corpus, "webdataset", out=tmp_path / "set", workers=1, reporter=Reporter(quiet=True))
    text = b"".join(path.read_bytes() for path in (tmp_path / "set").rglob("*.tar"))
    assert b"is_representative" in text
    assert b'"hashes"' not in text and b'"vector"' not in text
    assert json.dumps("consistency").encode() in text
