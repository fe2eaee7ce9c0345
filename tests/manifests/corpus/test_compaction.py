"""Small parts become few: every row is seen once, wherever a compaction is killed and whoever reads meanwhile."""

import shutil
import tarfile
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import openuni
from openuni.console.progress import Reporter
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.parts import compaction, part_listing
from openuni.manifests.corpus.parts.compaction import compact, compact_if_worthwhile
from openuni.manifests.corpus.parts.part_files import table_bytes
from openuni.manifests.corpus.writer import PartWriter
from openuni.manifests.errors import OpenUniError
from openuni.manifests.storage.lock import lock
from openuni.manifests.storage.store import Store
from tests.command_line import cli
from tests.s3_server import s3_bucket
from tests.small_parts import (
    GROUPS,
    KEEP,
    MAPS,
    add_part,
    compact_all,
    copied_small_parts,
    killed_at,
    part_names,
    rows_seen,
    seen,
    small_parts,
)

VERSION_0_1 = Path(__file__).parents[2] / "data" / "version_0_1"


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return copied_small_parts(tmp_path / "corpus")


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory):
    with s3_bucket("compaction") as url, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENUNI_SPOOL", str(tmp_path_factory.mktemp("spool")))
        yield url


def files(corpus: Corpus) -> set[str]:
    return {
        name for group in (*GROUPS, f"{MAPS}/superseded/1") for name in corpus.store.names(group, (".parquet", ".tar"))
    }


def test_all_that_readers_see_stays_and_shards_are_not_touched(corpus):
    before, files_before = seen(corpus.store.url), files(corpus)
    done = compact(corpus, "clips"), compact(corpus, "filters/motion"), compact(corpus, MAPS)
    assert [str(one).partition(":")[2] for one in done] == [" 4 parts merged into 1, 8 rows rewritten"] * 3
    assert seen(corpus.store.url) == before
    first = {group: min(name for name in files_before if name.startswith(group)) for group in GROUPS}
    assert part_names(corpus) == {group: [first[group].replace(".parquet", "-c1.parquet")] for group in GROUPS}
    tars = {name for name in files_before if name.endswith(".tar")}
    assert files(corpus) == tars | {name for several in part_names(corpus).values() for name in several}
    assert str(compact(corpus, MAPS)) == f"{MAPS}: 1 parts, nothing to merge"


def test_names_and_bytes_are_the_same_every_time_and_later_parts_come_last(corpus, tmp_path):
    other = copied_small_parts(tmp_path / "other")
    for one in (corpus, other):
        compact_all(one)
    assert part_names(corpus) == part_names(other)
    for names in part_names(corpus).values():
        assert [corpus.store.read(name) for name in names] == [other.store.read(name) for name in names]
    add_part(corpus, ["later-0", "later-1"])
    before = seen(corpus.store.url)
    assert before["ids"][-2:] == ["later-0", "later-1"]
    compact_all(corpus)
    assert [len(names) for names in part_names(corpus).values()] == [1, 1, 1]
    assert all(name.endswith("-c2.parquet") for (name,) in part_names(corpus).values())
    assert seen(corpus.store.url) == before


def check_kills(fresh: Callable[[], Corpus], monkeypatch: pytest.MonkeyPatch) -> int:
    """Kill a compaction at each of its changes; returns how many there are."""
    whole = fresh()
    expected = rows_seen(whole)
    compact_all(whole)
    kills = 0
    while True:
        corpus = fresh()
        if not killed_at(kills + 1, monkeypatch, partial(compact_all, corpus)):
            return kills
        kills += 1
        url = corpus.store.url
        assert rows_seen(Corpus.open(url)) == expected, f"killed before change {kills}"
        report = openuni.verify(url, reporter=Reporter(quiet=True))
        assert report.is_sound and report.damage == (), f"killed before change {kills}: {report}"
        hidden = files(corpus) - files(whole) - {name for names in part_names(corpus).values() for name in names}
        told = [note for note in report.notes if "an interrupted compaction left" in note]
        assert len(told) == len({name.rpartition("/")[0] for name in hidden}), f"{kills}: {report.notes}"
        if kills % 2:
            repaired = openuni.verify(url, repair=True, reporter=Reporter(quiet=True))
            assert repaired.is_sound and not any("compaction left" in note for note in repaired.notes)
            assert not hidden & files(corpus)
        compact_all(Corpus.open(url))
        assert rows_seen(Corpus.open(url)) == expected and files(corpus) == files(whole), (
            f"killed before change {kills}"
        )


