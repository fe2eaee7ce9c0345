"""Semantic duplicates from stored embeddings, exactly and through the index."""

import numpy as np
import pytest

from openuni import api
from openuni.dedup.deduplicator import deduplicator_by
from openuni.dedup.deduplicators import _embedding_search
from openuni.manifests.errors import OpenUniError
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


@pytest.mark.parametrize("max_exact", [20_000, 100], ids=["all pairs", "index"])
def test_planted_copies_are_found_and_nothing_else(tmp_path, monkeypatch, max_exact):
    monkeypatch.setattr(_embedding_search, "MAX_EXACT", max_exact)
    monkeypatch.setattr(_embedding_search, "BATCH_ROWS", 64)  # several batches
    vectors = planted(400)
    corpus = scored_corpus(tmp_path / "corpus", [clip(name) for name in vectors], vectors, part_rows=170)
    report = api.duplicates(corpus, by="embedding")
    assert clusters_of(corpus, "semantic_duplicates") == expected(vectors)
    assert (report.clips, report.compared, report.representative_count, report.largest) == (560, 560, 400, 3)
    row = corpus.find("filters/semantic_duplicates", "x0-of-0005")["semantic_duplicates"]
    assert row["similarity"] == pytest.approx(0.99, abs=2e-3)
    assert (row["is_representative"], row["clips"], row["status"]) == (False, 3, "ok")


@pytest.mark.parametrize("max_exact", [20_000, 5], ids=["all pairs", "index"])
def test_more_copies_than_neighbours_are_one_cluster(tmp_path, monkeypatch, max_exact):
    monkeypatch.setattr(_embedding_search, "MAX_EXACT", max_exact)
    rng = np.random.default_rng(0)
    vector = unit(rng.normal(size=WIDTH))
    vectors = {f"{number:03}": near(vector, 0.999, rng) for number in range(5 * _embedding_search.NEIGHBOURS)}
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
