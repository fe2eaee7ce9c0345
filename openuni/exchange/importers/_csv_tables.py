"""CSVs of any size, joined by the video that they name, and the per-clip metadata that an export adds to them."""

import csv
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from openuni.exchange.importers._dataset_layout import MAX_JSON_BYTES, parse_json
from openuni.manifests.errors import ClipError
from openuni.manifests.text_files import MARK_BYTES, encoding_of

ROWS_PER_CHUNK = 10_000
MEMORY = "1GB"  # of the join, before it spills to disk


class CsvColumns(NamedTuple):
    """The columns to read."""

    video: str  # path by which rows are joined
    text: str
    paths: tuple[str, ...]  # paths of other files, absolute or relative to the CSV


class CsvRow(NamedTuple):
    """The joined rows of one video."""

    video: str  # absolute path
    cells: dict[str, str]  # column -> text or absolute path, without empty cells
    fault: str  # error message, empty if the row is valid


def joined(files: Mapping[Path, list[str]], columns: CsvColumns) -> Iterator[CsvRow]:
    """One row per video, sorted by path; preceded by the invalid rows that name no video.

    `files`: CSV -> its columns. Rows are joined in a database on disk, so that there may be millions.
    """
    import duckdb
    import pyarrow as pa

    named = ["video", "text_0", *(f"path_{number}" for number in range(len(columns.paths)))]
    schema = pa.schema([(name, pa.string()) for name in named])
    with tempfile.TemporaryDirectory() as scratch, duckdb.connect(f"{scratch}/rows.db") as database:
        database.execute(f"SET memory_limit = '{MEMORY}'; SET temp_directory = '{scratch}/join'")
        database.execute(f"CREATE TABLE gathered ({', '.join(f'{name} VARCHAR' for name in named)})")
        for file, listed in files.items():
            cells = _cells(file, listed, columns)
            while rows := list(islice(cells, ROWS_PER_CHUNK)):
                yield from (row for row in rows if isinstance(row, CsvRow))
                valid = [row for row in rows if not isinstance(row, CsvRow)]
                batch = pa.table([list(column) for column in zip(*valid, strict=True)], schema) if valid else None
                if batch is not None:
                    database.register("batch", batch)
                    database.execute("INSERT INTO gathered SELECT * FROM batch")
                    database.unregister("batch")
        merged = ", ".join(f"min({name}), max({name})" for name in named[1:])
        found = database.execute(f"SELECT video, {merged} FROM gathered GROUP BY video ORDER BY video")
        while rows_found := found.fetchmany(ROWS_PER_CHUNK):
            for values in rows_found:
                yield _merged(values, columns)


def header(file: Path) -> list[str]:
    """The columns of a CSV; empty if the file is empty or not a CSV."""
    try:
        with _open(file) as opened:
            return [name.strip() for name in next(csv.reader(opened), [])]
    except (csv.Error, UnicodeDecodeError):
        return []


def _cells(file: Path, listed: list[str], columns: CsvColumns) -> Iterator[tuple[str | None, ...] | CsvRow]:
    """Video, text and paths of each row, with absolute paths; or a row with an error message."""
    indices = {name: number for number, name in enumerate(listed)}

    def absolute(row: list[str], name: str) -> str | None:
        cell = row[indices[name]] if name in indices else ""
        stripped = cell.strip()
        if stripped != cell and (file.parent / cell).is_file():  # the blanks belong to the name
            return os.path.normpath(file.parent / cell)
        return os.path.normpath(file.parent / stripped) if stripped else None

    with _open(file) as opened:
        for line, row in _rows(opened):
            if isinstance(row, str):
                yield _faulty(file, line, row)
            elif len(row) != len(listed):
                yield _faulty(file, line, f"{len(row)} cells, the header has {len(listed)}")
            elif not all(map(_is_text, row)):
                yield _faulty(file, line, "not UTF-8, or not the encoding of its byte order mark")
            elif any("\0" in row[indices[name]] for name in (columns.video, *columns.paths) if name in indices):
                yield _faulty(file, line, "a path contains a NUL character")
            elif (video := absolute(row, columns.video)) is None:
                yield _faulty(file, line, f"no {columns.video}")
            else:
                text = row[indices[columns.text]].strip() if columns.text in indices else ""
                yield video, text or None, *(absolute(row, name) for name in columns.paths)


def _rows(opened: TextIO) -> Iterator[tuple[int, list[str] | str]]:
    """Line number and cells of each row below the header, without empty rows; an error message instead of the cells."""
    reader = csv.reader(opened)
    next(reader)
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            yield reader.line_num, str(error)
            continue
        except UnicodeDecodeError as error:  # UTF-16 or UTF-32 that ends within a character
            yield reader.line_num + 1, f"truncated: {error.reason}"
            return
        if row is None:
            return
        if row:
            yield reader.line_num, row


def _is_text(cell: str) -> bool:
    """Whether all bytes of a cell could be decoded; `_open` decodes others to surrogates."""
    return cell.isascii() or not any("\ud800" <= sign <= "\udfff" for sign in cell)


def _open(file: Path) -> TextIO:
    """The CSV in the encoding that its byte order mark states, else UTF-8. What is not text decodes to surrogates."""
    with file.open("rb") as opened:
        encoding = encoding_of(opened.read(MARK_BYTES))
    errors = "surrogateescape" if encoding.startswith("utf-8") else "surrogatepass"
    return file.open(encoding=encoding, errors=errors, newline="")


def _faulty(file: Path, line: int, reason: str) -> CsvRow:
    return CsvRow(f"{file}:{line}", {}, f"{file.name}, line {line}: {reason}")


def _merged(values: tuple[Any, ...], columns: CsvColumns) -> CsvRow:
    video, text, _, *rest = values
    cells = {columns.text: text} if text is not None else {}
    fault = ""
    for name, one, other in zip(columns.paths, rest[::2], rest[1::2], strict=True):
        if one is not None:
            cells[name] = one
        if one != other:
            fault = f"rows of this video name different files for {name}: {one} and {other}"
    return CsvRow(video, cells, fault)


class ClipRecords:
    """Lines of `clips.jsonl` by clip; only their positions are held in memory."""

    def __init__(self, file: Path) -> None:
        self.spans: dict[str, tuple[int, int]] = {}
        if file.is_file():
            offset = 0
            with file.open("rb") as opened:
                for line in opened:
                    name = _clip_of(line)
                    if name:
                        self.spans[name] = (offset, len(line))
                    offset += len(line)

    @staticmethod
    def read(file: Path, span: tuple[int, int]) -> dict[str, Any]:
        """The line at `span` (offset, length)."""
        offset, nbytes = span
        if nbytes > MAX_JSON_BYTES:
            raise ClipError(f"{file}: a line has {nbytes:,} bytes; the limit is {MAX_JSON_BYTES:,}")
        with file.open("rb") as opened:
            opened.seek(offset)
            return parse_json(opened.read(nbytes), f"{file}, byte {offset}")


def _clip_of(line: bytes) -> str | None:
    try:
        found = json.loads(line).get("clip_id")
    except (ValueError, AttributeError, RecursionError):
        return None
    return found if isinstance(found, str) else None
