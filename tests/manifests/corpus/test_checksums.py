"""Checksums of parts and records: a flipped bit anywhere is an error that names the file; older files still open."""

import copy
import io
import json
import random

import duckdb
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
import xxhash

from openuni.manifests.corpus.parts.checked_dataset import parts_dataset
from openuni.manifests.corpus.parts.part_files import (
    CheckedFile,
    open_part,
    read_part,
    table_bytes,
    verify_part,
)
from openuni.manifests.errors import DamagedFile
from openuni.manifests.storage.checksums import BLOCK_BYTES, COUNTS, MARK, parse_record, record_bytes
from openuni.manifests.storage.store import Store

PART = "filters/motion/part-1.parquet"


def table(rows: int = 20_000) -> pa.Table:
    draw = random.Random(0)
    columns = {"clip_id": [f"clip-{n}" for n in range(rows)], "speed": [draw.random() for _ in range(rows)]}
    return pa.table(columns).replace_schema_metadata({b"openuni.version": b"1"})


def earlier_bytes(rows: pa.Table) -> bytes:
    """A part as earlier versions wrote it."""
    sink = io.BytesIO()
    pq.write_table(rows, sink, compression="zstd")
    return sink.getvalue()


def flipped(data: bytes, at: int, bit: int) -> bytes:
    out = bytearray(data)
    out[at] ^= 1 << bit
    return bytes(out)


@pytest.fixture(params=["folder", "memory"])
def store(request, tmp_path):
    return Store(str(tmp_path / "corpus") if request.param == "folder" else f"memory://{tmp_path.name}")


def test_what_is_written_is_read(store):
    rows = table()
    data = table_bytes(rows)
    assert len(data) > 3 * BLOCK_BYTES
    store.put(PART, data)
    assert read_part(store, PART).equals(rows, check_metadata=True)
    assert read_part(store, PART, ["speed"]).equals(rows.select(["speed"]))
    dataset = parts_dataset(store, [PART])
    assert dataset.to_table(filter=pads.field("speed") > 0.5).num_rows == sum(
        v > 0.5 for v in rows["speed"].to_pylist()
    )
    assert sum(len(batch) for batch in dataset.to_batches(columns=["clip_id"])) == len(rows)
    with CheckedFile(store, PART) as file:
        for start, count in ((0, 4), (BLOCK_BYTES - 1, 2), (len(data) - 9, 100), (5, BLOCK_BYTES * 2), (len(data), 1)):
            file.seek(start)
            assert file.read(count) == data[start : start + count]
    assert verify_part(store, PART) is True


def test_other_programs_read_it_and_find_page_checksums(tmp_path):
    path = tmp_path / "part.parquet"
    rows = table()
    path.write_bytes(table_bytes(rows))
    assert duckdb.sql(f"SELECT count(*), sum(speed) FROM '{path}'").fetchall()[0] == (
        len(rows),
        pytest.approx(sum(rows["speed"].to_pylist())),
    )
    start = pq.read_metadata(path).row_group(0).column(1).data_page_offset
    path.write_bytes(flipped(path.read_bytes(), start + 5000, 3))
    with pytest.raises(OSError, match="CRC"):
        pq.read_table(path, page_checksum_verification=True)


@pytest.mark.parametrize(
    "reader", [read_part, verify_part, lambda store, part: parts_dataset(store, [part]).to_table()]
)
def test_a_bit_flipped_anywhere_is_an_error_that_names_the_part(tmp_path, reader):
    store, data = Store(str(tmp_path)), table_bytes(table())
    draw = random.Random(1)
    footer = int.from_bytes(data[-8:-4], "little") + 8
    places = [*range(8), *range(len(data) - 8, len(data))]  # the two ends of the file
    places += [len(data) - footer - n for n in range(1, 30)]  # mark, digest and counts of the table
    places += [draw.randrange(len(data)) for _ in range(60)]
    places += [len(data) - draw.randrange(1, footer) for _ in range(60)]  # schema, statistics, offsets
    for place in places:
        store.put(PART, flipped(data, place, draw.randrange(8)))
        with pytest.raises(DamagedFile, match=r"part-1\.parquet is damaged"):
            reader(store, PART)


@pytest.mark.parametrize("keep", [0, 3, 11, 200, 70_000, -9, -1])
def test_a_truncated_part_is_an_error(store, keep):
    store.put(PART, table_bytes(table())[:keep])
    with pytest.raises(DamagedFile, match=r"part-1\.parquet is damaged"):
        read_part(store, PART)


@pytest.mark.parametrize("counts", [(0, 4), (0, 0), (BLOCK_BYTES, 3), (BLOCK_BYTES, 5), (2**32 - 1, 4)])
def test_a_table_that_somebody_made_up_is_an_error(store, counts):
    """With a right digest, which needs no secret."""
    data = table_bytes(table())
    footer_start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    body = data[: data.index(MARK)]
    head = MARK + bytes(8 * counts[1]) + COUNTS.pack(*counts)
    digest = xxhash.xxh3_64_digest(head + data[footer_start:])
    store.put(PART, b"".join([body, head, digest, MARK, data[footer_start:]]))
    for read in (read_part, verify_part):
        with pytest.raises(DamagedFile, match=rf"{counts[1]} checksums of .* bytes each"):
            read(store, PART)


