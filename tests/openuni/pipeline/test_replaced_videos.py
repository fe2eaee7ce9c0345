"""A video that another one with the same timestamps and size replaces after ingest is never read as the old one."""

import shutil

import pyarrow.parquet as pq
import pytest

import openuni
from openuni.console.progress import Reporter
from openuni.manifests.contracts.decoded_clip import decode
from openuni.manifests.video.probe import make_clip, matching_mp4_bytes, probe
from openuni.manifests.video.video_errors import SourceChanged
from tests.raw_clips import write_clips

RECIPE = {"filters": {"luminance": {}}}


def run(recipe, raw, out):
    return openuni.run(recipe, raw, out=out, reporter=Reporter(quiet=True))


def test_another_operator_refuses_a_replaced_video(tmp_path):
    first, second = write_clips(tmp_path / "raw", 2)
    corpus = run(RECIPE, tmp_path / "raw", tmp_path / "corpus")
    assert all(len(clip.clip.content_hash) == 16 for clip in corpus)
    shutil.copy(second, first)
    again = run(RECIPE | {"annotators": {"dis": {"preset": "ultrafast"}}}, tmp_path / "raw", tmp_path / "corpus")
    assert [(failure.operator, failure.reason) for failure in again.summary().failed] == [("dis", "SourceChanged")]
    assert again.summary().ok == 1
    (clip,) = (clip.clip for clip in again if clip.clip.source == str(first))
    assert matching_mp4_bytes(clip) is None


def test_clips_within_a_video_have_hashes_of_their_own(tmp_path):
    first, second = write_clips(tmp_path / "raw", 2, frames=30)
    clip = make_clip(str(first), probe(str(first)), 14, 20)
    decode(clip)
    shutil.copy(second, first)
    with pytest.raises(SourceChanged, match=r"clip-000\.mp4 changed after ingest \(other frames\)"):
        decode(clip)


def test_corpora_without_hashes_are_read_and_extended(tmp_path):
    write_clips(tmp_path / "raw", 2)
    corpus = run(RECIPE, tmp_path / "raw", tmp_path / "corpus")
    (part,) = corpus.parts("clips")
    path = corpus.store.path(part)
    pq.write_table(pq.read_table(path).drop_columns(["content_hash"]), path)
    write_clips(tmp_path / "raw", 3)
    again = run(RECIPE | {"annotators": {"dis": {"preset": "ultrafast"}}}, tmp_path / "raw", tmp_path / "corpus")
    assert [clip.clip.content_hash is None for clip in again] == [True, True, False] and again.summary().ok == 3