def test_killed_at_any_change_every_row_is_seen_once_and_the_next_one_completes_it(tmp_path, monkeypatch):
    small_parts(tmp_path / "small", parts=3)
    numbers = iter(range(1000))

    def fresh() -> Corpus:
        return Corpus.open(str(shutil.copytree(tmp_path / "small", tmp_path / str(next(numbers)))))

    assert check_kills(fresh, monkeypatch) == 3 * 4  # one part written and three deleted in each group


@pytest.mark.slow
def test_the_same_on_an_object_store(bucket, monkeypatch):
    made, numbers = small_parts(f"{bucket}/small", parts=3).store, iter(range(1000))

    def fresh() -> Corpus:
        store = Store(f"{bucket}/{next(numbers)}")
        for path in made.fs.find(made.root):
            made.fs.cp_file(path, store.path(made.name_of(path)))
        return Corpus.open(store.url)

    assert check_kills(fresh, monkeypatch) == 3 * 4


def test_on_an_object_store_it_is_merged_under_the_lease(bucket):
    corpus = small_parts(f"{bucket}/whole", parts=3)
    before = seen(corpus.store.url)
    compact_all(corpus)
    assert [len(names) for names in part_names(corpus).values()] == [1, 1, 1] and seen(corpus.store.url) == before
    assert len(corpus.store.names(MAPS, ".tar")) == 3


def test_another_writer_keeps_it_out(corpus):
    with lock(corpus.store), pytest.raises(OpenUniError, match="is locked by another run"):
        compact_all(corpus)


# ---------------------------------------------------------------------- concurrent readers


def test_a_reader_that_has_listed_the_parts_lists_again(corpus, monkeypatch):
    expected = seen(corpus.store.url)
    reader, calls = Corpus.open(corpus.store.url), []
    merged = part_listing.parts_dataset

    def late(store, parts, schema=None):
        calls.append(parts)
        if len(parts) > 1:  # as listed; now another process merges them
            compact(corpus, parts[0].rpartition("/")[0])
        return merged(store, parts, schema)

    monkeypatch.setattr(part_listing, "parts_dataset", late)
    for group in GROUPS:
        assert reader.table(group).to_pylist() == expected[group]
    assert [len(parts) for parts in calls] == [4, 1, 4, 1, 4, 1]


@pytest.mark.parametrize("read", ["table", "batches", "iterate", "index", "find", "select"])
def test_an_open_dataset_or_corpus_goes_on(corpus, tmp_path, read):
    expected, url = seen(corpus.store.url), corpus.store.url
    reader = Corpus.open(url)
    dataset, length = reader.dataset("clips"), len(reader)
    batches, clips = dataset.to_batches(batch_size=1), iter(reader)
    first, first_clip = next(batches), next(clips)
    compact_all(corpus)
    if read == "table":
        assert dataset.to_table().to_pylist() == expected["clips"]
    elif read == "batches":
        assert [row for batch in (first, *batches) for row in batch.to_pylist()] == expected["clips"]
    elif read == "iterate":
        assert [clip.clip_id for clip in (first_clip, *clips)] == expected["ids"]
    elif read == "index":
        assert [reader[number].clip_id for number in range(length)] == expected["ids"]
    elif read == "find":
        assert reader.find(MAPS, expected["ids"][5]) == expected[MAPS][5]
    else:
        assert seen(openuni.select(reader, "true", out=tmp_path / "cut").store.url)["ids"] == expected["ids"]


