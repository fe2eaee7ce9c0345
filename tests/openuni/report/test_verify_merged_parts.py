"""`openuni verify` of parts that were merged: a damaged shard costs its own rows, wherever they are now."""

import tarfile
from pathlib import Path

import pytest

import openuni
from openuni.console.progress import Reporter
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.parts.compaction import compact
from openuni.manifests.errors import DamagedFile
from openuni.report.verify_report import VerifyReport
from tests.command_line import cli
from tests.small_parts import MAPS, compact_all, copied_small_parts, killed_at, seen


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return copied_small_parts(tmp_path / "corpus")


def verify(corpus: Corpus, repair: bool = False) -> VerifyReport:
    return openuni.verify(corpus.store.url, repair=repair, reporter=Reporter(quiet=True))


def test_a_lost_shard_of_a_merged_part_costs_the_rows_in_it_and_no_others(corpus):
    compact_all(corpus)
    shard = corpus.store.names(MAPS, ".tar")[2]
    corpus.store.delete(shard)
    assert corpus.missing_shards(MAPS) == [shard]
    told = cli("summary", corpus.store.url)
    assert told.returncode == 2 and f"{shard} is missing" in told.stderr and "verify" in told.stderr
    (damage,) = verify(corpus).damage
    assert (damage.file, damage.clips) == (shard, 1)
    assert verify(corpus, repair=True).is_sound and verify(corpus).damage == ()
    left = Corpus.open(corpus.store.url).table(MAPS, ["clip_id"]).column("clip_id").to_pylist()
    assert sorted({row["clip_id"] for row in corpus.table("clips").to_pylist()} - {*left}) == ["clip-2-0"]


@pytest.mark.parametrize("place", ["payload", "header"])
def test_a_damaged_shard_of_a_merged_part_costs_the_rows_in_it_and_no_others(corpus, place):
    compact_all(corpus)
    shard = corpus.store.names(MAPS, ".tar")[1]
    data = bytearray(corpus.store.read(shard))
    with tarfile.open(corpus.store.local(shard)) as tar:
        offset = tar.getmembers()[0].offset_data
    data[offset if place == "payload" else 3] ^= 1
    corpus.store.put(shard, bytes(data))
    (damage,) = verify(corpus).damage
    assert damage.file == shard
    assert verify(corpus, repair=True).is_sound and verify(corpus).damage == ()
    left = Corpus.open(corpus.store.url).table(MAPS, ["clip_id"]).column("clip_id").to_pylist()
    assert len(left) == 7 and "clip-1-0" not in left
    assert not corpus.store.exists(shard) and len(corpus.store.names(MAPS, ".tar")) == 3


def test_a_damaged_merged_part_is_set_aside_with_its_shards(corpus):
    compact_all(corpus)
    (part,) = corpus.parts(MAPS)
    data = bytearray(corpus.store.read(part))
    data[40] ^= 1
    corpus.store.put(part, bytes(data))
    (damage,) = verify(corpus).damage
    assert damage.file == part
    assert verify(corpus, repair=True).is_sound and verify(corpus).damage == ()
    assert corpus.store.names(MAPS, (".tar", ".parquet")) == []
    (time,) = corpus.store.folders("damaged")
    assert len(corpus.store.names(f"damaged/{time}/{MAPS}", (".tar", ".parquet"))) == 5


@pytest.mark.parametrize("place", [40, -40], ids=["page", "footer"])
def test_if_the_merged_part_of_a_killed_compaction_is_damaged_the_others_count(corpus, monkeypatch, place):
    expected = seen(corpus.store.url)
    assert killed_at(2, monkeypatch, lambda: compact(corpus, MAPS))
    merged = next(name for name in corpus.store.names(MAPS, ".parquet") if "-c1" in name)
    data = bytearray(corpus.store.read(merged))
    data[place] ^= 1
    corpus.store.put(merged, bytes(data))
    with pytest.raises(DamagedFile, match="-c1"):
        seen(corpus.store.url)
    (damage,) = verify(corpus).damage
    assert damage.file == merged
    assert verify(corpus, repair=True).is_sound and verify(corpus).damage == ()
    assert seen(corpus.store.url) == expected
