"""Splits: by origin, even over strata, decided by names and seed alone, and kept as the corpus grows."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from openuni.manifests.corpus.splits import assign
from openuni.manifests.errors import OpenUniError
from tests.bare_corpora import bare_corpus, splits_of

SHARES = {"validation": 0.1, "test": 0.1}


def clips_of(origins: range, each: int = 3, **fields: Any) -> list[dict[str, Any]]:
    """Clips "ORIGIN-NUMBER"; every third origin has flow besides depth."""
    return [
        {
            "clip_id": f"{fields.get('collection', '')}{origin}-{number}",
            "origin": f"scene {origin}",
            "has": ["depth", "flow"] if origin % 3 == 0 else ["depth"],
            **fields,
        }
        for origin in origins
        for number in range(each)
    ]


def test_no_origin_is_parted_and_shares_hold_in_every_stratum(tmp_path: Path) -> None:
    corpus = bare_corpus(tmp_path / "c", clips_of(range(300)))
    counts = assign(corpus, SHARES)
    splits = splits_of(corpus)
    assert counts == Counter(splits.values())
    by_origin: dict[str, set[str | None]] = {}
    for clip, split in splits.items():
        by_origin.setdefault(clip.split("-")[0], set()).add(split)
    assert all(len(found) == 1 for found in by_origin.values())
    for with_flow in (True, False):
        mine = Counter(splits[f"{n}-0"] for n in range(300) if (n % 3 == 0) == with_flow)
        total = sum(mine.values())
        assert abs(mine["validation"] - 0.1 * total) <= 2  # origins
        assert abs(mine["test"] - 0.1 * total) <= 2


def test_small_collections_together_get_their_share(tmp_path: Path) -> None:
    clips = [clip for number in range(40) for clip in clips_of(range(2), 1, collection=f"set{number}_")]
    counts = assign(bare_corpus(tmp_path / "c", clips), {"validation": 0.1})
    assert 6 <= counts["validation"] <= 10  # of 80, though no collection has ten clips


def test_a_clip_without_origin_goes_with_its_source(tmp_path: Path) -> None:
    clips = [{"clip_id": f"{n}", "source": f"video {n // 5}"} for n in range(100)]
    corpus = bare_corpus(tmp_path / "c", clips)
    assign(corpus, {"validation": 0.3})
    splits = splits_of(corpus)
    assert all(len({splits[f"{n}"] for n in range(first, first + 5)}) == 1 for first in range(0, 100, 5))
    assert set(splits.values()) == {"train", "validation"}


def test_the_order_of_clips_and_parts_does_not_matter_but_the_seed_does(tmp_path: Path) -> None:
    clips = clips_of(range(60))
    one = bare_corpus(tmp_path / "one", clips)
    bare_corpus(tmp_path / "two", clips[90:][::-1])
    two = bare_corpus(tmp_path / "two", clips[:90])
    three = bare_corpus(tmp_path / "three", clips)
    assign(one, SHARES)
    assign(two, SHARES)
    assign(three, SHARES, seed=1)
    assert splits_of(one) == splits_of(two)
    assert splits_of(one) != splits_of(three)


def test_growing_moves_no_clip_and_keeps_the_shares(tmp_path: Path) -> None:
    corpus = bare_corpus(tmp_path / "c", clips_of(range(50)))
    assign(corpus, SHARES)
    before = splits_of(corpus)
    corpus = bare_corpus(tmp_path / "c", clips_of(range(50, 250)))
    counts = assign(corpus, SHARES)
    after = splits_of(corpus)
    assert {clip: after[clip] for clip in before} == before
    assert abs(counts["test"] - 75) <= 6
    assert assign(corpus, SHARES) == counts  # again: nothing to do
    assert splits_of(corpus) == after


def test_a_new_clip_of_a_known_origin_joins_it(tmp_path: Path) -> None:
    corpus = bare_corpus(tmp_path / "c", clips_of(range(30)))
    assign(corpus, SHARES)
    more = [clip | {"clip_id": f"{clip['clip_id']}-more"} for clip in clips_of(range(30), each=1)]
    corpus = bare_corpus(tmp_path / "c", more)
    assign(corpus, SHARES)
    splits = splits_of(corpus)
    assert all(splits[f"{n}-0-more"] == splits[f"{n}-0"] for n in range(30))


def test_splits_that_came_with_the_set_stay(tmp_path: Path) -> None:
    corpus = bare_corpus(tmp_path / "c", clips_of(range(20), split="test") + clips_of(range(20, 40)))
    assign(corpus, SHARES)
    splits = splits_of(corpus)
    assert all(splits[f"{n}-0"] == "test" for n in range(20))
    assert "test" not in {splits[f"{n}-0"] for n in range(20, 40)}  # there are more than enough
    assign(corpus, SHARES, anew=True)
    assert Counter(splits_of(corpus).values())["test"] <= 15


def test_equal_names_of_two_collections_are_two_origins(tmp_path: Path) -> None:
    clips = clips_of(range(3), collection="a", split="train") + clips_of(range(3), collection="b", split="test")
    corpus = bare_corpus(tmp_path / "c", clips)
    assert assign(corpus, {"test": 0.5}) == {"train": 9, "test": 9}


def test_refused_clips_have_no_split(tmp_path: Path) -> None:
    corpus = bare_corpus(tmp_path / "c", [*clips_of(range(5)), {"clip_id": "bad", "status": "failed"}])
    assert sum(assign(corpus, SHARES).values()) == 15
    assert splits_of(corpus)["bad"] is None


def test_a_parted_origin_is_refused(tmp_path: Path) -> None:
    clips = clips_of(range(4))
    corpus = bare_corpus(tmp_path / "c", [clips[0] | {"split": "train"}, clips[1] | {"split": "test"}, *clips[2:]])
    with pytest.raises(OpenUniError, match=r'origin "scene 0" have different splits, "train" and "test".*--reassign'):
        assign(corpus, SHARES)
    assert splits_of(corpus)["3-0"] is None
    assign(corpus, SHARES, anew=True)
    assert len({splits_of(corpus)[f"0-{n}"] for n in range(3)}) == 1


@pytest.mark.parametrize("shares", [{"train": 0.9}, {"test": 1.0}, {"test": -0.1}, {"a": 0.5, "b": 0.5}, {"": 0.1}])
def test_shares_must_be_shares(tmp_path: Path, shares: dict[str, float]) -> None:
    with pytest.raises(OpenUniError, match="Allowed: fractions"):
        assign(bare_corpus(tmp_path / "c", clips_of(range(2))), shares)


def test_an_empty_corpus_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(OpenUniError, match="has no clips to assign splits to"):
        assign(bare_corpus(tmp_path / "c", []), SHARES)
