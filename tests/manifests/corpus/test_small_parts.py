"""Reading many small parts in one table gives what reading them one by one gives, and names the damaged one."""

import random

import pyarrow as pa
import pytest

from openuni.manifests.corpus.parts import small_parts
from openuni.manifests.corpus.parts.part_files import read_columns, table_bytes
from openuni.manifests.corpus.parts.part_listing import GroupReader
from openuni.manifests.errors import OpenUniError
from openuni.manifests.storage.store import Store

GROUP = "filters/motion"


def part_rows(number: int, scores: int, length: int) -> pa.Table:
    """Three rows with `scores` scores each, and errors of `length` random letters, which do not compress."""
    letters = random.Random(number)
    errors = ["".join(letters.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=length)) for _ in range(3)]
    motion = [
        {"status": "ok", "error": error} | {f"score_{index}": float(index + number) for index in range(scores)}
        for error in errors
    ]
    return pa.table({"clip_id": [f"clip-{number}-{row}" for row in range(3)], "motion": motion})


def written(folder, sizes) -> tuple[Store, list[str]]:
    """A group with a part for each (number of scores, letters of an error)."""
    store = Store(str(folder))
    for number, size in enumerate(sizes):
        store.put(f"{GROUP}/part-{number:02d}.parquet", table_bytes(part_rows(number, *size)))
    return store, store.names(GROUP, ".parquet")


SMALL, WIDE, MEDIUM, LARGE = (2, 10), (60, 10), (2, 100_000), (2, 600_000)
SIZES = {
    "small": [SMALL] * 9,
    "many columns": [WIDE] * 9,
    "medium": [MEDIUM] * 9,
    "large": [LARGE] * 5,
    "mixed": [SMALL] * 5 + [MEDIUM] * 5 + [LARGE] + [SMALL] * 2 + [WIDE] * 5,
    "other columns": [SMALL, SMALL, (3, 10), SMALL, SMALL, (3, 10), SMALL],
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=list(SIZES))
def test_joined_rows_are_those_of_each_part(tmp_path, sizes, monkeypatch):
    monkeypatch.setattr(small_parts, "PARTS_AT_A_TIME", 4)
    store, parts = written(tmp_path, sizes)
    paths = {"clip_id": ("clip_id",), "one": ("motion", "score_1"), "two": ("motion", "score_2")}
    schema = part_rows(0, 3, 1).schema  # the third score is not in every part
    one_by_one = pa.concat_tables(read_columns(store, parts, paths, schema))
    for _ in range(2):  # the second time from kept rows
        assert small_parts.read_joined(store, parts, paths, schema).equals(one_by_one)
    assert small_parts.read_joined(store, parts, paths, schema, lambda rows: rows.slice(0, 0)).num_rows == 0


@pytest.mark.parametrize("sizes", SIZES.values(), ids=list(SIZES))
def test_the_part_with_a_bad_name_is_named(tmp_path, sizes):
    store, parts = written(tmp_path, sizes)
    GroupReader(store).check_names(parts)
    rows = part_rows(3, *sizes[3])
    harmful = pa.array(["clip-a", "../clip-b", "clip-c"])
    store.put(parts[3], table_bytes(rows.set_column(0, "clip_id", harmful)))
    with pytest.raises(OpenUniError, match=r"part-03\.parquet, row 1, column clip_id: \"\.\./clip-b\""):
        GroupReader(store).check_names(parts)


def test_many_parts_cost_few_checks(tmp_path, monkeypatch):
    store, parts = written(tmp_path, [WIDE] * 30)
    single = []
    monkeypatch.setattr(GroupReader, "check_part", lambda reader, part: single.append(part) or set())
    GroupReader(store).check_names(parts)
    assert single == []
