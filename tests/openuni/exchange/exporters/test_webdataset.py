"""Shards, read by the webdataset library where it is installed, else by tarfile and the library's naming rule."""

import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import openuni
from openuni.manifests.contracts.decoded_clip import decode
from openuni.manifests.contracts.modality import find_modality
from openuni.manifests.corpus.corpus_clip import EXTENT
from openuni.manifests.video.probe import make_clip, probe
from tests.openuni.exchange.exporters.rooms import CAPTION, MODALITIES, QUIET, RECIPE


def samples(shard: Path) -> Iterator[dict[str, bytes]]:
    """The shard's samples: files that share all up to the first dot of their name, side by side."""
    try:
        import webdataset
    except ImportError:
        sample: dict[str, bytes] = {}
        with tarfile.open(shard) as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                if sample and sample["__key__"] != key:
                    yield sample
                    sample = {}
                sample |= {"__key__": key, suffix: tar.extractfile(member).read()}
        yield sample
        return
    for sample in webdataset.WebDataset(str(shard), shardshuffle=False):
        yield {key: value for key, value in sample.items() if key == "__key__" or isinstance(value, bytes)}


@pytest.fixture(scope="module")
def out(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("webdataset") / "set"
    openuni.export(corpus, "webdataset", out=folder, reporter=QUIET)
    return folder


@pytest.fixture(scope="module")
def found(out, ids):
    by_id = {sample["__key__"]: sample for sample in samples(out / "shard-000000.tar")}
    return {name: by_id[key] for name, key in ids.items() if key in by_id}


def frames_of(data: bytes, path: Path) -> np.ndarray:
    path.write_bytes(data)
    return decode(make_clip(str(path), probe(str(path)))).frames


def test_a_shard_holds_each_kept_clip_once_and_only_what_it_has(out, found):
    assert sorted(path.name for path in out.iterdir()) == ["export.json", "shard-000000.tar"]
    maps = {name: sorted(set(sample) - {"__key__", "mp4", "txt", "json"}) for name, sample in found.items()}
    assert maps == {
        "all": sorted(f"{name}.{find_modality(name).suffix}" for name in MODALITIES),
        "depth": ["depth.mkv"],
        "mkv": ["alpha.mkv", "segmentation.mkv"],
        "odd": ["flow.mkv", "normal.mkv"],
    }
    assert found["all"]["txt"].decode() == f"{CAPTION}\n"
    assert "txt" not in found["depth"]


def test_maps_are_the_corpus_s_bytes_and_come_back_exactly(corpus, ids, found):
    for name, sample in found.items():
        facts = json.loads(sample["json"])
        clip = corpus[ids[name]]
        row = clip.row("supplied")
        for modality, entry in facts["modalities"].items():
            data = sample[entry["file"].partition(".")[2]]
            assert data == corpus.read("annotations/supplied", *(row[modality][key] for key in EXTENT))
            kind = find_modality(modality)
            restored = kind.decode(data, kind.constants_type(**entry["constants"]))
            np.testing.assert_array_equal(restored.array, clip.modality(modality).array)
            assert (entry["annotator"], entry["version"]) == ("supplied", corpus.group_version("annotations/supplied"))


def test_facts_are_those_of_the_clip(ids, found):
    facts = json.loads(found["odd"]["json"])
    assert facts["clip_id"] == ids["odd"]
    assert (facts["frames"], facts["fps"], facts["height_px"], facts["width_px"]) == (5, 12, 33, 47)
    assert (facts["caption"], facts["split"], facts["collection"], facts["origin"]) == ("odd sides", None, None, None)
    assert facts["scores"]["motion"]["moving_share"] > 0.5


def test_a_whole_mp4_is_copied_and_anything_else_encoded(corpus, ids, found, tmp_path):
    how = {name: json.loads(sample["json"])["video"] for name, sample in found.items()}
    assert how == {"all": "copied", "depth": "copied", "mkv": "encoded", "odd": "copied"}
    source = corpus[ids["all"]].clip.source
    assert found["all"]["mp4"] == Path(source).read_bytes()
    encoded = frames_of(found["mkv"]["mp4"], tmp_path / "a.mp4")
    assert 0 < np.abs(encoded.astype(int) - corpus[ids["mkv"]].rgb).mean() < 4


def test_lossless_loses_nothing(corpus, ids, tmp_path):
    openuni.export(corpus, "webdataset", out=tmp_path / "set", reporter=QUIET, lossless=True)
    by_id = {sample["__key__"]: sample for sample in samples(tmp_path / "set" / "shard-000000.tar")}
    sample = by_id[ids["mkv"]]
    assert json.loads(sample["json"])["video"] == "lossless"
    np.testing.assert_array_equal(frames_of(sample["mp4"], tmp_path / "a.mp4"), corpus[ids["mkv"]].rgb)


def test_unpacked_shards_are_sources_of_a_run(corpus, ids, out, tmp_path):
    shutil.unpack_archive(out / "shard-000000.tar", tmp_path / "raw")
    again = openuni.run(RECIPE, tmp_path / "raw" / "*.mp4", out=tmp_path / "corpus", reporter=QUIET)
    assert len(again) == 4
    for clip in again:
        before = corpus[Path(clip.clip.source).stem]
        assert clip.caption == before.caption
        for modality in MODALITIES:
            if before.row("supplied")[modality] is not None:
                np.testing.assert_array_equal(clip.modality(modality).array, before.modality(modality).array)


def test_shards_are_closed_at_their_size_and_in_order(corpus, ids, tmp_path):
    with_one = openuni.export(corpus, "webdataset", out=tmp_path / "a", reporter=QUIET, shard_mb=1e-6)
    assert with_one.written == 4
    keys = [[sample["__key__"] for sample in samples(path)] for path in sorted((tmp_path / "a").glob("*.tar"))]
    assert keys == [[ids[name]] for name in ("all", "depth", "mkv", "odd")]
    row = corpus[ids["all"]].row("supplied")
    nbytes = sum(row[name]["nbytes"] for name in MODALITIES) + 600  # room for its video, not for the next clip
    openuni.export(corpus, "webdataset", out=tmp_path / "b", reporter=QUIET, shard_mb=nbytes / 1e6)
    assert [len(list(samples(path))) for path in sorted((tmp_path / "b").glob("*.tar"))] == [1, 3]


def test_pixels_that_lie_in_the_corpus_are_there_without_loss(tmp_path):
    """What an import of frames leaves behind: a source within the corpus, and rgb among the maps."""
    (tmp_path / "drawn").mkdir()
    (tmp_path / "drawn" / "clip10.clip").write_text("10")
    imported = openuni.import_set("tests.operators.drawn_set", tmp_path / "drawn", out=tmp_path / "c", reporter=QUIET)
    openuni.export(imported, "webdataset", out=tmp_path / "set", reporter=QUIET)
    (sample,) = samples(tmp_path / "set" / "shard-000000.tar")
    facts = json.loads(sample["json"])
    kind = find_modality("rgb")
    restored = kind.decode(sample["rgb.mkv"], kind.constants_type(**facts["modalities"]["rgb"]["constants"]))
    np.testing.assert_array_equal(restored.array, imported[0].rgb)
    assert (facts["collection"], facts["origin"], facts["video"]) == ("drawn", "tens 1", "encoded")
