"""Gaps: which clip has which modality, counted per collection, and asked for in `keep`."""

from pathlib import Path

import pyarrow as pa
import pytest

from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.coverage import (
    NO_COLLECTION,
    clip_ids_with_modality,
    coverage,
    modality_availability,
    stored_sizes,
)
from openuni.manifests.errors import OpenUniError
from tests.bare_corpora import bare_corpus

CLIPS = [
    {"clip_id": "a", "collection": "single", "caption": "x", "has": ["depth", "flow"]},
    {"clip_id": "b", "collection": "single", "has": ["flow"]},
    {"clip_id": "c", "collection": "koala", "caption": "y", "has": []},
    {"clip_id": "d", "collection": "koala"},
    {"clip_id": "e", "has": ["depth"]},
    {"clip_id": "f", "collection": "koala", "status": "failed"},
]


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return bare_corpus(tmp_path / "corpus", CLIPS)


def test_coverage_counts_modalities_and_captions_by_collection(corpus: Corpus) -> None:
    found = coverage(corpus)
    assert [row["collection"] for row in found] == [NO_COLLECTION, "koala", "single"]
    assert {key: value for key, value in found[2].items() if value} == {
        "collection": "single",
        "clips": 2,
        "caption": 1,
        "depth": 1,
        "flow": 2,
    }
    assert (found[1]["clips"], found[1]["caption"], found[1]["depth"]) == (2, 1, 0)  # the refused clip is not counted


def test_an_empty_corpus_covers_nothing(tmp_path: Path) -> None:
    corpus = Corpus.create(str(tmp_path / "empty"))
    assert coverage(corpus) == []
    assert stored_sizes(corpus) == []


def test_presence_follows_the_order_of_the_clips(corpus: Corpus) -> None:
    masks = modality_availability(corpus, pa.array(["e", "d", "b", "a"]))
    assert masks["depth"].to_pylist() == [True, False, False, True]
    assert masks["flow"].to_pylist() == [False, False, True, True]


def test_holders_of_what_nobody_made_are_none(corpus: Corpus) -> None:
    assert len(clip_ids_with_modality(corpus, "supplied", "no_such")) == 0


def test_select_by_modality(corpus: Corpus) -> None:
    assert corpus.kept_clip_ids("has.flow") == ["a", "b"]
    assert corpus.kept_clip_ids("has.flow and has.depth") == ["a"]
    assert corpus.kept_clip_ids("has.depth and not has.flow") == ["e"]
    assert corpus.kept_clip_ids("has.depth and collection is null") == ["e"]
    with pytest.raises(OpenUniError, match=r'"has" has no column "dept". Did you mean "depth"'):
        corpus.kept_clip_ids("has.dept")
