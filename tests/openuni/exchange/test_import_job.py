"""What `openuni import` does for every format: rows, payloads, resuming, refusals, dying workers."""

import itertools
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

import openuni
from openuni.exchange.import_job import ClipListing, ImportOptions
from openuni.exchange.importer import FoundClip
from openuni.manifests.contracts.decoded_clip import decode
from openuni.manifests.corpus.coverage import coverage
from openuni.manifests.errors import OpenUniError
from openuni.training.data.index import open_index
from tests.operators.drawn_set import DrawnSet
from tests.raw_clips import contents

FORMAT = "tests.operators.drawn_set"


def write_set(folder: Path, texts: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.clip").write_text(text)
    return folder


@pytest.fixture
def some(tmp_path: Path) -> Path:
    return write_set(tmp_path / "drawn", {f"clip{n:02}": str(n) for n in range(9, 13)} | {"bad": "x"})


def test_pixels_maps_and_facts_arrive_and_refusals_are_rows(some: Path, tmp_path: Path) -> None:
    corpus = openuni.import_set(FORMAT, some, out=tmp_path / "corpus")
    ledger = corpus.summary()
    assert (ledger.clips, ledger.ok) == (5, 4)
    assert [(failure.operator, failure.reason) for failure in ledger.failed] == [("ingest", "ClipError")]
    by_caption = {clip.caption: clip for clip in corpus}
    for number in (9, 10):
        truth = DrawnSet().read(next(found for found in DrawnSet().find(some) if found.key == f"clip{number:02}"))
        clip = by_caption[f"number {number}"]
        np.testing.assert_array_equal(clip.rgb, truth.maps.rgb.array)
        np.testing.assert_array_equal(clip.modality("rgb").array, truth.maps.rgb.array)
        assert (clip.clip.collection, clip.clip.origin) == ("drawn", f"tens {number // 10}")
        assert (clip.clip.frame_count, clip.clip.width_px, round(clip.clip.fps)) == (5, 48, 12)
        assert clip.row(FORMAT)["number"] == number
        if truth.maps.depth is None:
            assert clip.row(FORMAT)["depth"] is None
        else:
            np.testing.assert_allclose(clip.depth, truth.maps.depth.array, atol=1e-4)
    assert [(row["collection"], row["clips"], row["depth"]) for row in coverage(corpus)] == [("drawn", 4, 2)]


def test_frames_come_from_the_shard_wherever_the_corpus_lies(some: Path, tmp_path: Path) -> None:
    corpus = openuni.import_set(FORMAT, some, out=tmp_path / "corpus")
    before = {clip.clip_id: decode(clip.clip, np.array([1, 3])).frames for clip in corpus}
    shutil.move(tmp_path / "corpus", tmp_path / "elsewhere")
    moved = openuni.open_corpus(tmp_path / "elsewhere")
    assert len(before) == 4
    for clip in moved:
        np.testing.assert_array_equal(decode(clip.clip, np.array([1, 3])).frames, before[clip.clip_id])
    few = openuni.select(moved, "has.depth", out=tmp_path / "few")
    shutil.rmtree(tmp_path / "elsewhere")
    assert len(few) == 2
    assert all((clip.rgb[[1, 3]] == before[clip.clip_id]).all() for clip in few)


def test_doing_it_again_does_nothing_again(some: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    options = {"log": str(log)}
    one = contents(
        openuni.import_set(FORMAT, some, out=tmp_path / "c", options=options, import_options=ImportOptions(limit=2))
    )
    assert log.read_text().split() == ["bad", "clip09"]
    both = openuni.import_set(FORMAT, some, out=tmp_path / "c", options=options)
    assert sorted(log.read_text().split()) == ["bad", "clip09", "clip10", "clip11", "clip12"]
    assert all(row in contents(both)["clips"] for row in one["clips"])
    openuni.import_set(FORMAT, some, out=tmp_path / "c", options=options)
    assert len(log.read_text().split()) == 5
    write_set(some, {"bad": "40"})
    mended = openuni.import_set(
        FORMAT, some, out=tmp_path / "c", options=options, import_options=ImportOptions(retry_failed=True)
    )
    assert log.read_text().split()[5:] == ["bad"]
    assert mended.summary().ok == 5


def test_a_set_is_listed_once_whatever_is_left_of_it() -> None:
    found = [FoundClip(f"clip{number}", (number, "place")) for number in range(5)]
    with ClipListing() as listing:
        ids = listing.fill(iter(found), lambda one: f"id of {one.key}")
        assert ids.to_pylist() == [f"id of clip{number}" for number in range(5)]
        for wanted in ([True] * 5, [False, True, False, False, True], [False] * 5):
            items = list(listing.items(pa.array(wanted)))
            assert [item.found for item in items] == list(itertools.compress(found, wanted))
            assert all(item.clip_id == f"id of {item.found.key}" for item in items)


def test_another_set_joins_under_its_own_name(some: Path, tmp_path: Path) -> None:
    openuni.import_set(FORMAT, some, out=tmp_path / "c")
    other = write_set(tmp_path / "second", {"clip09": "9"})  # the same name and pixels in another set
    corpus = openuni.import_set(FORMAT, other, out=tmp_path / "c", import_options=ImportOptions("more"))
    assert {row["collection"]: row["clips"] for row in coverage(corpus)} == {"drawn": 4, "more": 1}


def test_workers_do_not_change_the_result_and_a_deadly_clip_is_a_row(some, tmp_path, ray_workers):
    alone = openuni.import_set(FORMAT, some, out=tmp_path / "alone")
    write_set(some, {"deadly": "deadly"})
    corpus = openuni.import_set(FORMAT, some, out=tmp_path / "many", resources=ray_workers(2))
    ledger = corpus.summary()
    assert (ledger.clips, ledger.ok) == (6, 4)
    assert {failure.reason for failure in ledger.failed} == {"ClipError", "WorkerDied"}
    ours, theirs = contents(alone), contents(corpus)
    assert ours[f"annotations/{FORMAT}"] == theirs[f"annotations/{FORMAT}"]
    ids = {row["clip_id"] for row in ours["clips"]}
    shared = [row | {"source": ""} for row in theirs["clips"] if row["clip_id"] in ids]
    assert shared == [row | {"source": ""} for row in ours["clips"]]


def test_what_a_kill_left_between_the_two_rows_is_done_again(some: Path, tmp_path: Path) -> None:
    corpus = openuni.import_set(FORMAT, some, out=tmp_path / "c")
    whole = contents(corpus)
    lost = corpus[2].clip_id
    corpus.delete_rows("clips", lambda rows: pc.equal(rows["clip_id"], lost))  # as if killed before the clip's row
    again = contents(openuni.import_set(FORMAT, some, out=tmp_path / "c"))
    assert again[f"annotations/{FORMAT}"] == whole[f"annotations/{FORMAT}"]
    assert [row["clip_id"] for row in again["clips"]] == [row["clip_id"] for row in whole["clips"]]


def test_runs_go_on_with_the_clips_that_are_there(some: Path, tmp_path: Path) -> None:
    openuni.import_set(FORMAT, some, out=tmp_path / "c")
    recipe = {"filters": {"luminance": {}}, "annotators": {"dis": {}}}
    corpus = openuni.run(recipe, out=tmp_path / "c")
    assert corpus.summary().ok == 4
    assert {row["flow"] for row in coverage(corpus)} == {4}
    assert corpus.summary().failed[0].operator == "ingest"  # the refusal stays
    with pytest.raises(OpenUniError, match="no corpus"):
        openuni.run(recipe, out=tmp_path / "nothing")


def test_gaps_pass_through_encoding_into_the_trainers_index(some: Path, tmp_path: Path) -> None:
    openuni.import_set(FORMAT, some, out=tmp_path / "c")
    encode = {"modalities": ["rgb", "depth"], "size_px": [32, 48], "frames": 5}
    corpus = openuni.run({"encode": encode}, out=tmp_path / "c")
    assert corpus.summary().ok == 4  # a modality that a clip lacks is no failure
    index = open_index(corpus, ("rgb", "depth"), "", "", 0.0)
    has_depth = {clip.clip_id for clip in corpus if clip.row(FORMAT)["depth"] is not None}
    assert len(has_depth) == 2
    for clip_id, bits in zip(index.clip_ids, index.present.tolist(), strict=True):
        assert index.streams(bits) == ({"rgb", "depth"} if clip_id in has_depth else {"rgb"})


def test_names_and_texts_that_are_no_unicode(tmp_path: Path) -> None:
    folder = tmp_path / "drawn"
    write_set(folder, {"good": "9", "odd\udcff": "10", "bad\udcff": "x"})
    corpus = openuni.import_set(FORMAT, folder, out=tmp_path / "corpus")
    assert (corpus.summary().clips, corpus.summary().ok) == (3, 1)
    errors = {row["error"] for row in corpus.table("clips").to_pylist() if row["error"]}
    assert errors == {rf"ClipError: file name '{n}\udcff' is not valid UTF-8. Rename the file." for n in ("odd", "bad")}


def test_the_same_name_of_another_folder_is_not_taken_for_the_same_set(tmp_path: Path) -> None:
    one, two = (write_set(tmp_path / name / "train", {"0001": text}) for name, text in (("a", "9"), ("b", "10")))
    openuni.import_set(FORMAT, one, out=tmp_path / "c")
    with pytest.raises(OpenUniError, match=r'a/train as collection "train"; clips of .*b/train would.*--collection'):
        openuni.import_set(FORMAT, two, out=tmp_path / "c")
    corpus = openuni.import_set(FORMAT, two, out=tmp_path / "c", import_options=ImportOptions("second"))
    assert corpus.summary().ok == 2
    one.rename(tmp_path / "a" / "elsewhere")
    (tmp_path / "d").mkdir()
    moved = (tmp_path / "a" / "elsewhere").rename(tmp_path / "d" / "train")  # a set that was moved is the same set
    assert openuni.import_set(FORMAT, moved, out=tmp_path / "c").summary().clips == 2


def test_the_summary_shows_a_reason_of_each_kind(some: Path, tmp_path: Path) -> None:
    corpus = openuni.import_set(FORMAT, some, out=tmp_path / "c")
    (failure,) = corpus.summary().failed
    assert failure.error == "bad holds 'x', no number"
    assert corpus.table("clips").filter(pc.field("clip_id") == failure.clip_id)["source"].to_pylist() == ["bad"]
    assert f"{failure.clip_id}: bad holds 'x', no number" in str(corpus.summary())


def test_wrong_use_is_explained(some: Path, tmp_path: Path) -> None:
    openuni.import_set(FORMAT, some, out=tmp_path / "c")
    with pytest.raises(OpenUniError, match="with other options"):
        openuni.import_set(FORMAT, some, out=tmp_path / "c", options={"frames": 6})
    with pytest.raises(OpenUniError, match='has no option "frame". Did you mean "frames"'.replace(".", r"\.")):
        openuni.import_set(FORMAT, some, out=tmp_path / "d", options={"frame": 6})
    with pytest.raises(OpenUniError, match="is inside the dataset folder"):
        openuni.import_set(FORMAT, some, out=some / "corpus")
    assert not (some / "corpus").exists()
    with pytest.raises(OpenUniError, match="is not a folder"):
        openuni.import_set(FORMAT, tmp_path / "nowhere", out=tmp_path / "d")
    with pytest.raises(OpenUniError, match="has no clips in the format"):
        openuni.import_set(FORMAT, write_set(tmp_path / "empty", {}), out=tmp_path / "e")
    with pytest.raises(OpenUniError, match=r"importer \"no_such\""):
        openuni.import_set("no_such", some, out=tmp_path / "f")


def test_a_disk_that_refuses_a_write_ends_the_import_and_fails_no_clip(some: Path, tmp_path: Path) -> None:
    folder = tmp_path / "corpus" / "annotations" / FORMAT
    openuni.import_set(FORMAT, some, out=tmp_path / "corpus", import_options=ImportOptions(limit=1))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".open").write_text("in the way")
    with pytest.raises(OpenUniError, match=r"cannot write to .*Everything finished is kept"):
        openuni.import_set(FORMAT, some, out=tmp_path / "corpus")
    (folder / ".open").unlink()
    resumed = openuni.import_set(FORMAT, some, out=tmp_path / "corpus")
    assert (resumed.summary().ok, len(resumed.summary().failed)) == (4, 1)
