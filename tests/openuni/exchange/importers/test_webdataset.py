"""Shards: what a corpus exports comes back without loss, other people's shards come in, damage is named."""

import io
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest

import openuni
from openuni.console.progress import Reporter
from openuni.manifests.contracts.modality import find_modality
from openuni.manifests.errors import OpenUniError
from openuni.manifests.video.encode import encode_lossless, write_video
from tests.openuni.exchange.importers.made_sets import bring_in, clips_by_key, imported, reasons, results, write_png
from tests.openuni.exchange.importers.rooms import geometry, pictures, render
from tests.openuni.exchange.importers.test_folder import stored_maps, write_stored

ROOM = render()


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture(scope="module")
def mp4(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("video") / "room.mp4"
    write_video(path, pictures(ROOM), 24.0, crf=8)
    return path.read_bytes()


def supplied(key: str, mp4: bytes, maps: dict | None = None, fps: float = 24.0) -> dict[str, bytes]:
    """One clip as our exporter writes it."""
    entries, files = {}, {}
    for name, signal in (stored_maps() if maps is None else maps).items():
        payload = signal.encode(fps)
        files[f"{key}.{name}.{payload.suffix}"] = payload.data
        entries[name] = {"file": f"{key}.{name}.{payload.suffix}", "constants": payload.constants._asdict()}
    facts = {"format": "openuni-supplied-1", "frames": 12, "modalities": entries, "split": "test", "origin": "house"}
    return {f"{key}.mp4": mp4, f"{key}.txt": b"a room\n", f"{key}.json": json.dumps(facts).encode(), **files}


def test_an_exported_corpus_comes_back(tmp_path):
    write_stored(tmp_path / "set/train/a", stored_maps(), caption="a room", origin="house")
    write_png(tmp_path / "set/test/b/rgb", pictures(ROOM))  # the corpus holds these pixels itself
    metres, ids = geometry()
    np.save(tmp_path / "set/test/b/depth.npy", metres)
    np.save(tmp_path / "set/test/b/segmentation.npy", ids.astype(np.int32))
    first = bring_in("folder", tmp_path / "set", tmp_path / "first")
    report = openuni.export(first, "webdataset", out=tmp_path / "shards", reporter=Reporter(quiet=True), workers=1)
    assert not report.failed
    second = bring_in("webdataset", tmp_path / "shards", tmp_path / "second")
    assert reasons(second) == {} and len(second) == 2
    for key in ("train/a", "test/b"):
        before = imported(first, "folder", key)
        after = imported(second, "webdataset", f"shard-000000/{before.clip_id}")
        for fact in ("caption", "origin", "split", "frame_count", "width_px", "height_px"):
            assert getattr(after.clip, fact) == getattr(before.clip, fact)
        assert np.array_equal(after.rgb, before.rgb)
        assert re.search(r"shard-000000\.tar#bytes=\d+-\d+$", after.clip.source)
        row = before.row("folder")
        for name in ("depth", "flow", "segmentation", "skeleton"):
            if row[name] is not None:
                one, other = before.modality(name), after.modality(name)
                assert np.array_equal(one.array, other.array) and one.constants() == other.constants()
    assert len(list((tmp_path / "second").rglob("*.tar"))) > 0
    copied = sum(path.stat().st_size for path in (tmp_path / "second").rglob("*.tar"))
    assert copied < sum(path.stat().st_size for path in (tmp_path / "shards").rglob("*.tar"))  # no video among it


def test_stored_maps_are_kept_byte_by_byte(tmp_path, mp4):
    members = supplied("a", mp4, fps=12.0)  # the video has 24: coded anew, the bytes would be others
    write_tar(tmp_path / "set/one.tar", members)
    corpus = bring_in("webdataset", tmp_path / "set", tmp_path / "corpus")
    row = imported(corpus, "webdataset", "one/a").row("webdataset")
    stored = {name: data for name, data in members.items() if name.endswith(".mkv")}
    assert len(stored) >= 2
    for name, data in stored.items():
        extent = [row[name.split(".")[1]][part] for part in ("shard", "offset", "nbytes", "xxh3")]
        assert corpus.read("annotations/webdataset", *extent) == data


def test_shards_of_others(tmp_path, mp4):
    shard = {
        "./a/000.mp4": mp4,
        "./a/000.json": json.dumps({"caption": "from the json", "text": "other"}).encode(),
        "./a/000.cls": b"7",
        "./a/001.mp4": mp4,
        "./a/001.txt": "auf Deutsch: Möbel".encode(),
        "./a/001.json": json.dumps({"caption": "not this"}).encode(),
        "./a/002.mp4": mp4,
    }
    write_tar(tmp_path / "set/train/000.tar", shard)
    write_tar(tmp_path / "set/val/000.tar", {"000.mp4": mp4})
    corpus = bring_in("webdataset", tmp_path / "set", tmp_path / "corpus")
    rows = clips_by_key(corpus, "webdataset", ["train/000/a/000", "train/000/a/001", "train/000/a/002", "val/000/000"])
    assert [row["caption"] for row in rows.values()] == ["from the json", "auf Deutsch: Möbel", None, None]
    assert [row["split"] for row in rows.values()] == ["train"] * 3 + ["validation"]
    clip = imported(corpus, "webdataset", "train/000/a/001")
    assert np.abs(clip.rgb.astype(int) - pictures(ROOM)).mean() < 3
    other = bring_in("webdataset", tmp_path / "set", tmp_path / "other", caption="text")
    assert imported(other, "webdataset", "train/000/a/000").caption == "other"


def test_each_fault_is_named_and_the_rest_comes_in(tmp_path, mp4, ray_workers):
    maps = stored_maps()
    late = find_modality("depth")(np.concatenate([geometry()[0][:1], geometry()[0][:-1]]), "metres")
    no_map = supplied("no-map", mp4)
    del no_map["no-map.flow.mkv"]
    wrong = supplied("wrong", mp4, {"depth": maps["depth"].take(0, 11)})
    members = {
        **supplied("sound", mp4),
        **no_map,
        **wrong,
        **supplied("late", mp4, {"depth": late}),
        "two.mp4": mp4,
        "two.mkv": mp4,
        "none.txt": b"no video",
        "bad.mp4": mp4[:-300],
        "empty.mp4": b"",
        "latin.mp4": mp4,
        "latin.txt": "Möbel".encode("latin-1"),
        "list.mp4": mp4,
        "list.json": b"[1]",
        "climb.mp4": mp4,
        "climb.json": json.dumps({"modalities": {"depth": {"file": "../x", "constants": {}}}}).encode(),
    }
    write_tar(tmp_path / "set/a.tar", members)
    reason = {
        "a/no-map": r"flow\.mkv not found in the shard, but listed in the \.json",
        "a/wrong": r"the file has 11 maps of 64 x 48, the video has 12",
        "a/late": r"depth is misaligned: 1 frame behind",
        "a/two": r"expected one video .* got mkv, mp4",
        "a/none": r"expected one video .* got txt",
        "a/bad": r"is truncated|not a readable video",
        "a/empty": r"empty\.mp4 is empty",
        "a/latin": r"latin\.txt, line 1: byte 0xf6 is not UTF-8",
        "a/list": r"must contain a JSON object, got list",
        "a/climb": r"must be a plain file name",
    }
    corpus = bring_in("webdataset", tmp_path / "set", tmp_path / "corpus")
    found = reasons(corpus)
    assert set(found) == set(reason)
    for key, text in reason.items():
        assert re.search(text, found[key]), f"{key}: {found[key]}"
    before = results(corpus)
    assert results(bring_in("webdataset", tmp_path / "set", tmp_path / "corpus")) == before
    assert before == results(bring_in("webdataset", tmp_path / "set", tmp_path / "shared", ray_workers(1)))


def test_damaged_shards_give_what_lies_before(tmp_path, mp4):
    members = {f"{number}.mp4": mp4 for number in range(4)}
    whole = tmp_path / "whole.tar"
    write_tar(whole, members)
    data = whole.read_bytes()
    with tarfile.open(whole) as tar:
        third = tar.getmember("2.mp4")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/cut.tar").write_bytes(data[: third.offset_data + 100])
    (tmp_path / "set/hole.tar").write_bytes(data[: third.offset] + b"\7" * 512 + data[third.offset + 512 :])
    corpus = bring_in("webdataset", tmp_path / "set", tmp_path / "corpus")
    found = reasons(corpus)
    assert set(found) == {"cut/2", "cut/(damaged)", "hole/(damaged)"}
    assert "ends at byte" in found["cut/2"]
    assert f"the tar is damaged at byte {third.offset}" in found["hole/(damaged)"]
    assert len(corpus.kept_clip_ids()) == 4
    for name in ("cut", "hole"):
        (tmp_path / f"set/{name}.tar").write_bytes(data)
    again = bring_in("webdataset", tmp_path / "set", tmp_path / "corpus", retry_failed=True)
    assert len(again.kept_clip_ids()) == 8
    assert set(reasons(again)) <= {"cut/(damaged)", "hole/(damaged)"}  # rows of keys that are gone stay


def test_what_is_no_such_set(tmp_path, mp4):
    write_tar(tmp_path / "set/a.tar", {"0.mp4": mp4})
    (tmp_path / "set/a.tar").rename(tmp_path / "set/a.tar.gz")
    with pytest.raises(OpenUniError, match=r"no file matches .* a\.tar\.gz is compressed: decompress it"):
        bring_in("webdataset", tmp_path / "set", tmp_path / "corpus")
    with pytest.raises(OpenUniError, match="a pattern within the dataset"):
        bring_in("webdataset", tmp_path / "set", tmp_path / "corpus", shards="../*.tar")


def test_a_stopped_export_is_refused_and_its_drafts_are_no_clips(tmp_path, mp4):
    write_tar(tmp_path / "sets/one/shard-000000.tar", {"a.mp4": mp4})
    write_tar(tmp_path / "sets/one/.unfinished/00000001/shard-000001.tar", {"a.mp4": mp4, "b.mp4": mp4})
    record = tmp_path / "sets/one/export.json"
    record.write_text(json.dumps({"finished": False, "made_from": {}}))
    with pytest.raises(OpenUniError, match=r"one is an unfinished export .*Rerun the same openuni export"):
        bring_in("webdataset", tmp_path / "sets/one", tmp_path / "corpus")
    with pytest.raises(OpenUniError, match=r"one is an unfinished export"):  # also as one of several
        bring_in("webdataset", tmp_path / "sets", tmp_path / "corpus")
    record.write_text(json.dumps({"finished": True, "made_from": {}}))
    corpus = bring_in("webdataset", tmp_path / "sets/one", tmp_path / "corpus")
    assert reasons(corpus) == {} and len(corpus.kept_clip_ids()) == 1
    record.write_text(json.dumps({"finished": False}))  # somebody else's file of that name
    assert len(bring_in("webdataset", tmp_path / "sets/one", tmp_path / "other").kept_clip_ids()) == 1


def test_the_rate_of_image_sequences_comes_back_exactly(tmp_path):
    for count in (1, 3, 9):
        write_png(tmp_path / f"set/{count}/rgb", pictures(ROOM)[:count])
    first = bring_in("folder", tmp_path / "set", tmp_path / "first")
    openuni.export(first, "webdataset", out=tmp_path / "shards", reporter=Reporter(quiet=True), workers=1)
    second = bring_in("webdataset", tmp_path / "shards", tmp_path / "second")
    assert [row["fps"] for row in second.table("clips").to_pylist()] == [16.0] * 3


def test_a_rate_that_the_pixels_do_not_have_is_refused(tmp_path):
    pixels = encode_lossless(pictures(ROOM), 16.0)
    for name, fps in {"far": 15.0, "text": "16", "none": 0}.items():
        write_tar(tmp_path / f"set/{name}.tar", {"a.rgb.mkv": pixels, "a.json": json.dumps({"fps": fps}).encode()})
    found = reasons(bring_in("webdataset", tmp_path / "set", tmp_path / "corpus"))
    assert re.search(r'"fps" is 15, rgb\.mkv has 16', found["far/a"])
    assert re.search(r"\"fps\" must be a number above 0, got '16'", found["text/a"])
    assert re.search(r'"fps" must be a number above 0, got 0', found["none/a"])


def test_capitals_in_suffixes(tmp_path, mp4):
    write_tar(tmp_path / "set/a.tar", {"one.MP4": mp4, "two.mp4": mp4, "two.MP4": mp4, "two.Txt": b"x"})
    corpus = bring_in("webdataset", tmp_path / "set", tmp_path / "corpus")
    assert clips_by_key(corpus, "webdataset", ["a/one"])["a/one"]["status"] == "ok"
    assert re.search(r"two has \.mp4 and \.MP4: expected one", reasons(corpus)["a/two"])
