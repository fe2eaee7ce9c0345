"""Copies by hash: what counts as one, which clip is kept, and that order and parts change nothing."""

import shutil
from functools import partial

import numpy as np
import pyarrow.parquet as pq
import pytest

from openuni import api
from openuni.dedup.deduplicators.duplicates import MAX_CLIPS_PER_HASH
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.parts.part_files import table_bytes
from openuni.manifests.errors import OpenUniError
from tests.openuni.dedup.scored import clip, clusters_of, random_hashes, scored_corpus, turned, write_scores
from tests.small_parts import killed_at


def clusters(folder, scores, clips=None, part_rows=1000, **options):
    corpus = scored_corpus(folder, clips or [clip(name) for name in scores], scores, part_rows)
    api.duplicates(corpus, **options)
    return clusters_of(corpus)


def test_reencoded_trimmed_and_longer_copies_are_one_and_others_are_not(tmp_path):
    film = random_hashes(12, seed=1)
    scores = {
        "a": film,
        "coded": turned(film, 7),
        "trimmed": film[3:8],
        "one frame": film[4:5],
        "longer": random_hashes(6, seed=2) + film,
        "half other": film[:2] + random_hashes(2, seed=3),  # half the frames are not enough
        "worse": turned(film, 8, seed=5),
        "other": random_hashes(12, seed=4),
    }
    found = clusters(tmp_path / "corpus", scores)
    same = {"a", "coded", "trimmed", "one frame", "longer"}
    assert found == {name: "a" if name in same else name for name in scores}


def test_thresholds_are_what_they_say(tmp_path):
    film = random_hashes(10, seed=1)
    scores = {"a": film, "b": turned(film, 5), "c": film[:4] + random_hashes(6, seed=2)}
    assert clusters(tmp_path / "1", scores, max_distance=5) == {"a": "a", "b": "a", "c": "c"}
    assert clusters(tmp_path / "2", scores, max_distance=4) == {"a": "a", "b": "b", "c": "c"}
    assert clusters(tmp_path / "3", scores, min_matching_frames_share=0.4) == {"a": "a", "b": "a", "c": "a"}
    for wrong in (
        {"max_distance": 12},
        {"max_distance": -1},
        {"min_matching_frames_share": 0.0},
        {"min_matching_frames_share": 1.1},
    ):
        with pytest.raises(OpenUniError, match="Allowed"):
            api.duplicates(str(tmp_path / "1"), **wrong)


def test_the_similarity_is_one_less_the_share_of_bits(tmp_path):
    film = random_hashes(10, seed=1)
    corpus = scored_corpus(tmp_path, [clip("a"), clip("b")], {"a": film, "b": turned(film, 4)})
    report = api.duplicates(corpus)
    rows = {row["clip_id"]: row["duplicates"] for row in corpus.table("filters/duplicates").to_pylist()}
    assert rows["b"] == rows["b"] | {"cluster": "a", "is_representative": False, "clips": 2, "similarity": 1 - 4 / 64}
    assert rows["a"] == rows["a"] | {"cluster": "a", "is_representative": True, "clips": 2, "similarity": None}
    assert (report.compared, report.representative_count, report.largest, report.computed) == (2, 1, 2, True)
    assert "1 representatives, 1 duplicates" in str(report) and 'keep = "duplicates.is_representative"' in str(report)


def test_the_largest_is_kept_then_the_longest_then_the_first_by_name(tmp_path):
    film = random_hashes(4, seed=1)
    clips = [clip("c"), clip("b", seconds=9), clip("d", seconds=9), clip("small", height_px=120, seconds=99)]
    scores = {item["clip_id"]: film for item in clips}
    assert set(clusters(tmp_path / "1", scores, clips).values()) == {"b"}
    clips.append(clip("z", height_px=1080, seconds=1))
    assert set(clusters(tmp_path / "2", scores | {"z": film}, clips).values()) == {"z"}


