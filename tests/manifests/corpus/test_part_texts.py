"""Small parts that expand to gigabytes in memory are refused before they do; others are read as they are.

Every bomb is written by a plain Parquet writer, with a true footer.
"""

import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.parts import part_limits
from openuni.manifests.corpus.parts.checked_dataset import parts_dataset
from openuni.manifests.corpus.parts.part_files import read_part, table_bytes, verify_part
from openuni.manifests.corpus.splits import write_pending_splits
from openuni.manifests.errors import DamagedFile
from openuni.manifests.storage.store import Store

ROWS = 10_000
TEXT_BYTES = 200_000
MAX_GROWTH_KIB = 600 * 1024  # of the memory of this process; the smallest bomb would take two gigabytes
LIMIT_BYTES = 32 * 2**20  # less than outside of these tests, so that the bombs are made quickly
PART = "filters/f/part-1.parquet"
ONE = pa.DictionaryArray.from_arrays(pa.array(np.zeros(ROWS, np.int32)), pa.array(["x" * TEXT_BYTES]))
IDS = [f"clip-{number}" for number in range(ROWS)]


def one_text() -> pa.Table:
    return pa.table({"clip_id": IDS, "f": ONE})


def one_text_in_a_struct() -> pa.Table:
    return pa.table({"clip_id": IDS, "f": pa.StructArray.from_arrays([ONE, ONE], ["status", "error"])})


def one_text_in_lists() -> pa.Table:
    indices = pa.array(np.zeros(ROWS * 10, np.int32))
    texts = pa.DictionaryArray.from_arrays(indices, ONE.dictionary)
    return pa.table({"clip_id": IDS, "f": pa.ListArray.from_arrays(np.arange(0, ROWS * 10 + 1, 10, np.int32), texts)})


def a_long_list() -> pa.Table:
    zeros = pa.array(np.zeros(5_000_000, np.int8)).cast(pa.int64())
    return pa.table({"clip_id": ["a"], "f": pa.ListArray.from_arrays([0, len(zeros)], zeros)})


def many_dictionaries() -> pa.Table:
    """Each column alone stays below the limit."""
    text = pa.DictionaryArray.from_arrays(ONE.indices, pa.array(["y" * 2_000]))
    return pa.table({"clip_id": IDS} | {f"f{number}": text for number in range(20)})


BOMBS = {
    "dictionary": (one_text, {}),
    "dictionary, as Arrow's type": (one_text, {"store_schema": True}),
    "in a struct": (one_text_in_a_struct, {}),
    "in lists": (one_text_in_lists, {}),
    "in many columns": (many_dictionaries, {}),
    "a list of zeros": (a_long_list, {}),
    "prefixes": (
        lambda: pa.table({"clip_id": IDS, "f": [f"{'z' * 10_000}{number}" for number in range(ROWS)]}),
        {"use_dictionary": ["clip_id"], "column_encoding": {"f": "DELTA_BYTE_ARRAY"}},
    ),
}
READS: dict[str, Callable[[Store], object]] = {
    "a part": lambda store: read_part(store, PART),
    "its dataset": lambda store: parts_dataset(store, [PART]).unchecked.to_table(),
    "in batches": lambda store: list(parts_dataset(store, [PART]).to_batches()),
    "verified": lambda store: verify_part(store, PART),
}


@pytest.fixture(scope="module")
def bombs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for name, (make, options) in BOMBS.items():
        found[name] = tmp_path_factory.mktemp("bomb") / PART
        found[name].parent.mkdir(parents=True)
        settings = {"compression": "zstd", "store_schema": False, "write_statistics": False} | options
        settings |= {"dictionary_pagesize_limit": 2**30}
        pq.write_table(make(), found[name], **settings)
        assert found[name].stat().st_size * part_limits.MAX_EXPANSION < 2 * LIMIT_BYTES
    return found


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("name", BOMBS)
def test_a_part_that_expands_to_gigabytes_is_refused_in_bounded_memory(
    bombs: dict[str, Path], name: str, read: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part_limits, "MIN_EXPANDED_BYTES", LIMIT_BYTES)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DamagedFile, match=r"expands from [0-9,]+ to [0-9,]+ bytes|has the encoding DELTA_BYTE_ARRAY"):
        READS[read](Store(str(bombs[name].parents[2])))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MAX_GROWTH_KIB


def many_ids() -> pa.Table:
    """So many different texts that a footer cannot tell whether one of them is repeated."""
    texts = [f"{number:032}" for number in range(20_000)]
    rows = {"status": texts, "more": [[text, None] for text in texts], "maps": [{"shard": text} for text in texts]}
    return pa.table({"clip_id": texts, "f": pa.array([dict(zip(rows, row)) for row in zip(*rows.values())])})  # noqa: B905


@pytest.mark.parametrize("columns", [None, ["clip_id"], ["f.maps.shard", "f.more"]], ids=str)
def test_what_could_expand_and_does_not_is_read_as_it_is(tmp_path: Path, columns: list[str] | None) -> None:
    store, rows = Store(str(tmp_path)), many_ids()
    store.put(PART, table_bytes(rows))
    expected = pq.ParquetFile(store.path(PART)).read(columns)
    for _ in range(2):  # the second time without measuring
        assert read_part(store, PART, columns).equals(expected)
    assert store.measured_texts[PART, store.nbytes(PART)]
    assert parts_dataset(store, [PART]).unchecked.to_table().equals(rows)


def test_splits_that_are_being_written_are_read_within_the_limits(bombs: dict[str, Path], tmp_path: Path) -> None:
    corpus = Corpus.create(str(tmp_path))
    (tmp_path / "splits.pending.parquet").write_bytes(bombs["dictionary"].read_bytes())
    with pytest.raises(DamagedFile, match="expands from"):
        write_pending_splits(corpus)
