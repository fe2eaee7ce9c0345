"""What passes and what became of clips, when every group has an order and parts of its own."""

import dataclasses
import random
from typing import Annotated, NamedTuple

import numpy as np
import pyarrow as pa
import pytest

from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.schema import OUTCOME_FIELDS, clip_schema
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.video.clip import clip_id

COUNT = 40
IDS = [clip_id(f"{number}.mp4", 0, 3, "") for number in range(COUNT)]


class Place(NamedTuple):
    """A score within a score."""

    left: Annotated[float, "pixels"]


STRUCT = pa.struct(
    [*OUTCOME_FIELDS, pa.field("speed", pa.float64()), pa.field("place", pa.struct([("left", pa.float64())]))]
)


def group_schema(name: str) -> pa.Schema:
    return pa.schema([pa.field("clip_id", pa.string()), pa.field(name, STRUCT)])


def put(corpus: Corpus, group: str, rows: dict[int, dict]) -> None:
    """Rows in an order of their own, in two parts."""
    name = group.split("/")[1]
    numbers = sorted(rows)
    random.Random(group).shuffle(numbers)
    for half in (numbers[::2], numbers[1::2]):
        writer = corpus.writer(group, group_schema(name), "1")
        for number in half:
            writer.commit({"clip_id": IDS[number], name: dict.fromkeys(STRUCT.names) | rows[number]})
        writer.finish()


def scored(number: int) -> dict:
    return {"status": "ok", "speed": number / COUNT, "place": {"left": float(number)}}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    made = Corpus.create(str(tmp_path_factory.mktemp("fates") / "corpus"))
    writer = made.writer("clips", clip_schema(), "1")
    clip = DecodedClip.from_frames(np.zeros((3, 16, 16, 3), np.uint8)).clip
    for number, name in enumerate(IDS):
        fields = dataclasses.asdict(clip) | {"clip_id": name, "source": f"{number}.mp4", "width_px": 100 + number}
        writer.commit(fields | {"status": "ok", "error": None})
    writer.finish()
    failed = {"status": "failed", "error": "ClipError: frame 7: is grey"}
    put(made, "filters/motion", {number: failed if number == 30 else scored(number) for number in range(COUNT)})
    put(made, "annotations/dis", {number: failed if number == 35 else scored(number) for number in range(20, 38)})
    made.save_record(keep="motion.speed >= 0.5", filters=["motion"], annotators=["dis"])
    return made


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        ("", range(COUNT)),
        ("motion.speed >= 0.5", [number for number in range(20, COUNT) if number != 30]),
        ("motion.place.left < 3", range(3)),
        ("motion.status = 'failed'", [30]),
        ("motion is not null and width_px > 137", [38, 39]),
        ("struct_extract(motion, 'speed') < 0.05", range(2)),
        ("source = '17.mp4'", [17]),
    ],
)
def test_clips_that_pass_come_in_order_of_ingest(corpus, keep, expected):
    assert corpus.kept_clip_ids(keep) == [IDS[number] for number in expected]


def test_every_clip_has_one_fate(corpus):
    summary = corpus.summary()
    assert (summary.clips, summary.ok, summary.pending) == (COUNT, 16, 2)  # of 20: two failed, two not annotated yet
    assert [(drop.rule, drop.clips) for drop in summary.dropped] == [("motion.speed >= 0.5", 20)]
    assert {failure[:3] for failure in summary.failed} == {("motion", "ClipError", 1), ("dis", "ClipError", 1)}
    ids = corpus.table("clips")["clip_id"].to_pylist()
    assert {failure[3:] for failure in summary.failed} == {(ids[at], "frame 7: is grey") for at in (30, 35)}


def test_a_stricter_rule_moves_clips_from_failed_to_dropped(corpus):
    corpus.save_record(keep="motion.speed >= 0.9")
    summary = corpus.summary()
    corpus.save_record(keep="motion.speed >= 0.5")
    assert (summary.ok, summary.pending, summary.dropped[0].clips) == (2, 2, 35)
    assert [failure[:3] for failure in summary.failed] == [("motion", "ClipError", 1)]


def test_what_is_unavailable_is_no_failure(tmp_path, corpus):
    made = Corpus.create(str(tmp_path / "corpus"))
    writer = made.writer("clips", clip_schema(), "1")
    for row in corpus.table("clips").to_pylist()[:6]:
        writer.commit(row)
    writer.finish()
    lacks, failed = {"status": "unavailable", "error": "Unavailable: no vectors"}, {"status": "failed", "error": "E: x"}
    put(made, "filters/motion", {0: lacks, 1: failed} | {number: scored(number) for number in (2, 3, 4, 5)})
    put(made, "annotations/dis", {0: scored(0), 2: lacks, 3: failed, 4: scored(4), 5: scored(5)})
    made.save_record(keep="", filters=["motion"], annotators=["dis"])
    summary = made.summary()
    assert (summary.ok, summary.pending, summary.clips) == (4, 0, 6)  # 0, 2, 4 and 5
    assert {failure[:3] for failure in summary.failed} == {("motion", "E", 1), ("dis", "E", 1)}
    assert [tuple(absence) for absence in summary.unavailable] == [("motion", 1), ("dis", 1)]
    made.save_record(keep="motion.speed >= 0", filters=["motion"], annotators=["dis"])
    assert made.summary().dropped[0].clips == 1
    assert made.kept_clip_ids("motion.speed >= 0") == IDS[2:6]
    assert made.kept_clip_ids("not motion.speed < 0") == IDS[2:6]  # null passes neither a rule nor its opposite


def test_of_clips_that_failed_alike_the_first_by_id_is_shown(tmp_path, corpus):
    made = Corpus.create(str(tmp_path / "corpus"))
    writer = made.writer("clips", clip_schema(), "1")
    for row in corpus.table("clips").to_pylist()[:6]:
        writer.commit(row)
    writer.finish()
    failed = {"status": "failed", "error": "E: x"}
    put(made, "filters/motion", {number: failed for number in range(6)})
    made.save_record(keep="", filters=["motion"], annotators=[])
    assert [tuple(failure) for failure in made.summary().failed] == [("motion", "E", 6, min(IDS[:6]), "x")]
