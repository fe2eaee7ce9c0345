"""Writing a column group: whatever moment a writer dies at, what it finished is saved and nothing else is seen."""

import json
import os
import random
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.shards import TarShard
from openuni.manifests.corpus.writer import PartWriter, StorageFailed, StorageFull, recover, storage_errors
from openuni.manifests.errors import OpenUniError
from openuni.manifests.storage.lease import LeaseLost
from openuni.manifests.storage.lock import lock
from openuni.manifests.storage.store import Store
from tests.full_disk import files_of_at_most

GROUP = "annotations/depth"
SCHEMA = pa.schema([("clip_id", pa.string()), ("shard", pa.string()), ("offset", pa.int64()), ("nbytes", pa.int64())])


def write(writer: PartWriter, name: str) -> None:
    extent = writer.put(f"{name}.bin", name.encode() * 100)
    writer.commit({"clip_id": name} | {key: extent[key] for key in ("shard", "offset", "nbytes")})


def die(writer: PartWriter) -> None:
    """What the operating system does to a killed process's files: closes them, and with that drops their locks."""
    writer.part.journal.close()
    writer.part.shard.file.close()


def visible(store: Store) -> dict[str, bytes]:
    """clip_id -> payload, for all that a reader sees."""
    found = {}
    for part in store.names(GROUP, ".parquet"):
        for row in pq.read_table(store.path(part), filesystem=store.fs).to_pylist():
            assert row["clip_id"] not in found
            found[row["clip_id"]] = store.read_range(f"{GROUP}/{row['shard']}", row["offset"], row["nbytes"])
    return found


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "corpus"))


@pytest.fixture
def writer(store):
    return PartWriter(store, GROUP, SCHEMA, TarShard)


def expect(*names: str) -> dict[str, bytes]:
    return {name: name.encode() * 100 for name in names}


def test_nothing_is_seen_before_the_part_is_sealed(store, writer):
    write(writer, "a")
    write(writer, "b")
    assert visible(store) == {}
    writer.finish()
    assert visible(store) == expect("a", "b")
    assert list((Path(store.root) / GROUP / ".open").iterdir()) == []


def test_a_dead_writers_finished_clips_are_recovered(store, writer):
    write(writer, "a")
    write(writer, "b")
    writer.put("c.bin", b"never committed")
    die(writer)
    assert recover(store, GROUP) == 2
    assert visible(store) == expect("a", "b")
    assert recover(store, GROUP) == 0
    (tar,) = (Path(store.root) / GROUP).glob("*.tar")
    assert b"never committed" not in tar.read_bytes()


def test_texts_that_are_no_unicode_are_escaped(store, writer):
    """As a file's name or JSON may bring them; also when a part that was left over is sealed."""
    writer.schema = SCHEMA.append(pa.field("note", pa.string()))
    for name in ("a", "b"):
        extent = writer.put(f"{name}.bin", name.encode() * 100)
        writer.commit({"clip_id": name, "note": f"{name}\ud800 \udcff ü"} | extent)
        if name == "a":
            writer.finish()
    die(writer)
    assert recover(store, GROUP) == 1
    rows = [row for part in store.names(GROUP, ".parquet") for row in pq.read_table(store.path(part)).to_pylist()]
    assert sorted(row["note"] for row in rows) == ["a\\ud800 \\udcff ü", "b\\ud800 \\udcff ü"]
    assert visible(store) == expect("a", "b")


def test_a_living_writers_part_is_left_alone(store, writer):
    write(writer, "a")
    assert recover(store, GROUP) == 0 and visible(store) == {}
    write(writer, "b")
    writer.finish()
    assert visible(store) == expect("a", "b")


@pytest.mark.parametrize("cut", range(2, 120, 7))
def test_a_journal_torn_anywhere_gives_whole_clips_only(store, writer, cut):
    for name in "abc":
        write(writer, name)
    die(writer)
    journal = writer.part.journal_path
    os.truncate(journal, journal.stat().st_size - cut)
    saved = recover(store, GROUP)
    assert visible(store) == expect(*"abc"[:saved]) and saved < 3


def test_a_bit_flipped_in_an_open_part_costs_clips_but_changes_none(store, tmp_path):
    draw = random.Random(0)
    for number in range(40):
        part = PartWriter(store, GROUP, SCHEMA, TarShard)
        for name in "abc":
            write(part, name)
        die(part)
        path = draw.choice([part.part.journal_path, part.part.shard.path])
        data = bytearray(path.read_bytes())
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        saved = recover(store, GROUP)
        assert visible(store) == expect(*"abc"[:saved]), number
        shutil.rmtree(Path(store.root) / GROUP)


