"""Semantic duplicates from stored embeddings, from corpora to rows."""

import io

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from openuni import api
from openuni.console.progress import Reporter, ShareProgress
from openuni.dedup.deduplicator import deduplicator_by
from openuni.dedup.deduplicators import _embedding_search
from openuni.filters.embedding import Embedding
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.errors import OpenUniError
from tests.benchmarks.duplicates import put_clips, put_scores
from tests.benchmarks.manifests import measure
from tests.openuni.dedup.scored import clip, clusters_of, scored_corpus

WIDTH = 64


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def near(vector, cosine, rng):
    """A unit vector with exactly that cosine to `vector`."""
    other = rng.normal(size=len(vector))
    across = unit(other - (other @ vector) * vector)
    return cosine * vector + (1 - cosine**2) ** 0.5 * across


def planted(count, seed=0):
    """Names -> vectors: `count` of their own, and for every fifth of them two copies with cosine 0.99."""
    rng = np.random.default_rng(seed)
    found = {f"own-{number:04}": unit(rng.normal(size=WIDTH)) for number in range(count)}
    for number in range(0, count, 5):
        for copy in range(2):
            found[f"x{copy}-of-{number:04}"] = near(found[f"own-{number:04}"], 0.99, rng)
    return found


def expected(names):
    return {name: name if name.startswith("own") else f"own-{name[-4:]}" for name in names}


def test_planted_copies_are_found_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(_embedding_search, "READ_ROWS", 64)  # several batches
    monkeypatch.setattr(_embedding_search, "BLOCK_ROWS", 50)
    monkeypatch.setattr(_embedding_search, "TILE_ROWS", 80)
    vectors = planted(400)
    corpus = scored_corpus(tmp_path / "corpus", [clip(name) for name in vectors], vectors, part_rows=170)
    report = api.duplicates(corpus, by="embedding")
    assert clusters_of(corpus, "semantic_duplicates") == expected(vectors)
    assert (report.clips, report.compared, report.representative_count, report.largest) == (560, 560, 400, 3)
    row = corpus.find("filters/semantic_duplicates", "x0-of-0005")["semantic_duplicates"]
    assert row["similarity"] == pytest.approx(0.99, abs=2e-3)
    assert (row["is_representative"], row["clips"], row["status"]) == (False, 3, "ok")


def test_many_copies_are_one_cluster(tmp_path):
    rng = np.random.default_rng(0)
    vector = unit(rng.normal(size=WIDTH))
    vectors = {f"{number:03}": near(vector, 0.999, rng) for number in range(80)}
    corpus = scored_corpus(tmp_path / "corpus", [clip(name) for name in vectors], vectors)
    assert set(clusters_of_after(corpus).values()) == {"000"}


def clusters_of_after(corpus, **options):
    api.duplicates(corpus, by="embedding", **options)
    return clusters_of(corpus, "semantic_duplicates")


def test_the_threshold_is_what_it_says(tmp_path):
    rng = np.random.default_rng(1)
    vector = unit(rng.normal(size=WIDTH))
    vectors = {"a": vector, "b": near(vector, 0.93, rng), "c": near(vector, 0.97, rng)}
    corpus = scored_corpus(tmp_path / "corpus", [clip(name) for name in vectors], vectors)
    assert clusters_of_after(corpus, min_similarity=0.95) == {"a": "a", "b": "b", "c": "a"}
    assert clusters_of_after(corpus, min_similarity=0.9) == {"a": "a", "b": "a", "c": "a"}
    assert clusters_of_after(corpus, min_similarity=0.98) == {"a": "a", "b": "b", "c": "c"}
    with pytest.raises(OpenUniError, match="Allowed"):
        api.duplicates(corpus, by="embedding", min_similarity=1.5)


def test_clips_without_a_vector_are_unavailable_and_no_duplicates(tmp_path):
    vectors = {"a": unit(np.ones(WIDTH)), "failed": None, "empty": np.array([]), "b": unit(np.ones(WIDTH))}
    corpus = scored_corpus(tmp_path / "corpus", [clip(name) for name in [*vectors, "new"]], vectors)
    assert clusters_of_after(corpus) == {"a": "a", "b": "a", "failed": None, "empty": None, "new": None}
    row = corpus.find("filters/semantic_duplicates", "new")["semantic_duplicates"]
    assert (row["status"], row["error"]) == ("unavailable", "embedding has no result for this clip")


