"""The index: large parts are read once, and its cache is the same index, or is not used."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.parts import part_listing
from openuni.manifests.corpus.splits import assign
from openuni.manifests.errors import OpenUniError
from openuni.training.data import index_cache
from openuni.training.data.clip_ids import ClipIds
from openuni.training.data.extents import distinct_rows
from openuni.training.data.index import Index, open_index
from openuni.training.data.index_cache import IndexCache
from openuni.training.loop.trainer import train
from openuni.training.run_files import INDEX_FILE
from tests.train.corpora import FAMILY, random_clips, write_corpus
from tests.train.loop.test_trainer import assert_same, recipe, state

MODALITIES = ("rgb", "depth")


@pytest.fixture(autouse=True)
def small_corpora_are_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_cache, "MIN_SAMPLES", 1)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    clips = random_clips(12)
    del clips[3]["latents"]["depth"]
    clips[5]["caption"] = None
    clips[6]["latents"]["rgb"] = None  # a failed row
    for clip in clips[7:9]:
        clip["latents"] = {name: value[:, :1] for name, value in clip["latents"].items()}
    for number, clip in enumerate(clips):
        clip["collection"] = [None, "kinetics", "synthetic"][number % 3]
    return write_corpus(tmp_path_factory.mktemp("corpus"), clips)


def cache(path: Path, corpus: Corpus, modalities: tuple[str, ...] = MODALITIES, *more: Any) -> IndexCache:
    return IndexCache(path, Corpus.open(corpus.store.url), modalities, "", "", 0.2, *more)


def facts(index: Index) -> dict[str, Any]:
    """All that an index says."""
    streams = {**index.latents, "text": index.text}
    return {
        "ids": list(index.sample_ids),
        "digest": index.digest(),
        "families": (index.latent_family, index.text_family),
        "held_out": index.held_out.tolist(),
        "collections": [index.collections[number] for number in index.collection],
        "shapes": {name: extents.shape.tolist() for name, extents in streams.items()},
        "finite": {name: extents.finite.tolist() for name, extents in streams.items()},
        "payloads": {
            name: [extents.payload(clip) for clip in np.flatnonzero(extents.present).tolist()]
            for name, extents in streams.items()
        },
    }


def fails(*_: Any) -> Index:
    raise AssertionError("the corpus is read")


def test_the_cache_is_the_same_index(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = cache(tmp_path / "index", corpus)
    index = first.open()
    assert not (tmp_path / "index").exists()  # the run folder may not be there yet
    first.save()
    assert facts(index) == facts(open_index(corpus, MODALITIES, "", "", 0.2))
    monkeypatch.setattr(index_cache, "open_index", fails)
    assert facts(cache(tmp_path / "index", corpus).open()) == facts(index)


def test_another_corpus_or_recipe_does_not_use_it(corpus: Corpus, tmp_path: Path) -> None:
    copy, path = tmp_path / "corpus", tmp_path / "index"
    shutil.copytree(corpus.store.local(""), copy)
    own = Corpus.open(str(copy))
    first = cache(path, own)
    first.open()
    first.save()
    only = cache(path, own, MODALITIES, ("kinetics",)).open()
    assert len(only.clip_ids) == 4 and list(cache(path, own, ("rgb",)).open().latents) == ["rgb"]
    assign(own, {"validation": 0.5})
    index = cache(path, own).open()
    assert facts(index) == facts(open_index(own, MODALITIES, "", "", 0.2)) and index.held_out.sum() >= 4
    cache(path, own).save()
    own.save_record(keep="width_px >= 10000")
    assert len(cache(path, own).open().clip_ids) == 0


def test_a_missing_shard_is_named_as_without_the_cache(corpus: Corpus, tmp_path: Path) -> None:
    copy = tmp_path / "corpus"
    shutil.copytree(corpus.store.local(""), copy)
    first = cache(tmp_path / "index", Corpus.open(str(copy)))
    first.open()
    first.save()
    (shard,) = copy.glob(f"latents/{FAMILY}/depth/*.safetensors")
    shard.unlink()
    with pytest.raises(OpenUniError, match=f"{shard.name} is missing. Restore it, or"):
        cache(tmp_path / "index", Corpus.open(str(copy))).open()


def test_any_changed_byte_is_noticed(corpus: Corpus, tmp_path: Path) -> None:
    path = tmp_path / "index"
    first = cache(path, corpus)
    expected = facts(first.open())
    first.save()
    data = path.read_bytes()
    for position in [0, 7, 8, 9, *range(20, len(data), len(data) // 12), len(data) - 1]:
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x21]) + data[position + 1 :])
        assert facts(cache(path, corpus).open()) == expected
    for odd in (b"", data[:5], data[:-1], data + b"x", b"\xff" * 100):
        path.write_bytes(odd)
        again = cache(path, corpus)
        assert facts(again.open()) == expected
        again.save()
        assert path.read_bytes() == data


FORGED: dict[str, Callable[[dict[str, np.ndarray], dict[str, Any]], Any]] = {
    "shard beyond": lambda arrays, facts: arrays["rgb.shard"].__setitem__(0, 1000),
    "shard below": lambda arrays, facts: arrays["rgb.shard"].__setitem__(0, -2),
    "kind": lambda arrays, facts: arrays["depth.kind"].__setitem__(1, 99),
    "offset": lambda arrays, facts: arrays["text.offset"].__setitem__(1, -5),
    "shape": lambda arrays, facts: arrays["rgb.kinds"].__setitem__((1, 0), -4),
    "dtype": lambda arrays, facts: arrays["rgb.kinds"].__setitem__((1, 4), 7),
    "collection": lambda arrays, facts: arrays["collection"].__setitem__(0, 77),
    "bool": lambda arrays, facts: arrays["held_out"].view(np.uint8).__setitem__(0, 2),
    "id": lambda arrays, facts: arrays["id_bytes"].__setitem__(slice(0, 4), list(b"../.")),
    "id is no text": lambda arrays, facts: arrays["id_bytes"].__setitem__(0, 0xFF),
    "ids overlap": lambda arrays, facts: arrays["id_ends"].__setitem__(2, 0),
    "shards": lambda arrays, facts: facts["shards"]["rgb"].__setitem__(0, "../../etc/passwd"),
    "dtypes": lambda arrays, facts: facts["dtypes"]["rgb"].__setitem__(0, "object"),
    "family": lambda arrays, facts: facts.__setitem__("latent_family", "../other"),
    "modalities": lambda arrays, facts: facts.__setitem__("modalities", ["rgb", "../depth"]),
    "empty": lambda arrays, facts: arrays.__setitem__("id_ends", arrays["id_ends"][:0]),
    "names": lambda arrays, facts: facts["collections"].__setitem__(0, 3),
    "missing": lambda arrays, facts: arrays.pop("rgb.xxh3"),
    "short": lambda arrays, facts: arrays.__setitem__("rgb.xxh3", arrays["rgb.xxh3"][:-1]),
    "other type": lambda arrays, facts: arrays.__setitem__("rgb.offset", arrays["rgb.offset"].view(np.uint64)),
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED)
def test_positions_are_checked_though_the_checksum_is_right(
    corpus: Corpus, tmp_path: Path, caplog: pytest.LogCaptureFixture, forge: Callable
) -> None:
    path = tmp_path / "index"
    first = cache(path, corpus)
    expected = facts(first.open())
    first.save()
    rewrite(path, lambda arrays, facts: None)
    assert cache(path, corpus).open() and not caplog.text  # as it was
    rewrite(path, forge)
    assert facts(cache(path, corpus).open()) == expected
    assert "is damaged and is written again" in caplog.text and "checksum" not in caplog.text


def rewrite(path: Path, forge: Callable) -> None:
    """Change arrays and facts of a cache, with the checksum that belongs to them."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    told = json.loads(header.pop("__metadata__")["index"])
    arrays = {
        name: np.frombuffer(data, np.uint8)[slice(*(start + at for at in entry["data_offsets"]))]
        .copy()
        .view(index_cache.NUMPY[entry["dtype"]])
        .reshape(entry["shape"])
        for name, entry in header.items()
    }
    forge(arrays, told)
    del told["xxh3"]
    entries, at = dict[str, Any](), 0
    for name, array in arrays.items():
        kind = index_cache.NAMES[array.dtype]
        entries[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [at, at := at + array.nbytes]}
    covered = json.dumps([entries, told], sort_keys=True).encode() + b"".join(one.tobytes() for one in arrays.values())
    told["xxh3"] = xxhash.xxh3_64_hexdigest(covered)
    text = json.dumps(entries | {"__metadata__": {"index": json.dumps(told)}}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(array.tobytes() for array in arrays.values()))


