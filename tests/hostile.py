"""Values that somebody could put into a corpus to reach files outside it, or to write to the terminal."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

CLIP_IDS = {
    "parent": "../../escaped",
    "absolute": "/tmp/escaped",
    "inner": "a/b",
    "nul": "a\0b",
    "newline": "a\nb",
    "backslash": "..\\escaped",
    "dots": "..",
    "hidden": ".unfinished",
    "suffix": "clips.jsonl",
    "device": "NUL",
    "device_number": "com1",
    "long": "x" * 5000,
    "escape": "\x1b[2Jclip",
    "empty": "",
    "none": None,
    "wide": "cl\u0131p",
}
SHARDS = (
    "../x.tar",
    "/etc/passwd",
    "s3://bucket/x.tar",
    "a\\b.tar",
    "a\nb.tar",
    "a\0.tar",
    "..",
    ".x.tar",
    "",
    "CON.tar",
)
LABELS = ("../../escaped", "/tmp/x", "a\\b", "a\nb", "a\0b", "\x1b]0;title\x07", "x" * 5000, "a\u202eb", "a/../b")


def rewrite(folder: Path, group: str, change: Callable[[pa.Table], pa.Table]) -> Path:
    """Replace the rows of a group's first part by `change(rows)`; returns the part."""
    part = sorted((folder / group).glob("*.parquet"))[0]
    rows = pq.read_table(part)
    changed = change(rows)
    part.unlink()  # not in place: a selected corpus may share it
    pq.write_table(changed.replace_schema_metadata(rows.schema.metadata), part)
    return part


def with_value(column: str, row: int, value: str | None) -> Callable[[pa.Table], pa.Table]:
    """A change for `rewrite`: one cell of a text column."""

    def change(rows: pa.Table) -> pa.Table:
        values = rows.column(column).to_pylist()
        values[row] = value
        return rows.set_column(rows.schema.get_field_index(column), column, pa.array(values, pa.string()))

    return change


def with_shard(operator: str, modality: str, row: int, value: str) -> Callable[[pa.Table], pa.Table]:
    """A change for `rewrite`: the shard of one map of an annotator."""

    def change(rows: pa.Table) -> pa.Table:
        values = rows.column(operator).to_pylist()
        values[row][modality]["shard"] = value
        kind = rows.schema.field(operator).type
        return rows.set_column(rows.schema.get_field_index(operator), operator, pa.array(values, kind))

    return change


def files_under(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, by relative name."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