def test_a_payload_torn_by_a_power_cut_ends_what_is_saved(store, writer):
    for name in "abc":
        write(writer, name)
    die(writer)
    shard = writer.part.shard.path
    os.truncate(shard, writer.part.shard.entries[1].offset + 10)
    assert recover(store, GROUP) == 1
    assert visible(store) == expect("a")


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_kill_within_the_commit_is_completed(store, writer, steps, tmp_path):
    """Sealing renames the payload (1), writes the Parquet file (2), removes the journal (3)."""
    write(writer, "a")
    part = writer.part
    part.shard.close(finish=True)
    target = Path(store.root) / GROUP / part.shard.path.name
    journal = part.journal_path.read_bytes()
    if steps >= 1:
        shutil.move(part.shard.path, target)
    if steps >= 2:
        other = PartWriter(Store(str(tmp_path / "other")), GROUP, SCHEMA, TarShard)
        write(other, "a")
        other.finish()
        (made,) = (tmp_path / "other" / GROUP).glob("*.parquet")
        table = pq.read_table(made)
        names = pa.array([target.name])
        table = table.set_column(1, "shard", names)
        pq.write_table(table, target.with_suffix(".parquet"))
    part.journal.close()
    if steps >= 3:
        part.journal_path.unlink()
        part.journal_path.with_suffix(".tar").write_bytes(journal)  # a stray payload without a journal
    recover(store, GROUP)
    assert visible(store) == expect("a")
    assert list(part.folder.iterdir()) == []


def test_rollback_forgets_payloads_without_a_row(store, writer):
    write(writer, "a")
    writer.put("b.bin", b"b" * 10_000)
    writer.rollback()
    write(writer, "c")
    writer.finish()
    assert visible(store) == expect("a", "c")
    (tar,) = (Path(store.root) / GROUP).glob("*.tar")
    assert tar.stat().st_size < 5_000


def test_parts_are_sealed_as_they_grow(store, writer, monkeypatch):
    monkeypatch.setattr("openuni.manifests.corpus.writer.MAX_PART_ROWS", 2)
    for name in "abcde":
        write(writer, name)
    assert visible(store) == expect(*"abcd")
    writer.finish()
    assert visible(store) == expect(*"abcde")
    assert len(store.names(GROUP, ".parquet")) == 3


def test_a_full_disk_says_what_to_do(store):
    with pytest.raises(StorageFull, match="Free some space, then rerun the same command"), storage_errors(store):
        raise OSError(28, "No space left on device")
    with pytest.raises(OSError, match="Permission denied"), storage_errors(store):
        raise PermissionError(13, "Permission denied")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b", "a\\b", "a\0b"])
def test_names_that_leave_the_corpus_are_refused(store, name):
    with pytest.raises(OpenUniError, match="is not a name inside"):
        store.read(name)


def test_rows_written_as_one_are_seen_together_or_not_at_all(store, tmp_path):
    writer = PartWriter(store, "clips", SCHEMA)
    rows = [{"clip_id": name} for name in ("a", "b", "c")]
    writer.commit(*rows[:1])
    writer.commit(*rows[1:])
    journal = writer.part.journal_path
    writer.part.journal.close()
    whole = journal.read_bytes()
    seen = set()
    for cut in range(whole.index(b"\n") + 1, len(whole) + 1, 7):
        left = Store(str(tmp_path / f"cut{cut}"))
        folder = Path(left.root) / "clips" / ".open"
        folder.mkdir(parents=True)
        (folder / journal.name).write_bytes(whole[:cut])
        saved = recover(left, "clips")
        found = [
            row["clip_id"]
            for part in left.names("clips", ".parquet")
            for row in pq.read_table(left.path(part)).to_pylist()
        ]
        assert len(found) == saved
        seen.add("".join(found))
    assert recover(store, "clips") == 3 and seen == {"", "a"}


def test_journals_of_earlier_versions_are_recovered(store):
    writer = PartWriter(store, "clips", SCHEMA)
    writer.commit({"clip_id": "a"})
    journal = writer.part.journal_path
    writer.part.journal.close()
    head = journal.read_bytes().split(b"\n")[0]
    text = json.dumps({"row": {"clip_id": "old"}, "entries": []}).encode()
    journal.write_bytes(head + b"\n%016x %s\n" % (xxhash.xxh3_64_intdigest(text), text))
    assert recover(store, "clips") == 1
    (part,) = store.names("clips", ".parquet")
    assert pq.read_table(store.path(part)).column("clip_id").to_pylist() == ["old"]


def test_the_next_run_sweeps_what_a_killed_one_left_half_written(tmp_path):
    corpus = Corpus.create(str(tmp_path / "corpus"))
    runs = tmp_path / "corpus" / "runs"
    runs.mkdir()
    (runs / ".20260101T000000.json.0123abcd.tmp").write_text("{")
    (runs / ".mine.tmp").write_text("not of ours")
    with lock(corpus.store):
        assert [path.name for path in runs.iterdir()] == [".mine.tmp"]


