"""Annotators that start from maps of others: one decode, the stored map whenever they run, and all anew when it is."""

import json
from pathlib import Path

import pytest

import openuni
from openuni.config.recipe import CorpusRecipe
from openuni.console.progress import Reporter
from openuni.manifests.errors import OpenUniError
from openuni.pipeline.planning.map_sources import MapSource, required_maps
from openuni.pipeline.scope import RunScope
from tests.raw_clips import write_clips

MOVING = "tests.operators.moving"
DIS = {"preset": "ultrafast"}


def run(raw, out, annotators, short_side_px=32, **scope):
    recipe = {"work": {"short_side_px": short_side_px}, "annotators": annotators}
    return openuni.run(recipe, raw, out=out, scope=RunScope(**scope), reporter=Reporter(quiet=True))


def rows(corpus, name=MOVING):
    return {clip.clip_id: clip.row(name) for clip in corpus}


def phases(corpus):
    runs = sorted(Path(corpus.store.root, "runs").glob("*.json"))
    return [phase for path in runs for phase in json.loads(path.read_text())["phases"]]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    write_clips(folder, 3)
    return folder


@pytest.fixture(scope="module")
def together(raw, tmp_path_factory):
    # the one that waits is named first: the order in the recipe says nothing
    return run(raw, tmp_path_factory.mktemp("made") / "corpus", {MOVING: {}, "dis": DIS})


def test_it_sees_the_flow_as_it_is_stored(together):
    for clip in together:
        flow = clip.modality("flow", "dis").array
        assert clip.row(MOVING)["flow_sum"] == flow.sum(dtype="float64")
        assert (clip.modality("segmentation").array[..., 0] > 0).sum() == (
            (flow[..., 0] ** 2 + flow[..., 1] ** 2) > 0.25
        ).sum()


def test_each_clip_is_decoded_once_for_both(together):
    assert [(phase["planned"], phase["decodes"]) for phase in phases(together) if "dis" in phase["phase"]] == [(3, 3)]


def test_in_a_later_run_it_gives_the_same(together, raw, tmp_path):
    corpus = run(raw, tmp_path / "corpus", {"dis": DIS})
    corpus = run(raw, tmp_path / "corpus", {"dis": DIS, MOVING: {}})
    for clip_id, row in rows(corpus).items():
        expected = rows(together)[clip_id]
        same = ("status", "version", "flow_sum")
        assert [row[key] for key in same] == [expected[key] for key in same]
        assert row["segmentation"]["xxh3"] == expected["segmentation"]["xxh3"]


def test_from_a_corpus_alone_without_the_maker_in_the_recipe(together, raw, tmp_path):
    run(raw, tmp_path / "corpus", {"dis": DIS})
    corpus = run([], tmp_path / "corpus", {MOVING: {}})
    found = {clip_id: row["flow_sum"] for clip_id, row in rows(corpus).items()}
    assert found == {clip_id: row["flow_sum"] for clip_id, row in rows(together).items()}


def test_another_flow_makes_it_anew(raw, tmp_path):
    before = rows(run(raw, tmp_path / "corpus", {"dis": DIS, MOVING: {}}))
    after = rows(run(raw, tmp_path / "corpus", {"dis": {"preset": "fast"}, MOVING: {}}))
    assert {row["version"] for row in before.values()}.isdisjoint(row["version"] for row in after.values())
    assert all(before[clip]["flow_sum"] != after[clip]["flow_sum"] for clip in before)


def test_only_the_other_one_changes_the_version_too(raw, tmp_path):
    """With --only, the maps that lie there count, not those that the recipe would make."""
    run(raw, tmp_path / "corpus", {"dis": DIS, MOVING: {}})
    changed = {"dis": {"preset": "fast"}, MOVING: {}}
    old = rows(run(raw, tmp_path / "corpus", changed, only=(MOVING,)))
    new = rows(run(raw, tmp_path / "corpus", changed))
    assert all(old[clip]["version"] != new[clip]["version"] for clip in old)


def test_a_clip_whose_flow_failed_is_unavailable_with_the_reason(raw, tmp_path):
    corpus = run(raw, tmp_path / "corpus", {"dis": DIS, MOVING: {}}, short_side_px=6)
    assert {row["status"] for row in rows(corpus, "dis").values()} == {"failed"}
    found = list(rows(corpus).values())
    assert {row["status"] for row in found} == {"unavailable"}
    assert all("requires flow of dis" in row["error"] and "sides >= 8 px" in row["error"] for row in found)
    again = run(raw, tmp_path / "corpus", {"dis": DIS, MOVING: {}}, short_side_px=6)
    assert {row["status"] for row in rows(again).values()} == {"unavailable"}


def test_a_damaged_flow_is_the_reason_of_that_clip_alone(raw, tmp_path):
    corpus = run(raw, tmp_path / "corpus", {"dis": DIS})
    extent = corpus[0].row("dis")["flow"]
    path = Path(corpus.store.root, "annotations/dis", extent["shard"])
    data = bytearray(path.read_bytes())
    data[extent["offset"] + extent["nbytes"] // 2] ^= 255
    path.write_bytes(data)
    found = rows(run([], corpus.store.url, {MOVING: {}}))
    assert found.pop(corpus[0].clip_id)["error"].count("checksum mismatch")
    assert {row["status"] for row in found.values()} == {"ok"}


@pytest.mark.parametrize(
    ("annotators", "message"),
    [
        ({MOVING: {}}, 'moving: no annotator of this recipe produces "flow"'),
        (
            {MOVING: {}, "dis": {}, "supplied": {"modalities": ["flow"]}},
            'several annotators produce "flow". Select one: "dis.flow"',
        ),
        ({MOVING: {"of": "tests.operators.moving.segmentation"}}, "annotators require each other"),
    ],
)
def test_what_cannot_be_made_is_an_error_before_anything_runs(annotators, message):
    with pytest.raises(OpenUniError, match=message):
        required_maps(CorpusRecipe.parse({"annotators": annotators}))


def test_one_of_several_is_named():
    supplied = {"modalities": ["depth", "flow"]}
    recipe = CorpusRecipe.parse({"annotators": {MOVING: {"of": "dis.flow"}, "dis": {}, "supplied": supplied}})
    wanted = required_maps(recipe)
    assert wanted[MOVING] == {"flow": MapSource("dis", "flow")}
    assert list(wanted).index("dis") < list(wanted).index(MOVING)


def test_a_modality_is_required_once():
    supplied = {"modalities": ["flow"]}
    recipe = CorpusRecipe.parse(
        {"annotators": {MOVING: {"of": "dis.flow supplied.flow"}, "dis": {}, "supplied": supplied}}
    )
    with pytest.raises(OpenUniError, match=f"{MOVING}: requires flow twice; only one map per modality is allowed"):
        required_maps(recipe)


def test_what_an_annotator_could_make_but_is_not_asked_for_does_not_count():
    recipe = CorpusRecipe.parse({"annotators": {MOVING: {}, "dis": {}, "supplied": {"modalities": ["depth"]}}})
    assert required_maps(recipe)[MOVING] == {"flow": MapSource("dis", "flow")}