def test_large_parts_are_read_once_and_checked(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = facts(open_index(corpus, MODALITIES, "", "", 0.2))
    monkeypatch.setattr(part_listing, "TAIL_BYTES", 0)
    opened = Corpus.open(corpus.store.url)
    reads: list[str] = []
    read_part = part_listing.read_part

    def counted(store: Any, part: str, *more: Any) -> pa.Table:
        reads.append(part)
        return read_part(store, part, *more)

    monkeypatch.setattr(part_listing, "read_part", counted)
    assert facts(open_index(opened, MODALITIES, "", "", 0.2)) == expected
    assert sum(part.startswith("latents/") for part in reads) == 2
    copy = tmp_path / "corpus"
    shutil.copytree(corpus.store.local(""), copy)
    hostile = Corpus.open(str(copy))
    group = f"latents/{FAMILY}/depth"
    rows = hostile.table(group)
    names = pa.array(["../../outside.safetensors"] * len(rows))
    hostile.replace(group, rows.set_column(rows.schema.get_field_index("shard"), "shard", names), "1")
    with pytest.raises(OpenUniError, match=r"shard: \S*outside\S* is not allowed"):
        open_index(Corpus.open(str(copy)), MODALITIES, "", "", 0.2)


def test_runs_use_it_and_resume_alike(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(recipe(), corpus, tmp_path / "whole")
    train(recipe(optimizer={"steps": 3}), corpus, tmp_path / "parts")
    assert (tmp_path / "parts" / INDEX_FILE).is_file()
    monkeypatch.setattr(index_cache, "open_index", fails)
    train(recipe(), corpus, tmp_path / "parts")
    assert_same(state(tmp_path / "parts"), state(tmp_path / "whole"))


def test_small_corpora_leave_no_file(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_cache, "MIN_SAMPLES", 13)
    own = cache(tmp_path / "index", corpus)
    own.open()
    own.save()
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- parts of it


@given(st.data(), st.sampled_from([8, 32, 33]))
@settings(deadline=None, max_examples=60)
def test_positions_of_ids(data: st.DataObject, length: int) -> None:
    alphabet = st.text("0123456789abcdef", min_size=length, max_size=length)
    ids = sorted(data.draw(st.sets(alphabet, max_size=30)))
    asked = data.draw(st.lists(st.sampled_from(ids) | alphabet, max_size=30)) if ids else data.draw(st.lists(alphabet))
    own = ClipIds(pa.array(["x", *ids], pa.string()).slice(1))
    expected = [ids.index(one) if one in ids else -1 for one in asked]
    assert own.positions(pa.array(["y" * 32, *asked], pa.string()).slice(1)).tolist() == expected
    assert list(own) == ids == own and own[:3] == ids[:3] and len(own) == len(ids)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=40))
@settings(deadline=None)
def test_distinct_rows(rows: list[tuple[int, ...]]) -> None:
    array = np.array(rows, np.int64)
    found, numbers = distinct_rows(array)
    assert np.array_equal(found[numbers], array)
    assert [tuple(row) for row in found.tolist()] == list(dict.fromkeys(rows))
