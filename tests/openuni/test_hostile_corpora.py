"""Corpora and runs that somebody made to harm whoever reads them: a table of what is in them and who must refuse it.

Every command ends with an exit code of its own (never 3: that is our bugs'), in bounded time and memory. Nothing that
they name is executed; nothing outside them is shown, copied or written.
"""

import json
import re
import shlex
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import openuni
from openuni.cli.main import _report
from tests.command_line import cli
from tests.hostile import files_under, rewrite
from tests.openuni.hostile_sets import SETS
from tests.train.small_runs import small_recipe, write_recipe

SECRET = "canary-7f3a9c"
MODEL = {"name": "unityvideo", "num_layers": 1, "heads": 1, "head_dim": 12, "ffn_dim": 16, "freq_dim": 8}
FORMATS = sorted({hostile.format for hostile in SETS.values()})
COMMANDS: dict[str, tuple[object, ...]] = {
    "summary": ("summary", "corpus", "--scores"),
    "explain": ("explain", "corpus", "clip-000.mp4"),
    "select": ("select", "corpus", "--keep", "luminance.mean > 0", "--out", "selected"),
    "split": ("split", "corpus"),
    "webdataset": ("export", "corpus", "--format", "webdataset", "--workers", 1, "--out", "tars"),
    "huggingface": ("export", "corpus", "--format", "huggingface", "--workers", 1, "--out", "parquet"),
    "csv": ("export", "corpus", "--format", "openuni_csv", "--workers", 1, "--out", "csv"),
    "verify": ("verify", "corpus", "--workers", 1),
    "run": ("run", "corpus.toml", "--out", "corpus", "--workers", 0),
    "train": ("train", "small.toml", "--corpus", "corpus", "--out", "new"),
    "verify run": ("verify", "run"),
    **{f"import {format}": ("import", format, "set", "--workers", 0, "--out", "imported") for format in FORMATS},
    "generate": ("generate", "run", "--make", "rgb", "--make", "flow", "--steps", 1, "--out", "made"),
    "tasks": ("tasks", "run", "--json"),
}
ROWS = ("summary", "explain", "select", "split", "webdataset", "huggingface", "csv", "run", "train")


class Hostile(NamedTuple):
    """`change` makes the corpus or run in a folder hostile; `codes`: command -> its exit code."""

    change: Callable[[Path], object]
    codes: dict[str, int]


def part(folder: Path, group: str, suffix: str = "parquet") -> Path:
    return sorted(folder.glob(f"corpus/{group}/*.{suffix}"))[0]


def in_rows(group: str, change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], object]:
    """Other rows in the first part of a group."""
    return lambda folder: rewrite(part(folder, group).parents[1], part(folder, group).parent.name, change)


def column(name: str, value: Any, kind: pa.DataType | None = None) -> Callable[[pa.Table], pa.Table]:
    """A change of rows: one value for all of them."""

    def change(rows: pa.Table) -> pa.Table:
        place = rows.schema.get_field_index(name)
        return rows.set_column(place, name, pa.array([value] * len(rows), kind or rows.schema.field(name).type))

    return change


def extent(field: str, value: Any) -> Callable[[pa.Table], pa.Table]:
    """A change of the rows of dis: one field of the stored flow."""

    def change(rows: pa.Table) -> pa.Table:
        values = [row | {"flow": row["flow"] | {field: value}} for row in rows.column("dis").to_pylist()]
        return rows.set_column(1, "dis", pa.array(values, rows.schema.field("dis").type))

    return change


def source(value: str) -> Callable[[Path], object]:
    """Other sources of all clips; SECRET stands for the path of the secret."""
    return lambda folder: in_rows("clips", column("source", value.replace("SECRET", secret_path(folder))))(folder)


def secret_path(folder: Path) -> str:
    return str(folder / "outside/secret.txt")


def record(name: str, **changes: Any) -> Callable[[Path], object]:
    """Other values in a JSON record, whose checksum whoever makes it would leave out."""

    def change(folder: Path) -> None:
        path = next(folder.glob(name))
        found = {key: value for key, value in json.loads(path.read_text()).items() if key != "checksum"}
        for key, value in changes.items():
            value = value.replace("SECRET", secret_path(folder)) if isinstance(value, str) else value
            found[key] = {**found[key], **value} if isinstance(found.get(key), dict) else value
        path.write_text(json.dumps(found))

    return change


def text(name: str, contents: str) -> Callable[[Path], object]:
    return lambda folder: [path.write_text(contents) for path in folder.glob(name)]