def test_vectors_of_two_networks_are_refused(tmp_path):
    vectors = {"a": unit(np.ones(8)), "b": unit(np.ones(9))}
    corpus = scored_corpus(tmp_path / "corpus", [clip(name) for name in vectors], vectors)
    with pytest.raises(OpenUniError, match="different lengths"):
        api.duplicates(corpus, by="embedding")


def test_what_duplicates_go_by_is_named():
    with pytest.raises(OpenUniError, match=r'deduplication method "embeding" is not known\. Did you mean "embedding"'):
        deduplicator_by("embeding")


def test_row_order_and_parts_change_nothing(tmp_path):
    vectors = planted(60)
    names = list(vectors)
    found = []
    for number, part_rows in enumerate((1000, 17, 5)):
        order = np.random.default_rng(number).permutation(names).tolist() if number else names
        stored = {name: vectors[name] for name in np.random.default_rng(-number % 99).permutation(names).tolist()}
        corpus = scored_corpus(tmp_path / str(number), [clip(name) for name in order], stored, part_rows)
        api.duplicates(corpus, by="embedding")
        rows = corpus.table("filters/semantic_duplicates").to_pylist()
        found.append({row["clip_id"]: row["semantic_duplicates"] for row in rows})
    assert found[0] == found[1] == found[2]


def test_a_search_that_is_interrupted_leaves_the_last_result(tmp_path, monkeypatch):
    vectors = planted(100)
    corpus = scored_corpus(tmp_path / "corpus", [clip(name) for name in vectors], vectors)
    api.duplicates(corpus, by="embedding")
    before = corpus.table("filters/semantic_duplicates")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(ShareProgress, "__call__", interrupt)
    with pytest.raises(KeyboardInterrupt):
        api.duplicates(corpus, by="embedding", min_similarity=0.5)
    assert corpus.table("filters/semantic_duplicates").equals(before)
    monkeypatch.undo()
    assert not api.duplicates(corpus, by="embedding").computed
    assert len(corpus.parts("filters/semantic_duplicates")) == 1  # written at once


def test_progress_has_an_eta(tmp_path, monkeypatch):
    monkeypatch.setattr("openuni.console.progress.LOG_EVERY_S", 0)
    monkeypatch.setattr(_embedding_search, "BLOCK_ROWS", 100)
    vectors = planted(300)
    corpus = scored_corpus(tmp_path / "corpus", [clip(name) for name in vectors], vectors)
    shown = io.StringIO()
    api.duplicates(corpus, by="embedding", reporter=Reporter(Console(file=shown)))
    lines = shown.getvalue().splitlines()
    assert lines[0].startswith("semantic_duplicates: 6% done, ETA ")  # the later a clip, the more it is compared with
    assert lines[-1] == "semantic_duplicates: 100% done, ETA 0 s"


@pytest.mark.slow
def test_a_hundred_thousand_are_found_in_bounded_memory(tmp_path):
    rng = np.random.default_rng(0)
    corpus = Corpus.create(str(tmp_path / "corpus"))
    for start in range(0, 100_000, 20_000):
        ids = pa.array([f"{number:06}" for number in range(start, start + 20_000)])
        flat = unit(rng.standard_normal((20_000, 256))).astype(np.float16).astype(np.float32)
        flat[19_000:] = flat[:1000]
        put_clips(corpus, start, ids)
        put_scores(corpus, Embedding, start, ids, pa.array(flat.ravel()), 256)
    row = measure("duplicates", "-m", "openuni", "duplicates", corpus.store.url, "--by", "embedding")
    assert len(set(clusters_of(corpus, "semantic_duplicates").values())) == 95_000
    assert row.peak_mb < 1000  # 750 to 860 measured, mostly imports and buffers; what grows with pairs takes gigabytes
