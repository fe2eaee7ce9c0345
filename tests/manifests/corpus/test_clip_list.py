"""Clips by number over several parts, with sources that failed between them."""

import dataclasses

import numpy as np
import pytest

from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.schema import clip_schema
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.errors import OpenUniError
from openuni.manifests.video.clip import Clip, clip_id

FAILED = {0, 3, 5}
COUNT = 9
PARTS = [(0, 4), (4, 6), (6, 9)]


def row(number: int) -> dict:
    clip = DecodedClip.from_frames(np.zeros((3, 16, 16, 3), np.uint8)).clip
    clip = dataclasses.replace(clip, clip_id=name(number), source=f"{number}.mp4", caption=f"clip {number}")
    if number in FAILED:
        empty = dict.fromkeys(Clip.__dataclass_fields__)
        return empty | {"clip_id": clip.clip_id, "source": clip.source, "status": "failed", "error": "NotAVideo: it"}
    return dataclasses.asdict(clip) | {"status": "ok", "error": None}


def name(number: int) -> str:
    return clip_id(f"{number}.mp4", 0, 3, "")


@pytest.fixture
def corpus(tmp_path):
    made = Corpus.create(str(tmp_path / "corpus"))
    for start, stop in PARTS:
        writer = made.writer("clips", clip_schema(), "1")
        for number in range(start, stop):
            writer.commit(row(number))
        writer.finish()
    assert len(made.parts("clips")) == 3
    return made


ACCEPTED = [number for number in range(COUNT) if number not in FAILED]


def test_positions_ids_and_iteration_agree(corpus):
    assert len(corpus) == len(ACCEPTED)
    expected = [f"clip {number}" for number in ACCEPTED]
    assert [clip.caption for clip in corpus] == expected
    assert [corpus[position].caption for position in range(len(corpus))] == expected
    assert [corpus[name(number)].caption for number in ACCEPTED] == expected
    assert corpus[-1].caption == "clip 8"
    assert corpus.clips.column("caption").to_pylist() == expected
    with pytest.raises(IndexError):
        corpus[6]
    with pytest.raises(KeyError):
        corpus[name(0)]  # its source failed


def test_rows_come_in_order_whatever_parts_they_lie_in(corpus):
    wanted = np.array([1, 3, 4, 8], np.int64)
    tables = list(corpus.clip_list.tables(wanted))
    assert [table.column("source").to_pylist() for table in tables] == [["1.mp4", "3.mp4"], ["4.mp4"], ["8.mp4"]]
    assert list(corpus.clip_list.tables(np.array([], np.int64))) == []


def test_an_empty_corpus_has_no_clips(tmp_path):
    corpus = Corpus.create(str(tmp_path / "corpus"))
    assert len(corpus) == 0 and list(corpus) == [] and corpus.find("clips", "x") is None


def test_a_changed_list_is_noticed_and_refreshed(corpus):
    assert len(corpus) == 6
    Corpus.open(corpus.store.url).delete_by_status("clips", ["failed"])  # by another process
    with pytest.raises(OpenUniError, match=r"call refresh\(\)"):
        corpus[0]  # another clip stands there now
    corpus.refresh()
    assert corpus[0].caption == "clip 1"


def test_find_gives_the_row_of_one_clip(corpus):
    assert corpus.find("clips", name(7))["caption"] == "clip 7"
    assert corpus.find("clips", name(0))["error"] == "NotAVideo: it"
    assert corpus.find("clips", "0" * 32) is None
