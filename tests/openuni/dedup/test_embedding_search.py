"""The search for similar embeddings equals brute force, whatever its tiles, bounds and order of work."""

import numpy as np
import pytest

from openuni.dedup.deduplicators import _embedding_search
from openuni.dedup.deduplicators._embedding_search import EmbeddingSearch, _as_float16, _bound_rows

MIN_SIMILARITY = 0.9


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def planted(count, seed, numbers=48, common=1.0):
    """float16 [count, numbers] in random order: singles, groups of up to 200 around one, exact repeats, chains.

    `common`: length of a part that all vectors share; the more, the less do bounds tell.
    """
    rng = np.random.default_rng(seed)
    scale = np.arange(1, numbers + 1) ** -0.4
    vectors = unit(unit(rng.normal(size=(count, numbers)) * scale) + common * unit(rng.normal(size=numbers)))

    def near(vector, cosine):
        other = rng.normal(size=numbers)
        other = unit(other - (other @ vector) * vector)
        return cosine * vector + (1 - cosine**2) ** 0.5 * other

    at = 0
    for size in (2, 2, 5, 50, 200):
        for number in range(1, size):
            vectors[at + number] = near(vectors[at], (1.0, 0.99, 0.92, 0.901, 0.899, 0.85)[number % 6])
        at += size
    for number in range(at, at + 20):  # a chain
        vectors[number + 1] = near(vectors[number], 0.95)
    vectors[at + 30] = 0
    return rng.permutation(vectors).astype(np.float16)


def by_brute_force(vectors, min_similarity=MIN_SIMILARITY):
    """The rule, word by word: representative int64 [N], similarity float64 [N]."""
    exact = vectors.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=1)
    cosines = exact @ exact.T / np.maximum(lengths[:, None] * lengths, 1e-30)
    representative, similarity, kept = np.arange(len(vectors)), np.full(len(vectors), np.nan), []
    for clip in range(len(vectors)):
        near = cosines[clip, kept]
        if len(near) and near.max() >= min_similarity:
            representative[clip], similarity[clip] = kept[int(near.argmax())], near.max()
        else:
            kept.append(clip)
    return representative, similarity


def searched(vectors, min_similarity=MIN_SIMILARITY):
    return EmbeddingSearch(vectors, min_similarity).run(lambda share: None)


def set_up(monkeypatch, block=100, tile=256, widths=(8,), share=1.0):
    """Sizes, and bounds of that many columns, whether they pay here or not; `share`: see `MAX_COSINE_SHARE`."""
    values = {"BLOCK_ROWS": block, "TILE_ROWS": tile, "WIDTHS": widths, "MAX_COSINE_SHARE": share, "COSINE_COST": 0.0}
    for name, value in values.items():
        monkeypatch.setattr(_embedding_search, name, value)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("common", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("widths", [(8,), (32,), ()], ids=["8 columns", "32 columns", "no bounds"])
def test_it_equals_brute_force(monkeypatch, seed, common, widths):
    set_up(monkeypatch, widths=widths)
    vectors = planted(1500, seed, common=common)
    search = EmbeddingSearch(vectors, MIN_SIMILARITY)
    assert (search.bounds is None) == (not widths)
    found, (representative, similarity) = search.run(lambda share: None), by_brute_force(vectors)
    assert np.array_equal(found.representative, representative)
    np.testing.assert_allclose(found.similarity, similarity, atol=1e-12)
    assert (representative != np.arange(1500)).sum() > 50


@pytest.mark.slow
def test_it_equals_brute_force_on_five_thousand_as_they_are_compared_by_default():
    vectors = planted(5000, seed=11, numbers=512)
    search = EmbeddingSearch(vectors, MIN_SIMILARITY)
    assert search.bounds is not None
    found, (representative, similarity) = search.run(lambda share: None), by_brute_force(vectors)
    assert np.array_equal(found.representative, representative)
    np.testing.assert_allclose(found.similarity, similarity, atol=1e-12)


def test_tiles_and_bounds_change_nothing(monkeypatch):
    vectors = planted(1200, seed=5)
    first = searched(vectors)
    for case in [(7, 64, (32,), 1.0), (64, 7, (8,), 1 / 256), (500, 333, (32,), 0.0), (1200, 100, (), 1.0)]:
        set_up(monkeypatch, *case)
        found = searched(vectors)
        assert np.array_equal(found.representative, first.representative)
        assert np.array_equal(found.similarity, first.similarity, equal_nan=True)  # to the last bit


def test_bounds_are_bounds():
    rng = np.random.default_rng(0)
    units = unit(planted(600, seed=1).astype(np.float32) + 1e-6)
    components = np.linalg.qr(rng.normal(size=(48, 48)))[0].astype(np.float32)
    cosines = units @ units.T
    for width in (0, 1, 8, 31, 48):
        rows = _bound_rows(units, components[:, :width])
        assert (rows @ rows.T - cosines).min() > -_embedding_search.SLACK / 10
    np.testing.assert_allclose(rows @ rows.T, cosines, atol=1e-5)  # with all components the cosine itself


def test_only_equal_vectors_reach_one():
    vectors = planted(300, seed=2)
    vectors[200:210] = vectors[100:110]
    vectors[250] = vectors[150]
    vectors[250, 3] = np.nextafter(vectors[250, 3], np.float16(1))
    found = searched(vectors, min_similarity=1.0)
    same = [clip for clip in range(300) if any(np.array_equal(vectors[clip], vectors[one]) for one in range(clip))]
    same = [clip for clip in same if vectors[clip].any()]
    assert np.flatnonzero(found.representative != np.arange(300)).tolist() == same
    assert set(same) >= set(range(200, 210)) and 250 not in same
    assert (found.similarity[same] == 1).all()


def test_stored_values_are_kept_and_others_become_unit_vectors():
    values = np.array([[0.6, 0.8], [0.59999, 0.8], [1e6, 0], [np.nan, 1], [np.inf, 1], [0, 0]], np.float32)
    values[0] = values[0].astype(np.float16)
    found = _as_float16(values)
    assert np.array_equal(found[0].astype(np.float32), values[0])
    assert np.abs(np.linalg.norm(found[1].astype(float)) - 1) < 1e-3
    assert found[2:].tolist() == [[1, 0], [0, 0], [0, 0], [0, 0]]