def test_only_what_is_read_is_verified_and_damage_elsewhere_is_found_by_verify(tmp_path):
    """Reading clip_ids of a large part does not read its scores."""
    store, rows = Store(str(tmp_path)), table()
    data = table_bytes(rows)
    store.put(PART, flipped(data, len(data) // 2, 0))
    with open_part(store, PART) as file:
        assert file.metadata.num_rows == len(rows)
    with pytest.raises(DamagedFile, match="64 KiB from byte"):
        verify_part(store, PART)


def test_a_footer_longer_than_the_first_read_is_verified(tmp_path):
    store = Store(str(tmp_path))
    rows = pa.table({f"a column with a long name {n:04}": [float(n)] for n in range(1500)})
    data = table_bytes(rows)
    footer = int.from_bytes(data[-8:-4], "little")
    assert footer > 2 * 64 * 1024
    store.put(PART, data)
    assert read_part(store, PART).equals(rows)
    for place in (len(data) - footer, len(data) - footer // 2, len(data) - 7, len(data) - 6):
        store.put(PART, flipped(data, place, 1))
        with pytest.raises(DamagedFile):
            read_part(store, PART)


def test_parts_of_earlier_versions_open_and_unreadable_ones_are_named(store):
    rows = table(100)
    store.put(PART, earlier_bytes(rows))
    assert MARK not in store.read(PART)
    assert read_part(store, PART).equals(rows)
    assert verify_part(store, PART) is False
    other = PART.replace("part-1", "part-2")
    data = earlier_bytes(rows)
    store.put(other, data[:20] + bytes(60) + data[80:])  # page headers
    for read in (read_part, verify_part):
        with pytest.raises(DamagedFile, match=r"part-2\.parquet is damaged: not readable"):
            read(store, other)
    with pytest.raises(DamagedFile, match=r"part-2\.parquet is damaged: not readable"):
        parts_dataset(store, [PART, other]).to_table()
    with pytest.raises(DamagedFile, match=r"part-2\.parquet is damaged: not readable"):
        list(parts_dataset(store, [PART, other]).to_batches())
    store.put(other, b"PAR1 not Parquet PAR1")
    with pytest.raises(DamagedFile, match=r"part-2\.parquet is damaged"):
        parts_dataset(store, [other])


def test_a_wrong_expression_is_not_taken_for_damage(store):
    store.put(PART, table_bytes(table(100)))
    with pytest.raises(pa.ArrowInvalid, match="No match"):
        parts_dataset(store, [PART]).to_table(filter=pads.field("sped") > 1)


def test_a_part_that_is_replaced_while_it_is_read_stays_the_same_for_its_reader(tmp_path):
    store = Store(str(tmp_path))
    store.put(PART, table_bytes(table()))
    with open_part(store, PART) as file:
        store.put(PART, table_bytes(table(10)))
        assert len(file.read()) == 20_000


# ---------------------------------------------------------------------- records

RECORD = {"format": 1, "keep": "motion.speed > 0.02", "filters": ["motion"], "sizes": [1.5, None, True], "ü": "é\n"}


@pytest.mark.parametrize("indent", [2, None])
def test_a_bit_flipped_in_a_record_is_an_error_or_changes_nothing(indent):
    data = record_bytes(RECORD, indent)
    assert parse_record(data, "corpus.json") == RECORD and json.loads(data)["keep"] == RECORD["keep"]
    harmless = 0
    for place in range(len(data)):
        for bit in range(8):
            try:
                assert parse_record(flipped(data, place, bit), "corpus.json") == RECORD
                harmless += 1
            except DamagedFile as error:
                assert "corpus.json is damaged" in str(error)
    assert harmless == 3  # the case of the letters in \\u00fc and \\u00e9


def test_records_without_checksum_are_read_and_formatting_does_not_matter():
    assert parse_record(json.dumps(RECORD).encode(), "x") == RECORD
    checked = json.loads(record_bytes(RECORD))
    assert parse_record(json.dumps(dict(reversed(checked.items())), indent=7).encode(), "x") == RECORD


@pytest.mark.parametrize("data", [b"", b"[]", b"1", b'{"a": 1', b"\xff\xfe", b"[" * 100_000, b'{"checksum": 1}'])
def test_what_is_no_record_is_an_error(data):
    with pytest.raises(DamagedFile, match="here is damaged"):
        parse_record(data, "here")


def test_an_edited_record_is_told_how_to_be_accepted():
    edited = json.loads(record_bytes(RECORD)) | {"keep": ""}
    with pytest.raises(DamagedFile, match='remove its line "checksum"'):
        parse_record(json.dumps(edited).encode(), "corpus.json")


def test_the_error_survives_the_way_from_a_worker():
    error = copy.copy(DamagedFile("a/b.parquet", "checksum mismatch"))  # copies as pickle does
    assert isinstance(error, DamagedFile) and error.reason == "checksum mismatch"
