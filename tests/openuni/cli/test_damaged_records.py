"""Damaged records and missing shards: named with what can be rebuilt, exit code 2, by every command that reads them."""

import json
import shutil
from pathlib import Path

import pytest

import openuni
from openuni.manifests.corpus.corpus import Corpus
from tests.command_line import Done, cli
from tests.raw_clips import contents


@pytest.fixture
def place(tiny: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny / "corpus", tmp_path / "corpus")
    return tmp_path / "corpus"


def commands(tiny: Path, place: Path, out: Path) -> dict[str, tuple[object, ...]]:
    return {
        "summary": ("summary", place),
        "explain": ("explain", place, "clip-000.mp4"),
        "select": ("select", place, "--keep", "true", "--out", out / "selected"),
        "export": ("export", place, "--format", "huggingface", "--workers", 1, "--out", out / "exported"),
        "split": ("split", place),
        "train": ("train", "unityvideo_debug", "--corpus", place, "--out", out / "run"),
        "run": ("run", tiny / "corpus.toml", tiny / "raw", "--out", place, "--workers", 0),
    }


def refused(done: Done, *texts: str) -> None:
    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr
    for text in texts:
        assert text in done.stderr, done.stderr


DAMAGE = {
    "empty": b"",
    "truncated": b'{"format": 1, "keep',
    "binary": bytes(range(256)),
    "other type": b"[1, 2]",
    "null": b"null",
    "nested": b"[" * 100_000,
    "no keys": b"{}",
}


def write_damaged(path: Path, damage: str, value: object) -> None:
    """Replace a record by DAMAGE, or else its entry of that name by the value; without the checksum that would tell."""
    record = {key: entry for key, entry in json.loads(path.read_bytes()).items() if key != "checksum"}
    path.write_bytes(DAMAGE[damage] if damage in DAMAGE else json.dumps(record | {damage: value}).encode())


@pytest.mark.parametrize("damage", [*DAMAGE, "keep", "filters", "annotators", "encoded", "format"])
def test_corpus_json(tiny: Path, place: Path, tmp_path: Path, damage: str) -> None:
    write_damaged(place / "corpus.json", damage, "1" if damage == "format" else {"a": [1]})
    for command in commands(tiny, place, tmp_path).values():
        refused(cli(*command), f"{place}/corpus.json is damaged", "recomputes nothing")


def test_corpus_json_can_be_rebuilt_as_the_message_says(tiny: Path, place: Path, tmp_path: Path) -> None:
    before = contents(Corpus.open(str(place)))
    (place / "corpus.json").write_bytes(b"")
    message = cli("summary", place).stderr
    text = message[message.index("{") : message.index("}}") + 2]
    (place / "corpus.json").write_text(text)
    assert cli("run", tiny / "corpus.toml", tiny / "raw", "--out", place, "--workers", 0).returncode == 0
    corpus = Corpus.open(str(place))
    assert contents(corpus) == before and str(corpus.summary()) == str(Corpus.open(str(tiny / "corpus")).summary())


@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        *(("latents", damage) for damage in (*DAMAGE, "codec", "modalities", "size_px", "frames", "options")),
        *(("text", damage) for damage in (*DAMAGE, "codec", "options")),
    ],
)
def test_family_json(tiny: Path, place: Path, tmp_path: Path, kind: str, damage: str) -> None:
    (path,) = (place / kind).glob("*/family.json")
    before = path.read_bytes()
    write_damaged(path, damage, [None])
    found = commands(tiny, place, tmp_path)
    for name in ("train", "select", *(["run"] if kind == "latents" else [])):
        refused(cli(*found[name]), f"{path} is damaged", "recomputes nothing")
    if damage == "empty":
        assert cli(*found["summary"]).returncode == 0  # reads none of it
        path.unlink()
        assert cli(*found["run"]).returncode == 0
        assert path.read_bytes() == before


@pytest.mark.parametrize("damage", [*DAMAGE, "recipe", "import", "options"])
def test_a_damaged_ledger_is_lost_history(tiny: Path, place: Path, tmp_path: Path, damage: str) -> None:
    (path,) = (place / "runs").glob("*.json")
    write_damaged(path, damage, 7)
    if damage in DAMAGE and damage != "no keys":
        found = cli("summary", place, "--json")
        assert f"skipped: {path} is damaged" in found.stderr and json.loads(found.stdout)["ok"] == 2
        assert f"runs/{path.name}: " in cli("verify", place, "--workers", 1).stdout
    every = commands(tiny, place, tmp_path)
    for name in every if damage == "truncated" else ("explain", "export"):  # a card lists options of earlier runs
        assert cli(*every[name]).returncode == 0, name
    assert cli("import", "openuni_csv", tiny / "raw", "--out", place, "--workers", 0).returncode == 2  # no such set


@pytest.mark.parametrize("group", ["annotations/dis", "latents/*/rgb", "latents/*/flow", "text/*"])
def test_a_missing_shard_is_named(tiny: Path, place: Path, tmp_path: Path, group: str) -> None:
    before = contents(Corpus.open(str(place)))
    (shard,) = (path for path in place.glob(f"{group}/part-*") if path.suffix in (".tar", ".safetensors"))
    shard.unlink()
    found = commands(tiny, place, tmp_path)
    names = ["summary", "run", "export"] if group == "annotations/dis" else ["summary", "run", "train"]
    for name in names:
        refused(cli(*found[name]), f"{shard} is missing", f"delete {shard.relative_to(place).with_suffix('.parquet')}")
    with pytest.raises(openuni.OpenUniError, match="is missing"):
        contents(Corpus.open(str(place)))
    shard.with_suffix(".parquet").unlink()  # as the message says
    assert cli(*found["run"]).returncode == 0
    assert contents(Corpus.open(str(place))) == before
    assert cli(*found["summary"]).returncode == 0