def linked(group: str, suffix: str, *, secret: bool = False) -> Callable[[Path], object]:
    """A part or shard is a link to a file outside."""

    def change(folder: Path) -> None:
        path = part(folder, group, suffix)
        outside = folder / "outside" / ("secret.txt" if secret else path.name)
        if not secret:
            path.rename(outside)
        path.unlink(missing_ok=True)
        path.symlink_to(outside)

    return change


def linked_folder(name: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / "corpus" / name
        path.rename(folder / "outside" / path.name)
        path.symlink_to(folder / "outside" / path.name)

    return change


def declared_rows(folder: Path) -> None:
    """The footer says two billion rows: the number of rows is field 3 of the file's metadata."""
    path = part(folder, "clips")
    rows = pq.read_table(path)
    pq.write_table(rows, path)
    data = path.read_bytes()
    nbytes = int.from_bytes(data[-8:-4], "little")
    footer = data[-8 - nbytes : -8]
    number, encoded = 2_000_000_000 << 1, b""
    while number > 127:
        number, encoded = number >> 7, encoded + bytes([number & 127 | 128])
    old = b"\x16" + bytes([len(rows) << 1])
    assert old in footer
    footer = footer.replace(old, b"\x16" + encoded + bytes([number]))
    path.write_bytes(data[: -8 - nbytes] + footer + struct.pack("<I", len(footer)) + b"PAR1")


def real_rows(folder: Path) -> None:
    """Five million rows of one value take a few kilobytes."""
    kind = pq.read_schema(part(folder, "clips"))
    ids = pa.DictionaryArray.from_arrays(pa.array([0], pa.int8()).take(pa.array([0] * 100_000)), ["a"]).cast(
        pa.string()
    )
    rows = pa.table({"clip_id": pa.chunked_array([ids] * 50), "status": pa.chunked_array([ids] * 50)})
    pq.write_table(rows.replace_schema_metadata(kind.metadata), part(folder, "clips"), compression="zstd")


def footer_length(folder: Path) -> None:
    path = part(folder, "clips")
    path.write_bytes(path.read_bytes()[:-8] + struct.pack("<I", 0x7FFFFFFF) + b"PAR1")


def nested_type(rows: pa.Table) -> pa.Table:
    kind: pa.DataType = pa.int32()
    for _ in range(300):
        kind = pa.struct([("a", kind)])
    return rows.append_column("deep", pa.nulls(len(rows), kind))


def many_columns(rows: pa.Table) -> pa.Table:
    return pa.table(
        {name: rows[name] for name in rows.column_names} | {f"c{n}": [None] * len(rows) for n in range(10_001)}
    )


def invalid_text(rows: pa.Table) -> pa.Table:
    bad = pa.array([b"\xff\xfe"] * len(rows), pa.binary()).view(pa.string())
    return rows.set_column(rows.schema.get_field_index("caption"), "caption", bad)


def page_bomb(folder: Path) -> None:
    """One caption of 300 MB that takes a few kilobytes."""
    rows = column("caption", "x" * (300 << 20))(pq.read_table(part(folder, "clips")).slice(0, 1))
    pq.write_table(rows, part(folder, "clips"), compression="zstd")


def dictionary_bomb(rows: pa.Table) -> pa.Table:
    """One caption of 500 KB in ten thousand rows: 5 GB, of which the file holds one."""
    many = pa.array([0] * 10_000, pa.int32())
    captions = pa.DictionaryArray.from_arrays(many, ["x" * 500_000])
    rows = rows.take(many).set_column(0, "clip_id", pa.array(map(str, range(len(many)))))
    return rows.set_column(rows.schema.get_field_index("caption"), "caption", captions)


class Payload:
    """Unpickling it writes a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (Path("executed"), "by unpickling")


def tensors(name: str, kind: str) -> Callable[[Path], object]:
    """A safetensors file whose header lies."""
    headers: dict[str, dict[str, Any]] = {
        "overlapping": {
            name: {"dtype": "F32", "shape": [4], "data_offsets": [first, first + 16]}
            for name, first in (("a", 0), ("b", 8))
        },
        "out of range": {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 1 << 40]}},
        "of another size": {"a": {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 16]}},
    }

    def change(folder: Path) -> None:
        header = json.dumps(headers.get(kind, {})).encode()
        for path in folder.glob(name):
            (path.parent / "checksums.json").unlink()  # checkpoints of earlier versions have none
            if kind == "pickled":
                torch.save({"a": Payload()}, path)
            else:
                path.write_bytes(struct.pack("<Q", 1 << 40 if kind == "long" else len(header)) + header + b"\0" * 24)

    return change


def refused(*commands: str) -> dict[str, int]:
    return dict.fromkeys(commands, 2)


LEDGER = record("corpus/runs/*.json", recipe={"filters": {"evil.module": {}}, "annotators": {"evil.module": {}}})
WEIGHTS = "run/step-*/e*a.safetensors"  # of the averaged weights
HOSTILE: dict[str, Hostile] = {
    # paths
    "a part is a link outside": Hostile(linked("clips", "parquet"), refused(*ROWS)),
    "a shard is a link to a secret": Hostile(
        linked("annotations/dis", "tar", secret=True), {"webdataset": 1, "summary": 0, "verify": 2}
    ),
    "latents are a link outside": Hostile(linked("latents/*/rgb", "safetensors"), refused("train")),
    "a group is a link outside": Hostile(linked_folder("filters/luminance"), refused("run", "select") | {"summary": 0}),
    "the ledgers are a link outside": Hostile(linked_folder("runs"), refused("summary", "run")),
    "a source in the corpus is outside": Hostile(
        source("corpus:../outside/secret.txt"), refused("webdataset", "csv", "huggingface")
    ),
    "a source is a secret": Hostile(source("SECRET"), {"webdataset": 1, "csv": 1, "huggingface": 1}),
    "a playlist of secrets": Hostile(source("concat:SECRET|SECRET"), {"webdataset": 1, "csv": 1, "huggingface": 1}),
    "latents elsewhere in corpus.json": Hostile(
        record("corpus/corpus.json", encoded={"rgb": "latents/../../outside"}), refused("summary", "run")
    ),
    # names of code
    "a filter of corpus.json is code": Hostile(
        record("corpus/corpus.json", filters=["evil.module"]), {"summary": 0, "run": 0}
    ),
    "a keep rule reads files": Hostile(
        record("corpus/corpus.json", keep="(SELECT content FROM read_text('SECRET')) LIKE '%7f%'"),
        refused("summary", "webdataset", "csv"),
    ),
    "a recipe in a ledger is code": Hostile(LEDGER, {"summary": 0, "verify": 0}),
    "a model is code": Hostile(record("run/run.json", model={"name": "evil.module"}), refused("generate", "tasks")),
    "a codec is an entry point": Hostile(
        record("run/run.json", latents={"codec": "evil.module:Codec"}), refused("generate")
    ),
    # sizes and values
    "two billion rows declared": Hostile(declared_rows, refused(*ROWS)),
    "five million rows in kilobytes": Hostile(real_rows, refused(*ROWS)),
    "ten thousand captions in a dictionary": Hostile(
        in_rows("clips", dictionary_bomb),
        refused("explain", "select", "split", "webdataset", "huggingface", "csv", "run"),
    ),
    "a footer of two gigabytes": Hostile(footer_length, refused(*ROWS)),
    "a type 300 deep": Hostile(in_rows("clips", nested_type), refused(*ROWS)),
    "ten thousand columns": Hostile(in_rows("clips", many_columns), refused(*ROWS)),
    "texts that are not UTF-8": Hostile(
        in_rows("clips", invalid_text), refused("explain", "webdataset", "csv", "huggingface")
    ),
    "extents below zero": Hostile(
        in_rows("annotations/dis", extent("offset", -1)), refused("summary", "webdataset", "run")
    ),
    "extents of exabytes": Hostile(in_rows("annotations/dis", extent("nbytes", 2**62)), {"webdataset": 1, "verify": 1}),
    "latents of objects": Hostile(in_rows("latents/*/rgb", column("dtype", "object")), refused("train")),
    "latents beyond memory": Hostile(in_rows("latents/*/rgb", column("shape", [2**31 - 1] * 4)), refused("train")),
    "a run 10,000 deep": Hostile(text("run/run.json", "[" * 10_000), refused("generate", "tasks") | {"verify run": 1}),
    "tensors with a header of a terabyte": Hostile(tensors(WEIGHTS, "long"), refused("generate")),
    "tensors that overlap": Hostile(tensors(WEIGHTS, "overlapping"), refused("generate")),
    "tensors out of range": Hostile(tensors(WEIGHTS, "out of range"), refused("generate")),
    "tensors of another size": Hostile(tensors(WEIGHTS, "of another size"), refused("generate")),
    "weights that execute code": Hostile(tensors(WEIGHTS, "pickled"), refused("generate")),
    # markup
    "captions that control the terminal": Hostile(
        in_rows("clips", column("caption", "\x1b]0;owned\x07<script>=1+1")), {"explain": 0, "csv": 0, "huggingface": 0}
    ),
}
HOSTILE |= {name: Hostile(one.make, {f"import {one.format}": one.code}) for name, one in SETS.items()}
LARGE: dict[str, Hostile] = {
    "a caption of 300 MB in kilobytes": Hostile(page_bomb, refused("summary", "webdataset")),
    "a record of 100 MB": Hostile(text("corpus/corpus.json", f'{{"a": "{"x" * (100 << 20)}"}}'), refused("summary")),
    "a run of 100 MB": Hostile(text("run/run.json", f'{{"a": "{"x" * (100 << 20)}"}}'), refused("generate")),
}
MAX_ADDRESS_SPACE_KIB = 10 * 2**20  # of which PyTorch and the threads reserve most


@pytest.fixture(scope="module")
def whole(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny corpus, and a run of one step on it."""
    folder = shutil.copytree(tiny, tmp_path_factory.mktemp("whole"), dirs_exist_ok=True)
    changes = {"optimizer": {"steps": 1}, "data": {"validation_share": 0.0}, "checkpoints": {"every_steps": 1}}
    changes |= {"validation": {"every_steps": 0}}
    openuni.train(small_recipe({"model": MODEL}, changes), folder / "corpus", out=folder / "run")
    write_recipe(folder, MODEL, **changes)
    (folder / "outside").mkdir()
    (folder / "outside/secret.txt").write_text(SECRET * 100)
    (folder / "evil").mkdir()
    (folder / "evil/__init__.py").write_text("")
    (folder / "evil/module.py").write_text("from pathlib import Path\nPath('executed').write_text('by import')\n")
    return folder


@pytest.fixture
def place(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)  # evil.module could be imported
    return shutil.copytree(whole, tmp_path / "work")


def check(place: Path, hostile: Hostile, commands: list[str]) -> None:
    hostile.change(place)
    outside = files_under(place / "outside")
    known = set(files_under(place))
    for name in commands:
        done = cli(*COMMANDS[name], cwd=place)
        assert done.returncode == hostile.codes[name], (name, done)
        assert SECRET not in done.stdout + done.stderr and "\x1b" not in done.stdout + done.stderr, (name, done)
        assert not (place / "executed").exists(), name
    assert files_under(place / "outside") == outside
    for name, data in files_under(place).items():
        assert name in known or SECRET.encode() not in data, name


QUICK = (  # one of each kind; the slow step takes all of them
    *(
        "a part is a link outside",
        "a shard is a link to a secret",
        "a source is a secret",
        "a recipe in a ledger is code",
    ),
    *("a model is code", "two billion rows declared", "texts that are not UTF-8", "extents below zero"),
    *("folder: a caption is a link to a secret", "tar: a modality is code", "csv: a video elsewhere"),
    *("a type 300 deep", "tensors that overlap", "weights that execute code", "captions that control the terminal"),
)


@pytest.mark.parametrize("name", QUICK)
def test_what_is_hostile_is_refused(place: Path, name: str) -> None:
    check(place, HOSTILE[name], list(HOSTILE[name].codes)[:1])


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_hostile_is_refused_by_every_command(place: Path, name: str) -> None:
    check(place, HOSTILE[name], list(HOSTILE[name].codes))


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_what_is_large_is_refused_in_bounded_memory(place: Path, name: str) -> None:
    """In processes of their own: threads that cannot get memory may end them."""
    hostile = LARGE[name]
    hostile.change(place)
    for command, code in hostile.codes.items():
        words = shlex.join([sys.executable, "-m", "openuni", *map(str, COMMANDS[command])])
        limited = f"ulimit -v {MAX_ADDRESS_SPACE_KIB}; exec {words}"
        done = subprocess.run(["bash", "-c", limited], cwd=place, capture_output=True, text=True, timeout=200)
        assert done.returncode == code, (command, done)
        assert "Traceback" not in done.stderr, (command, done)
        assert re.search("is damaged|out of memory|has format None", done.stderr), (command, done)


@pytest.mark.parametrize("error", [MemoryError("of Python"), pa.ArrowMemoryError("malloc of size 4000000000 failed")])
def test_too_little_memory_is_no_internal_error(error: MemoryError, capsys: pytest.CaptureFixture[str]) -> None:
    assert _report(error) == 2
    assert f"out of memory: {error}" in capsys.readouterr().err
