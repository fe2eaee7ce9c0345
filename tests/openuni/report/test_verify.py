"""`openuni verify`: each kind of damage is named with what depends on it; a repair costs what was lost and no more."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest

import openuni
from openuni.console.progress import Reporter
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.parts.part_files import read_part, table_bytes
from openuni.manifests.storage.lock import lock
from openuni.report.verify_report import VerifyReport
from tests.command_line import cli
from tests.raw_clips import contents, write_clips
from tests.tiny_corpus import RECIPE

FORMAT = "tests.operators.drawn_set"


def run(raw: Path, out: Path | str) -> Corpus:
    return openuni.run(RECIPE, raw, out=out, reporter=Reporter(quiet=True))


def verify(path: Path | str, sample: float | None = None, *, repair: bool = False) -> VerifyReport:
    return openuni.verify(path, sample, repair=repair, reporter=Reporter(quiet=True))


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    write_clips(folder, 4)
    return folder


@pytest.fixture(scope="module")
def whole(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of four clips, with one part per column group."""
    folder = tmp_path_factory.mktemp("whole") / "corpus"
    run(raw, folder)
    return folder


@pytest.fixture
def corpus(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "corpus")


def only(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def planned(folder: Path) -> dict[str, int]:
    """Items of each phase of the newest run."""
    ledger = json.loads(max((folder / "runs").glob("*.json")).read_text())
    return {phase["phase"]: phase["planned"] for phase in ledger["phases"]}


def test_a_sound_corpus(corpus: Path) -> None:
    report = verify(corpus)
    assert report.is_sound and report.damage == () and report.notes == ()
    assert (report.parts, report.payloads, report.all_payloads) == (6, 16, 16)  # 4 maps, 3 x 4 tensors
    assert report.records == 5 and report.payload_bytes > 1000
    done = cli("verify", corpus)
    assert done.returncode == 0 and done.stdout.endswith("sound\n") and "payloads: 5/5 done" in done.stderr
    assert verify(str(corpus)) == verify(Corpus.open(str(corpus)).store.url)


def damage_part(folder: Path) -> tuple[str, str, int | None]:
    part = only(folder, "filters/luminance/*.parquet")
    flip(part, -200)
    return str(part.relative_to(folder)), "checksum mismatch of the footer", None


def damage_payload(folder: Path) -> tuple[str, str, int | None]:
    opened = Corpus.open(str(folder))
    extent = opened[1].row("dis")["flow"]
    shard = folder / "annotations/dis" / extent["shard"]
    flip(shard, extent["offset"] + 20)
    return str(shard.relative_to(folder)), "checksum mismatch at offset", 1


def damage_missing_shard(folder: Path) -> tuple[str, str, int | None]:
    shard = only(folder, "latents/*/flow/*.safetensors")
    shard.unlink()
    return str(shard.relative_to(folder)), "the file is missing", 4


def damage_truncated_shard(folder: Path) -> tuple[str, str, int | None]:
    shard = only(folder, "text/*/*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-10])
    return str(shard.relative_to(folder)), "bytes at offset", 1


def damage_shard_header(folder: Path) -> tuple[str, str, int | None]:
    shard = only(folder, "latents/*/rgb/*.safetensors")
    flip(shard, 12)  # the name of a tensor
    return str(shard.relative_to(folder)), "its headers do not list 1 of 4 payloads", None


def damage_tar_header(folder: Path) -> tuple[str, str, int | None]:
    shard = only(folder, "annotations/dis/*.tar")
    flip(shard, 3)  # the name of the first member
    return str(shard.relative_to(folder)), "its headers", None


def damage_family(folder: Path) -> tuple[str, str, int | None]:
    path = only(folder, "latents/*/family.json")
    path.write_text(path.read_text().replace('"frames": 5', '"frames": 9'))
    return str(path.relative_to(folder)), "checksum mismatch", None


def damage_ledger(folder: Path) -> tuple[str, str, int | None]:
    path = only(folder, "runs/*.json")
    path.write_bytes(path.read_bytes()[:-20])
    return str(path.relative_to(folder)), "not valid JSON", None


def damage_record(folder: Path) -> tuple[str, str, int | None]:
    path = folder / "corpus.json"
    path.write_text(path.read_text().replace("0.05", "0.07"))
    return "corpus.json", "checksum mismatch", None


def damage_orphan(folder: Path) -> tuple[str, str, int | None]:
    shard = only(folder, "annotations/dis/*.tar")
    shard.with_suffix(".parquet").unlink()
    return str(shard.relative_to(folder)), "no Parquet part refers to it", None


def damage_duplicate_rows(folder: Path) -> tuple[str, str, int | None]:
    part = only(folder, "filters/luminance/*.parquet")
    rows = read_part(Corpus.open(str(folder)).store, str(part.relative_to(folder)))
    part.write_bytes(table_bytes(pa.concat_tables([rows, rows.slice(0, 1)])))
    return str(part.relative_to(folder)), "more than one row", 1


def damage_duplicate_parts(folder: Path) -> tuple[str, str, int | None]:
    part = only(folder, "clips/*.parquet")
    rows = read_part(Corpus.open(str(folder)).store, str(part.relative_to(folder)))
    copy = part.with_name(part.name.replace("part-", "part-0"))
    copy.write_bytes(table_bytes(rows.slice(2)))
    return str(part.relative_to(folder)), "more than one row", 2


def damage_reference(folder: Path) -> tuple[str, str, int | None]:
    """A row that refers to a file of another folder."""
    part = only(folder, "latents/*/rgb/*.parquet")
    rows = read_part(Corpus.open(str(folder)).store, str(part.relative_to(folder)))
    shards = pa.array(["../" + rows["shard"][0].as_py(), *rows["shard"].to_pylist()[1:]])
    part.write_bytes(table_bytes(rows.set_column(rows.column_names.index("shard"), "shard", shards)))
    return str(part.relative_to(folder)), "which is no file of its folder", 1


# damage -> what the next run computes: items by phase
DAMAGES: dict[Callable[[Path], tuple[str, str, int | None]], dict[str, int]] = {
    damage_part: {"luminance": 4},
    damage_payload: {"dis": 1},
    damage_missing_shard: {"encode": 4},
    damage_truncated_shard: {"encode": 4},  # no program could read what is left of the file
    damage_shard_header: {"encode": 4},
    damage_tar_header: {"dis": 4},
    damage_family: {},
    damage_ledger: {},
    damage_record: {},
    damage_orphan: {"dis": 4},
    damage_duplicate_rows: {},
    damage_duplicate_parts: {},
    damage_reference: {"encode": 1},
}


@pytest.mark.parametrize("header", [b"[]", b"null", b'{"a": 1}', b"[" * 100_000, b"\xff"], ids=range(5))
def test_a_header_of_another_kind_is_damage(corpus: Path, header: bytes) -> None:
    shard = only(corpus, "latents/*/rgb/*.safetensors")
    data = shard.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = header.ljust(end - 8)  # if it fits, the payloads stay where they are
    shard.write_bytes(len(header).to_bytes(8, "little") + header + data[end:])
    done = cli("verify", corpus)
    assert done.returncode == 1 and f"{shard.relative_to(corpus)}: its headers are damaged" in done.stdout, done


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_is_named_and_repaired_at_the_cost_of_what_was_lost(
    damage: Callable[[Path], tuple[str, str, int | None]], corpus: Path, raw: Path
) -> None:
    before = contents(Corpus.open(str(corpus)))
    record = Corpus.open(str(corpus)).record
    file, reason, clips = damage(corpus)
    report = verify(corpus)
    assert not report.is_sound
    found = next(one for one in report.damage if one.file == file)
    assert reason in found.reason and found.clips == clips and found.depends
    assert clips is None or len(found.clip_ids) == clips
    assert found.reason in str(report) and cli("verify", corpus).returncode == 1
    files = {path.read_bytes() for path in corpus.rglob("*") if path.is_file()}

    done = cli("verify", corpus, "--repair", "--json")
    assert done.returncode == 0, done
    assert all(one["repaired"] for one in json.loads(done.stdout)["damage"])
    after = {path.read_bytes() for path in corpus.rglob("*") if path.is_file()}
    gone = files - after
    assert gone <= {b""}, "the repair deleted something"
    assert verify(corpus).damage == ()
    assert contents(run(raw, corpus)) == before
    assert planned(corpus) == DAMAGES[damage]
    assert verify(corpus).damage == ()
    assert {**Corpus.open(str(corpus)).record, "created": ""} == {**record, "created": ""}


def test_everything_at_once(corpus: Path, raw: Path) -> None:
    before = contents(Corpus.open(str(corpus)))
    for damage in (damage_part, damage_payload, damage_missing_shard, damage_shard_header, damage_ledger):
        damage(corpus)
    damage_record(corpus)
    assert len(verify(corpus).damage) == 6
    assert verify(corpus, repair=True).is_sound
    assert verify(corpus).damage == ()
    assert contents(run(raw, corpus)) == before


def test_a_lost_clips_part_comes_back_with_the_sources(corpus: Path, raw: Path) -> None:
    before = contents(Corpus.open(str(corpus)))
    flip(only(corpus, "clips/*.parquet"), 400)
    (found,) = verify(corpus, repair=True).damage
    assert found.depends == ("every result of its clips",) and "run again with the sources" in found.repaired
    assert any("rows of clips that are not in clips/" in note for note in verify(corpus).notes)
    assert contents(run(raw, corpus)) == before
    assert planned(corpus) == {"ingest": 4}


@pytest.mark.parametrize("what", ["payload", "part", "shard"])
def test_what_an_import_brought_is_imported_again(what: str, tmp_path: Path) -> None:
    (tmp_path / "drawn").mkdir()
    for number in (1, 2, 4):
        (tmp_path / "drawn" / f"clip{number}.clip").write_text(str(number))
    corpus = openuni.import_set(FORMAT, tmp_path / "drawn", out=tmp_path / "corpus", reporter=Reporter(quiet=True))
    before = contents(corpus)
    group = tmp_path / "corpus" / "annotations" / FORMAT
    rows = corpus.table(f"annotations/{FORMAT}").to_pylist()
    if what == "payload":
        flip(only(group, "*.tar"), rows[0][FORMAT]["rgb"]["offset"] + 50)
    elif what == "part":
        flip(only(group, "*.parquet"), -100)
    else:
        only(group, "*.tar").unlink()
    assert not verify(tmp_path / "corpus").is_sound
    assert verify(tmp_path / "corpus", repair=True).is_sound
    lost = 1 if what == "payload" else 3
    assert len(openuni.open_corpus(tmp_path / "corpus")) == 3 - lost
    again = openuni.import_set(FORMAT, tmp_path / "drawn", out=tmp_path / "corpus", reporter=Reporter(quiet=True))
    assert contents(again) == before or {row["clip_id"] for row in contents(again)["clips"]} == {
        row["clip_id"] for row in before["clips"]
    }
    assert verify(tmp_path / "corpus").damage == ()


def test_superseded_parts_are_verified_too(corpus: Path) -> None:
    part = only(corpus, "filters/luminance/*.parquet")
    old = part.parent / "superseded" / "0123456789abcdef" / "part-1.parquet"
    old.parent.mkdir(parents=True)
    old.write_bytes(part.read_bytes())
    assert verify(corpus).is_sound and verify(corpus).parts == 7
    flip(old, 100)
    (found,) = verify(corpus).damage
    assert found.file.endswith("0123456789abcdef/part-1.parquet") and "earlier version" in found.depends[0]
    assert verify(corpus, repair=True).is_sound and not old.exists()


def test_what_is_normal_is_a_note(corpus: Path) -> None:
    leftover = corpus / "clips" / ".part-1.parquet.0123abcd.tmp"
    leftover.write_bytes(b"half")
    opened = Corpus.open(str(corpus))
    opened.delete_rows("filters/luminance", lambda rows: pa.chunked_array([[True, False, False, False]]))
    report = verify(corpus)
    assert report.is_sound and report.damage == ()
    assert "1 temporary files of killed processes" in "\n".join(report.notes)
    assert "filters/luminance: 1 of 4 clips have no row" in "\n".join(report.notes)
    assert cli("verify", corpus).returncode == 0


def test_a_sample_reads_some_payloads_and_all_references(corpus: Path) -> None:
    assert verify(corpus, 0.25).payloads == 4
    assert verify(corpus, 3).payloads == 3 and verify(corpus, 1000).payloads == 16
    report = openuni.verify(corpus, 5, seed=1, reporter=Reporter(quiet=True))
    assert report.all_payloads == 16 and report.is_sound and "in the sample" in str(report)
    damage_missing_shard(corpus)
    assert not verify(corpus, 1).is_sound
    for bad in (0, -1, 1.5, float("nan"), True):
        with pytest.raises(openuni.OpenUniError, match=r"--sample .*fraction"):
            verify(corpus, bad)


def test_damage_in_the_sample_is_found_in_the_end(corpus: Path) -> None:
    """Another sample each time."""
    damage_payload(corpus)
    assert any(not verify(corpus, 4).is_sound for _ in range(60))


def test_a_corpus_on_a_url(corpus: Path) -> None:
    memory = fsspec.filesystem("memory")
    for path in corpus.rglob("*"):
        if path.is_file() and not path.name.endswith(".lock"):
            memory.pipe(f"/{corpus.parent.name}/{path.relative_to(corpus)}", path.read_bytes())
    url = f"memory://{corpus.parent.name}"
    assert verify(url).is_sound and verify(url).payloads == 16
    opened = Corpus.open(url)
    extent = opened[1].row("dis")["flow"]
    data = bytearray(opened.store.read(f"annotations/dis/{extent['shard']}"))
    data[extent["offset"]] ^= 1
    opened.store.put(f"annotations/dis/{extent['shard']}", bytes(data))
    opened.store.delete(opened.store.names(opened.record["encoded"]["rgb"], ".safetensors")[0])
    report = verify(url, repair=True)
    assert [one.clips for one in report.damage] == [1, 4] and report.is_sound
    assert verify(url).damage == () and len(Corpus.open(url).table("annotations/dis")) == 3


def test_a_corpus_of_an_earlier_version_has_no_checksums_and_says_so(corpus: Path) -> None:
    import pyarrow.parquet as pq

    part = only(corpus, "clips/*.parquet")
    pq.write_table(pq.read_table(part), part)
    record = json.loads((corpus / "corpus.json").read_text())
    del record["checksum"]
    (corpus / "corpus.json").write_text(json.dumps(record))
    report = verify(corpus)
    assert report.is_sound and report.notes[0].startswith("1 Parquet parts have no checksums")


def test_what_cannot_be_verified_is_refused(corpus: Path, tmp_path: Path) -> None:
    done = cli("verify", tmp_path / "nothing")
    assert done.returncode == 2 and "neither a corpus" in done.stderr
    assert not (tmp_path / "nothing").exists()
    with lock(Corpus.open(str(corpus)).store):
        assert verify(corpus).is_sound
        damage_part(corpus)
        with pytest.raises(openuni.OpenUniError, match="is locked by another run"):
            verify(corpus, repair=True)
    assert cli("verify", corpus, "--workers", 0).returncode == 2