@pytest.mark.parametrize("sealed", ["a c", "b", "a b c", ""], ids=str)
@pytest.mark.parametrize("moved", [False, True], ids=["in the spool", "shard moved"])
def test_a_machine_that_comes_back_adds_no_second_rows(tmp_path, monkeypatch, sealed, moved):
    """Open parts of an object store's corpus lie on the machine that was killed; another has done clips meanwhile."""
    monkeypatch.setenv("OPENUNI_SPOOL", str(tmp_path / "killed"))
    store = Store(f"memory://{tmp_path.name}-{sealed.replace(' ', '')}-{moved}")
    late = PartWriter(store, GROUP, SCHEMA, TarShard)
    for name in ("a", "b", "c"):
        write(late, name)
    part = late.part
    die(late)
    if moved:  # killed between the upload of the shard and that of its rows
        shard = part.folder / f"{part.name}.tar"
        store.put(f"{GROUP}/{shard.name}", shard.read_bytes())
    monkeypatch.setenv("OPENUNI_SPOOL", str(tmp_path / "other"))
    if sealed:
        other = PartWriter(store, GROUP, SCHEMA, TarShard)
        for name in sealed.split():
            write(other, name)
        other.finish()
    monkeypatch.setenv("OPENUNI_SPOOL", str(tmp_path / "killed"))
    assert recover(store, GROUP) == 3 - len(sealed.split())
    assert visible(store) == expect("a", "b", "c")
    assert recover(store, GROUP) == 0
    rows = [len(pq.read_table(store.path(name), filesystem=store.fs)) for name in store.names(GROUP, ".parquet")]
    assert all(rows)


@pytest.mark.parametrize("lost_after", range(4))
@pytest.mark.parametrize("step", ["seal", "recover"])
def test_rows_that_arrive_after_a_takeover_are_withdrawn(tmp_path, monkeypatch, step, lost_after):
    """Whichever of its writes is under way when another run takes over: a part has two, each after a check."""
    monkeypatch.setenv("OPENUNI_SPOOL", str(tmp_path / "spool"))
    store = Store(f"memory://{tmp_path.name}-{step}-{lost_after}")
    writer = PartWriter(store, GROUP, SCHEMA, TarShard)
    write(writer, "a")
    if step == "recover":
        die(writer)
    checks = 0

    def check() -> None:
        nonlocal checks
        checks += 1
        if checks > lost_after:
            raise LeaseLost("taken over")

    store.fence = check
    if lost_after >= 3:
        writer.finish() if step == "seal" else recover(store, GROUP)
        assert visible(store) == expect("a")
        return
    with pytest.raises(LeaseLost):
        writer.finish() if step == "seal" else recover(store, GROUP)
    store.fence = None
    assert store.names(GROUP, "") == []


def test_two_open_parts_with_the_same_clip_give_one_row(store):
    for _ in range(2):
        writer = PartWriter(store, GROUP, SCHEMA, TarShard)
        write(writer, "a")
        die(writer)
    assert recover(store, GROUP) == 1 and visible(store) == expect("a")


@pytest.mark.parametrize("room_bytes", [0, 1, 20, 60])
def test_a_line_that_a_full_disk_cuts_spoils_no_later_one(store, writer, room_bytes):
    write(writer, "a")
    extent = writer.put("b.bin", b"b" * 100)
    with files_of_at_most(writer.part.journal_path.stat().st_size + room_bytes), pytest.raises(StorageFull):
        writer.commit({"clip_id": "b"} | {key: extent[key] for key in ("shard", "offset", "nbytes")})
    writer.rollback()
    write(writer, "c")
    die(writer)
    assert recover(store, GROUP) == 2 and visible(store) == expect("a", "c")


@pytest.mark.parametrize("step", ["open", "put", "commit", "finish"])
def test_an_error_of_the_disk_is_no_error_of_the_clip(store, writer, step):
    """It ends the run, whichever step meets it: as a failed row, a rerun would not retry the clip."""
    group = Path(store.root) / GROUP
    if step == "open":
        group.mkdir(parents=True)
        (group / ".open").write_text("in the way")
    else:
        write(writer, "a")
        if step == "put":
            writer.part.shard.file.close()
            writer.part.shard.file = writer.part.shard.path.open("rb", buffering=0)  # of a disk that is read-only now
        if step == "commit":
            writer.part.journal.close()
            writer.part.journal = writer.part.journal_path.open("rb", buffering=0)
        if step == "finish":
            writer.part.shard.path.unlink()
    with pytest.raises(StorageFailed, match=f"cannot write to {store.url} .*Everything finished is kept.*rerun"):
        if step == "finish":
            writer.finish()
        else:
            write(writer, "b")