def mixture(seed=0):
    """Thirty films, some with copies of many kinds, as hashes per clip."""
    rng = np.random.default_rng(seed)
    scores = {}
    for number in range(30):
        film = random_hashes(int(rng.integers(1, 9)), seed=100 + number)
        scores[f"{number:02}"] = film
        for copy in range(int(rng.integers(0, 4))):
            start = int(rng.integers(0, max(1, len(film) // 2)))
            scores[f"{number:02}-{copy}"] = turned(film[start:], int(rng.integers(0, 8)), seed=copy)
    return scores


def test_order_and_parts_change_nothing(tmp_path):
    scores = mixture()
    found = clusters(tmp_path / "0", scores)
    assert 30 <= len(set(found.values())) < 40 < len(found)
    assert all(kept[:2] == name[:2] for name, kept in found.items())
    for number, part_rows in enumerate((3, 17, 1000), start=1):
        order = np.random.default_rng(number).permutation(list(scores)).tolist()
        rows = np.random.default_rng(-number % 99).permutation(list(scores)).tolist()
        shuffled = {name: scores[name] for name in rows}
        assert clusters(tmp_path / str(number), shuffled, [clip(name) for name in order], part_rows) == found


def test_many_copies_are_one_cluster_and_a_logo_is_no_evidence(tmp_path):
    film, logo = random_hashes(5, seed=1), random_hashes(1, seed=2)
    scores = {f"copy-{number:03}": film if number % 2 else turned(film, 3, seed=number) for number in range(70)}
    scores |= {
        f"logo-{number:03}": logo + random_hashes(3, seed=10 + number) for number in range(3 * MAX_CLIPS_PER_HASH)
    }
    twin = "logo-000"
    scores["logo-twin"] = turned(scores[twin], 2)
    found = clusters(tmp_path / "corpus", scores)
    assert {kept for name, kept in found.items() if name.startswith("copy")} == {"copy-000"}
    assert found["logo-twin"] == twin
    assert all(kept == name for name, kept in found.items() if name.startswith("logo-0"))


def test_clips_without_contrast_are_nobodys_copies(tmp_path):
    scores = {"black": [], "dark": [], "a": random_hashes(3, seed=1), "failed": None}
    corpus = scored_corpus(tmp_path, [clip(name) for name in scores], scores)
    report = api.duplicates(corpus)
    assert clusters_of(corpus) == {"black": "black", "dark": "dark", "a": "a", "failed": None}
    assert (report.clips, report.compared, report.representative_count) == (4, 3, 3)


def test_it_needs_the_filter(tmp_path):
    corpus = scored_corpus(tmp_path, [clip("a")], {"a": None, "b": [1]})
    with pytest.raises(OpenUniError, match=r"\[filters.perceptual_hash\] to the recipe"):
        api.duplicates(corpus)
    with pytest.raises(OpenUniError, match=r"\[filters.embedding\] to the recipe"):
        api.duplicates(corpus, by="embedding")


def stamps(corpus):
    return {part: corpus.store.local(part).stat().st_mtime_ns for part in corpus.parts("filters/duplicates")}


def test_it_is_done_again_when_something_has_changed_and_only_then(tmp_path):
    film = random_hashes(4, seed=1)
    corpus = scored_corpus(tmp_path, [clip("b"), clip("c")], {"b": film, "c": film})
    assert api.duplicates(corpus).computed
    before = stamps(corpus)
    assert not api.duplicates(corpus).computed
    assert stamps(corpus) == before
    assert api.duplicates(corpus, max_distance=3).computed
    assert stamps(corpus) != before
    scored_corpus(tmp_path, [clip("a")], {"a": film})  # the corpus grows
    corpus.refresh()
    assert api.duplicates(corpus).computed
    assert clusters_of(corpus) == {"a": "a", "b": "a", "c": "a"}
    assert corpus.store.folders("filters/duplicates") == []  # nothing old is kept


def test_what_a_kill_left_is_replaced(tmp_path):
    scores = mixture()
    corpus = scored_corpus(tmp_path, [clip(name) for name in scores], scores)
    api.duplicates(corpus)
    found = clusters_of(corpus)
    (part,) = corpus.parts("filters/duplicates")
    rows = corpus.table("filters/duplicates")
    corpus.rewrite("filters/duplicates", lambda table: table.slice(0, 10))  # as if killed after the first part
    assert len(corpus.table("filters/duplicates")) == 10 < len(rows)
    assert api.duplicates(corpus).computed
    assert clusters_of(corpus) == found
    assert corpus.parts("filters/duplicates") != [part]


@pytest.mark.parametrize("parts", [1, 3])
def test_killed_at_any_change_readers_have_the_former_result_or_the_new_one(tmp_path, monkeypatch, parts):
    scores = mixture()
    corpus = scored_corpus(tmp_path / "corpus", [clip(name) for name in scores], scores)
    api.duplicates(corpus, max_distance=0)
    if parts > 1:  # as another program may have written them
        (part,) = corpus.parts("filters/duplicates")
        rows = corpus.table("filters/duplicates").replace_schema_metadata(
            pq.read_schema(corpus.store.path(part)).metadata
        )
        corpus.store.delete(part)
        for number in range(parts):
            piece = rows.slice(number * (len(rows) // parts), len(rows) // parts + (number == parts - 1) * parts)
            corpus.store.put(f"filters/duplicates/part-{number}.parquet", table_bytes(piece))
    former = clusters_of(corpus)
    whole = shutil.copytree(tmp_path / "corpus", tmp_path / "whole")
    api.duplicates(whole, max_distance=7)
    new = clusters_of(Corpus.open(str(whole)))
    assert former != new
    seen = []
    while True:
        killed = Corpus.open(shutil.copytree(tmp_path / "corpus", tmp_path / f"killed-{len(seen)}"))
        if not killed_at(len(seen) + 1, monkeypatch, partial(api.duplicates, killed, max_distance=7)):
            break
        seen.append(clusters_of(Corpus.open(killed.store.url)))
        assert seen[-1] in (former, new)
        api.duplicates(Corpus.open(killed.store.url), max_distance=7)
        assert clusters_of(Corpus.open(killed.store.url)) == new
        assert len(killed.store.names("filters/duplicates", "")) == 1
    assert former in seen and new in seen and len(seen) == 1 + parts


def test_a_planted_fault_would_be_seen(tmp_path, monkeypatch):
    """The comparison of order and parts above can fail: here ranks follow the order of storing."""
    import pyarrow.compute as pc

    film = random_hashes(4, seed=1)
    monkeypatch.setattr(pc, "sort_indices", lambda table, keys: np.arange(len(table)))
    assert set(clusters(tmp_path / "1", {"a": film, "b": film}).values()) == {"a"}
    assert set(clusters(tmp_path / "2", {"b": film, "a": film}).values()) == {"b"}


def test_scores_that_are_written_again_count(tmp_path):
    corpus = scored_corpus(tmp_path, [clip("a"), clip("b")], {"a": random_hashes(4, seed=1)})
    api.duplicates(corpus)
    assert clusters_of(corpus) == {"a": "a", "b": None}
    write_scores(corpus, {"b": random_hashes(4, seed=1)})
    api.duplicates(corpus)
    assert clusters_of(corpus) == {"a": "a", "b": "a"}
