"""A bit flipped anywhere in a corpus is an error, is found by `openuni verify`, or has no effect: none changes a value.

Compared are records, and all rows, payloads and frames of the column group that a file belongs to.
"""

import random
import shutil
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import openuni
from openuni.console.progress import Reporter
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.errors import OpenUniError
from openuni.manifests.video.video_errors import VideoError
from openuni.pipeline.run_log import failures_of
from tests.command_line import cli
from tests.raw_clips import write_clips
from tests.tiny_corpus import RECIPE

KINDS = ("*.parquet", "*.tar", "*.safetensors", "corpus.json", "family.json", "runs/*.json", "*.failures.jsonl")
SHARES = (8, 4, 3, 2, 2, 2, 1)  # how often each kind is drawn
EXTENT = ("shard", "offset", "nbytes", "xxh3")
FLIPS, MANY_FLIPS = 120, 10_000


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus with files of every kind: two clips, a broken source, an imported clip whose frames are in a shard."""
    folder = tmp_path_factory.mktemp("tiny")
    write_clips(folder / "raw", 2)
    (folder / "raw" / "broken.mp4").write_bytes(b"not a video")
    (folder / "drawn").mkdir()
    (folder / "drawn" / "one.clip").write_text("2")
    quiet = Reporter(quiet=True)
    openuni.run(RECIPE, folder / "raw", out=folder / "corpus", reporter=quiet)
    openuni.import_set("tests.operators.drawn_set", folder / "drawn", out=folder / "corpus", reporter=quiet)
    return folder / "corpus"


def everything(folder: Path, changed: Path) -> Any:
    """All values that are read from a file, or through it."""
    corpus = Corpus.open(str(folder))
    name = changed.relative_to(folder).as_posix()
    if name == "corpus.json":
        return corpus.record
    if changed.name == "family.json":
        return corpus.families(), corpus.text_families()
    if changed.suffix == ".jsonl":
        lines = failures_of(corpus, {row["source"] for row in corpus.table("clips").to_pylist() if row["error"]})
        if not lines:
            raise OpenUniError("the damaged line is not shown")
        return lines
    if changed.suffix == ".json":
        return corpus.read_json(name)
    group = name.rpartition("/")[0]
    rows = sorted(corpus.table(group).to_pylist(), key=lambda row: row["clip_id"])
    found = [corpus.group_version(group), rows, [payloads(corpus, group, row) for row in rows]]
    if changed.suffix == ".tar":
        found.append([clip.rgb.tobytes() for clip in corpus if str(folder) in clip.clip.source])
    return found


def payloads(corpus: Corpus, group: str, value: Any) -> Any:
    """The bytes of every payload in a row."""
    if not isinstance(value, dict):
        return None
    own = corpus.read(group, *(value[key] for key in EXTENT)) if value.get("shard") else b""
    return own, [payloads(corpus, group, entry) for entry in value.values()]


def draw_place(path: Path, draw: random.Random) -> int:
    """A byte of the file: all parts of it get their share, however small."""
    data = path.read_bytes()
    if path.suffix == ".safetensors":  # most of its reserved header is spaces
        header = 8 + int.from_bytes(data[:8], "little")
        return draw.randrange(*draw.choice([(0, 8), (8, 600), (8, header), (header, len(data)), (header, len(data))]))
    if path.suffix == ".parquet":
        footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
        return draw.randrange(*draw.choice([(0, footer), (footer - 60, footer), (footer, len(data))]))
    return draw.randrange(len(data))


def is_payload(path: Path, place: int) -> bool:
    """Whether a byte of a tar file is one of a member's contents."""
    with tarfile.open(path) as tar:
        return any(member.offset_data <= place < member.offset_data + member.size for member in tar)


def flip_bits(folder: Path, count: int, seed: int) -> Counter[tuple[str, str]]:
    """Flip bits one at a time; count kinds of files with what came of it."""
    draw, found = random.Random(seed), Counter[tuple[str, str]]()
    files = {kind: sorted(folder.rglob(kind) if "/" not in kind else folder.glob(kind)) for kind in KINDS}
    assert all(files.values()), files
    before = {path: everything(folder, path) for paths in files.values() for path in paths}
    quiet = Reporter(quiet=True)
    for _ in range(count):
        kind = draw.choices(KINDS, SHARES)[0]
        path = draw.choice(files[kind])
        data, place, bit = path.read_bytes(), draw_place(path, draw), draw.randrange(8)
        changed = bytearray(data)
        changed[place] ^= 1 << bit
        path.write_bytes(changed)
        where = f"{path.relative_to(folder)}, byte {place} of {len(data)}, bit {bit}"
        try:
            assert everything(folder, path) == before[path], f"a value changed silently: {where}"
        except (OpenUniError, VideoError):
            found[kind, "error"] += 1
            continue
        else:
            damaged = not openuni.verify(folder, workers=1, reporter=quiet).is_sound
            found[kind, "verify" if damaged else "no effect"] += 1
            if not damaged:
                assert kind not in ("*.parquet", "*.safetensors"), where
                assert kind != "*.tar" or not is_payload(path, place), where
        finally:
            path.write_bytes(data)
    assert openuni.verify(folder, workers=1, reporter=quiet).damage == ()
    return found


def test_no_flipped_bit_changes_a_value(tiny: Path, tmp_path: Path) -> None:
    found = flip_bits(shutil.copytree(tiny, tmp_path / "corpus"), FLIPS, seed=0)
    for kind in KINDS:
        assert found[kind, "error"], found
    assert found["*.tar", "verify"] and found["*.safetensors", "verify"], found


@pytest.mark.slow
def test_none_of_ten_thousand_flipped_bits_changes_a_value(tiny: Path, tmp_path: Path) -> None:
    found = flip_bits(shutil.copytree(tiny, tmp_path / "corpus"), MANY_FLIPS, seed=1)
    assert sum(found.values()) == MANY_FLIPS


def test_every_command_names_a_damaged_part_and_ends_with_exit_code_2(tiny: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "corpus.toml"
    recipe.write_text('[filters.luminance]\n[work]\nshort_side_px = 32\n[annotators.dis]\npreset = "ultrafast"\n')
    commands = (
        ("summary", "corpus"),
        ("summary", "corpus", "--scores"),
        ("explain", "corpus", "clip-000.mp4"),
        ("select", "corpus", "--keep", "luminance.mean > 0", "--out", "few"),
        ("split", "corpus"),
        ("export", "corpus", "--format", "webdataset", "--out", "set"),
        ("train", "unityvideo_debug", "--corpus", "corpus", "--out", "run"),
        ("run", recipe, "--out", "corpus", "--workers", 0),
    )
    unread = {"filters/luminance": ("split",), "annotations/dis": ("train",)}
    for group in ("clips", "filters/luminance", "annotations/dis"):
        shutil.rmtree(tmp_path / "corpus", ignore_errors=True)
        shutil.copytree(tiny, tmp_path / "corpus")
        part = min((tmp_path / "corpus" / group).glob("*.parquet"))
        data = bytearray(part.read_bytes())
        data[-40] ^= 4
        part.write_bytes(data)
        for command in commands:
            if command[0] not in unread.get(group, ()):
                done = cli(*command, cwd=tmp_path)
                assert done.returncode == 2 and f"{part.name} is damaged" in done.stderr, (group, command, done)
        done = cli("verify", "corpus", cwd=tmp_path)
        assert done.returncode == 1 and f"{group}/{part.name}: checksum mismatch" in done.stdout