def test_no_reader_ever_sees_a_row_twice_or_not_at_all(tmp_path):
    """Parts come and are merged without a pause, while threads list and read."""
    corpus = small_parts(tmp_path / "corpus", parts=12, clips=1)
    stop, faults, reads = threading.Event(), [], []

    def watch() -> None:
        while not stop.is_set():
            try:
                ids = Corpus.open(corpus.store.url).table("clips", ["clip_id"]).column("clip_id").to_pylist()
            except Exception as error:  # noqa: BLE001  # whatever a reader would see
                faults.append(repr(error))
                return
            reads.append(len(ids))
            if ids[:12] != expected or len(set(ids)) != len(ids):
                faults.append(str(ids))

    expected = seen(corpus.store.url)["ids"]
    threads = [threading.Thread(target=watch) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(6):
        compact(corpus, "clips")
        add_part(corpus, [f"more-{number}"])
    stop.set()
    for thread in threads:
        thread.join()
    assert faults == [] and len(reads) >= 4


# ---------------------------------------------------------------------- journals, versions, shards


def test_a_machine_that_comes_back_with_a_journal_of_a_merged_part_loses_nothing(tmp_path, monkeypatch):
    """It was killed after the commit; another machine has merged the part, and deleted a row to retry it."""
    monkeypatch.setenv("OPENUNI_SPOOL", str(tmp_path / "killed"))
    corpus = small_parts(f"memory://{tmp_path.name}", parts=3)
    kept: dict[Path, bytes] = {}
    with monkeypatch.context() as patch:
        seal = compaction_safe_seal(kept)
        patch.setattr("openuni.manifests.corpus.writer.OpenPart.seal", seal)
        add_part(corpus, ["late-0", "late-1"])
    before = seen(corpus.store.url)
    monkeypatch.setenv("OPENUNI_SPOOL", str(tmp_path / "other"))
    compact_all(corpus)
    assert corpus.delete_by_status(MAPS, ["failed"]) == 4
    monkeypatch.setenv("OPENUNI_SPOOL", str(tmp_path / "killed"))
    for path, data in kept.items():
        path.write_bytes(data)
    assert corpus.recover() == 1  # the failed row that was deleted
    assert seen(corpus.store.url)["payloads"] == before["payloads"]
    compact_all(corpus)
    assert len(corpus.store.names(MAPS, ".tar")) == 4 and seen(corpus.store.url)["payloads"] == before["payloads"]


def compaction_safe_seal(kept: dict[Path, bytes]) -> Callable[..., None]:
    """`OpenPart.seal` of a machine that dies before it removes the journal."""
    from openuni.manifests.corpus.writer import OpenPart

    original = OpenPart.seal

    def seal(part: OpenPart, *arguments: object) -> None:
        kept[part.journal_path] = part.journal_path.read_bytes()
        original(part, *arguments)

    return seal


def test_a_part_that_is_recovered_under_the_name_of_a_merged_one_is_not_hidden(corpus):
    """`FIRST.parquet` beside `FIRST-c1.parquet` would count as replaced."""
    store, first = corpus.store, corpus.parts("filters/motion")[0]
    compact(corpus, "filters/motion")
    writer = corpus.writer("filters/motion", corpus.dataset("filters/motion").schema, "1")
    writer.commit({"clip_id": "new", "motion": {"status": "ok"}})
    assert isinstance(writer, PartWriter)
    journal = writer.part.journal_path
    writer.part.journal.close()
    journal.rename(journal.with_name(f"{Path(first).stem}.journal"))
    assert corpus.recover() == 1 and not store.exists(first)
    assert corpus.table("filters/motion", ["clip_id"]).column("clip_id").to_pylist()[-1] == "new"
    assert len(corpus.table("filters/motion")) == 9


def test_a_merged_part_goes_to_superseded_with_all_its_shards_and_comes_back(corpus):
    compact_all(corpus)
    before, files_before = seen(corpus.store.url), files(corpus)
    corpus.activate_version(MAPS, "2")
    assert corpus.parts(MAPS) == [] and corpus.store.names(MAPS, ".tar") == []
    assert len(files(corpus)) == len(files_before)
    assert openuni.verify(corpus.store.url, reporter=Reporter(quiet=True)).damage == ()
    corpus.activate_version(MAPS, "1")
    assert seen(corpus.store.url) == before and files(corpus) == files_before


def test_a_killed_compaction_is_finished_before_parts_are_moved_or_rewritten(corpus, monkeypatch):
    expected = seen(corpus.store.url)
    assert killed_at(3, monkeypatch, lambda: compact(corpus, MAPS))
    corpus.activate_version(MAPS, "2")
    assert corpus.parts(MAPS) == [] and corpus.store.names(MAPS, ".parquet") == []
    corpus.activate_version(MAPS, "1")
    assert seen(corpus.store.url) == expected
    assert killed_at(3, monkeypatch, lambda: compact(corpus, "clips"))
    openuni.split(corpus, {"test": 0.5})
    splits = {row["split"] for row in seen(corpus.store.url)["clips"]}
    assert splits == {"train", "test"} and len(corpus.store.names("clips", ".parquet")) == 1


def test_select_copies_only_the_shards_of_the_rows_that_it_keeps(corpus, tmp_path):
    compact_all(corpus)
    cut = openuni.select(corpus, "clip_id in ('clip-1-0', 'clip-3-1')", out=tmp_path / "cut")
    assert [row["clip_id"] for row in cut.table(MAPS).to_pylist()] == ["clip-1-0", "clip-3-1"]
    assert cut.store.names(MAPS, ".tar") == [corpus.store.names(MAPS, ".tar")[1]]
    assert seen(cut.store.url)["payloads"] == [b"clip-1-0" * 50]


def test_shards_without_payloads_in_use_go_with_their_part(tmp_path):
    corpus = small_parts(tmp_path / "corpus", parts=3)
    add_part(corpus, ["alone"])  # the only clip of its part failed: its shard holds nothing
    assert len(corpus.store.names(MAPS, ".tar")) == 4
    before = seen(corpus.store.url)
    compact_all(corpus)
    assert len(corpus.store.names(MAPS, ".tar")) == 3 and seen(corpus.store.url) == before
    assert openuni.verify(corpus.store.url, reporter=Reporter(quiet=True)).damage == ()


@pytest.mark.parametrize("text", ["{", '"a"', "[1]", '["../x.parquet"]'])
def test_a_list_that_is_no_list_of_names_is_refused(corpus, text, monkeypatch):
    first = corpus.parts("clips")[0]
    key = {compaction.REPLACES_KEY: text.encode()}
    table = corpus.table("clips").slice(0, 2)
    table = table.replace_schema_metadata(key)
    corpus.store.put(part_listing.merged_name(first), table_bytes(table))
    done = cli("summary", corpus.store.url)
    assert done.returncode == 2 and "openuni.replaces is not a list of file names" in done.stderr


# ---------------------------------------------------------------------- when


def test_at_the_end_of_a_phase_only_what_is_worthwhile_is_merged(corpus, monkeypatch):
    assert compact_if_worthwhile(corpus, GROUPS) == []  # four parts
    for number in range(4):
        add_part(corpus, [f"more-{number}-{clip}" for clip in range(2)])
    before = seen(corpus.store.url)
    done = compact_if_worthwhile(corpus, ["clips"])
    assert [(one.parts_before, one.parts_after) for one in done] == [(8, 1)] and seen(corpus.store.url) == before
    monkeypatch.setattr(compaction, "MAX_PART_ROWS", 5)  # parts of two rows: pairs of them fit, eight become four
    (one,) = compact_if_worthwhile(corpus, ["filters/motion"])
    assert (one.parts_before, one.parts_after) == (8, 4) and seen(corpus.store.url) == before
    monkeypatch.setattr(compaction, "MAX_PART_ROWS", 3)  # no longer small
    assert compact_if_worthwhile(corpus, [MAPS]) == [] and len(corpus.parts(MAPS)) == 8


def test_parts_of_other_versions_or_columns_are_not_merged_with_each_other(corpus):
    table = corpus.table("clips")
    others = [f"clips/part-{letter}.parquet" for letter in "xyz"]
    narrow = table.slice(0, 1).drop_columns(["content_hash"])
    for number, name in enumerate(others):
        ids = pa.array([f"old-{number}"])
        rows = narrow.set_column(narrow.schema.get_field_index("clip_id"), "clip_id", ids)
        corpus.store.put(name, table_bytes(rows))
    before = seen(corpus.store.url)
    compact(corpus, "clips")
    assert len(corpus.parts("clips")) == 2 and seen(corpus.store.url) == before


def test_a_damaged_part_leaves_the_group_as_it_is(corpus, caplog):
    for number in range(4):
        add_part(corpus, [f"more-{number}-{clip}" for clip in range(2)])
    part, names = corpus.parts("clips")[5], corpus.parts("clips")
    data = bytearray(corpus.store.read(part))
    data[40] ^= 1
    corpus.store.put(part, bytes(data))
    assert compact_if_worthwhile(corpus, ["clips"]) == [] and corpus.parts("clips") == names
    assert part in caplog.text
    assert cli("compact", corpus.store.url).returncode == 2 and corpus.parts("clips") == names


def test_the_command_says_what_it_did(corpus):
    done = cli("compact", corpus.store.url)
    assert done.returncode == 0 and done.stderr.count("4/4 done") == 3
    assert done.stdout.splitlines() == [f"{group}: 4 parts merged into 1, 8 rows rewritten" for group in GROUPS]
    again = cli("compact", corpus.store.url)
    assert again.stdout.splitlines() == [f"{group}: 1 parts, nothing to merge" for group in GROUPS]
    assert Corpus.open(corpus.store.url).kept_clip_ids(KEEP) == []


def test_a_corpus_of_version_0_1_is_merged_and_reads_the_same(tmp_path):
    with tarfile.open(VERSION_0_1 / "corpus.tar.xz") as tar:
        tar.extractall(tmp_path, filter="data")
    (folder,) = (path.parent for path in tmp_path.rglob("corpus.json"))
    corpus = Corpus.open(str(folder))
    before = {group: corpus.table(group).to_pylist() for group in corpus.groups()}, str(corpus.summary())
    rows = corpus.table("clips")
    corpus.delete_parts("clips")
    for number in range(len(rows)):  # the same rows, each in a part of its own, without checksums
        pq.write_table(rows.slice(number, 1), corpus.store.local(f"clips/part-{number:03}.parquet"))
    compact_all(corpus)
    corpus = Corpus.open(str(folder))
    assert corpus.parts("clips") == ["clips/part-000-c1.parquet"]
    assert ({group: corpus.table(group).to_pylist() for group in corpus.groups()}, str(corpus.summary())) == before
