"""Damaged records and missing shards: named with what can be rebuilt, exit code 2, by every command that reads them."""

import json
import shutil
from pathlib import Path

import pytest

import openuni
from openuni.console.progress import Reporter
from openuni.manifests.corpus.corpus import Corpus
from tests.command_line import Done, cli
from tests.raw_clips import contents, write_clips

RECIPE = """
keep = "luminance.mean > 0.05"
[work]
short_side_px = 32
[filters.luminance]
[annotators.dis]
preset = "ultrafast"
[encode]
modalities = ["rgb", "flow"]
size_px = [32, 48]
frames = 5
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    write_clips(folder / "raw", 2)
    (folder / "corpus.toml").write_text(RECIPE)
    openuni.run(folder / "corpus.toml", folder / "raw", out=folder / "corpus", reporter=Reporter(quiet=True))
    return folder


@pytest.fixture
def place(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole / "corpus", tmp_path / "corpus")
    return tmp_path / "corpus"


def commands(whole: Path, place: Path, out: Path) -> dict[str, tuple[object, ...]]:
    return {
        "summary": ("summary", place),
        "explain": ("explain", place, "clip-000.mp4"),
        "select": ("select", place, "--keep", "true", "--out", out / "selected"),
        "export": ("export", place, "--format", "huggingface", "--workers", 1, "--out", out / "exported"),
        "split": ("split", place),
        "train": ("train", "unityvideo_debug", "--corpus", place, "--out", out / "run"),
        "run": ("run", whole / "corpus.toml", whole / "raw", "--out", place, "--workers", 0),
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


@pytest.mark.parametrize("damage", [*DAMAGE, "keep", "filters", "annotators", "encoded", "format"])
def test_corpus_json(whole: Path, place: Path, tmp_path: Path, damage: str) -> None:
    record = json.loads((place / "corpus.json").read_bytes())
    data = DAMAGE.get(damage) or json.dumps(record | {damage: {"a": [1]} if damage != "format" else "1"}).encode()
    (place / "corpus.json").write_bytes(b"" if damage == "empty" else data)
    for command in commands(whole, place, tmp_path).values():
        refused(cli(*command), f"{place}/corpus.json is damaged", "recomputes nothing")


def test_corpus_json_can_be_rebuilt_as_the_message_says(whole: Path, place: Path, tmp_path: Path) -> None:
    before = contents(Corpus.open(str(place)))
    (place / "corpus.json").write_bytes(b"")
    message = cli("summary", place).stderr
    text = message[message.index("{") : message.index("}}") + 2]
    (place / "corpus.json").write_text(text)
    assert cli("run", whole / "corpus.toml", whole / "raw", "--out", place, "--workers", 0).returncode == 0
    corpus = Corpus.open(str(place))
    assert contents(corpus) == before and str(corpus.summary()) == str(Corpus.open(str(whole / "corpus")).summary())


@pytest.mark.parametrize("damage", [*DAMAGE, "codec", "modalities", "size_px", "frames", "options"])
@pytest.mark.parametrize("kind", ["latents", "text"])
def test_family_json(whole: Path, place: Path, tmp_path: Path, kind: str, damage: str) -> None:
    (path,) = (place / kind).glob("*/family.json")
    before = path.read_bytes()
    record = json.loads(before)
    if kind == "text" and damage in ("modalities", "size_px", "frames"):
        return
    data = DAMAGE.get(damage) or json.dumps(record | {damage: [None]}).encode()
    path.write_bytes(b"" if damage == "empty" else data)
    found = commands(whole, place, tmp_path)
    for name in ("train", "select", *(["run"] if kind == "latents" else [])):
        refused(cli(*found[name]), f"{path} is damaged", "recomputes nothing")
    assert cli(*found["summary"]).returncode == 0  # reads none of it
    path.unlink()
    assert cli(*found["run"]).returncode == 0
    assert path.read_bytes() == before


@pytest.mark.parametrize("damage", [*DAMAGE, "recipe", "import", "options"])
def test_a_damaged_ledger_is_lost_history(whole: Path, place: Path, tmp_path: Path, damage: str) -> None:
    (path,) = (place / "runs").glob("*.json")
    record = json.loads(path.read_bytes())
    data = DAMAGE.get(damage) or json.dumps(record | {damage: 7, "import": 7}).encode()
    path.write_bytes(b"" if damage == "empty" else data)
    if damage in DAMAGE and damage != "no keys":
        found = cli("summary", place, "--json")
        assert f"skipped: {path} is damaged" in found.stderr and json.loads(found.stdout)["ok"] == 2
        assert f"runs/{path.name}: " in cli("verify", place, "--workers", 1).stdout
    for name, command in commands(whole, place, tmp_path).items():
        assert cli(*command).returncode == 0, name
    assert cli("import", "openuni_csv", whole / "raw", "--out", place, "--workers", 0).returncode == 2  # no such set


@pytest.mark.parametrize("group", ["annotations/dis", "latents/*/rgb", "latents/*/flow", "text/*"])
def test_a_missing_shard_is_named(whole: Path, place: Path, tmp_path: Path, group: str) -> None:
    before = contents(Corpus.open(str(place)))
    (shard,) = (path for path in place.glob(f"{group}/part-*") if path.suffix in (".tar", ".safetensors"))
    shard.unlink()
    found = commands(whole, place, tmp_path)
    names = ["summary", "run", "export"] if group == "annotations/dis" else ["summary", "run", "train"]
    for name in names:
        refused(
            cli(*found[name]), f"{shard} is missing", f"delete {place.name and shard.relative_to(place).stem and ''}"
        )
    with pytest.raises(openuni.OpenUniError, match="is missing"):
        contents(Corpus.open(str(place)))
    shard.with_suffix(".parquet").unlink()  # as the message says
    assert cli(*found["run"]).returncode == 0
    assert contents(Corpus.open(str(place))) == before
    assert cli(*found["summary"]).returncode == 0
