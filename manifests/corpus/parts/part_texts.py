"""Reading a part whose texts could take much more memory than its file says: they are measured first.

Parquet stores a text that many rows share once. Footers tell the size of this dictionary, not that of the texts.
Columns that could exceed the limit are therefore read as a dictionary and references first, which takes as much memory
as the footer says; only then are the texts themselves made. A part is measured once per process.
"""

from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from openuni.manifests.corpus.parts.part_limits import ADVICE, max_expanded_bytes, text_bytes
from openuni.manifests.errors import DamagedFile
from openuni.manifests.storage.checked_file import CheckedFile
from openuni.manifests.storage.store import Store

ALL = ""  # in place of the path of a column


class OpenedPart(NamedTuple):
    """A part. `source`: what it is read from; `checked`: the same, unless all of it is in memory."""

    file: pq.ParquetFile
    source: pa.NativeFile
    checked: CheckedFile | None
    nbytes: int
    texts: list[str]  # paths in the file of columns to measure: see `part_limits.check_declared`


def read_opened(store: Store, part: str, opened: OpenedPart, columns: list[str] | None) -> pa.Table:
    """Columns (names or paths; None: all) of a part. Raises `DamagedFile` if their texts take too much memory."""
    measured = store.measured_texts.setdefault((part, opened.nbytes), {}) if opened.texts else {ALL: 0}
    texts = [path for path in opened.texts if path not in measured and is_among(path, columns)]
    if not texts or ALL in measured:
        return opened.file.read(columns, use_threads=False)
    footer = opened.file.metadata
    short = pq.ParquetFile(opened.source, metadata=footer, read_dictionary=texts, pre_buffer=False)
    rows = short.read(columns, use_threads=False)
    measured |= dict.fromkeys(texts, 0)
    measured[texts[0]] = sum(text_bytes(chunk) for column in rows.columns for chunk in column.chunks)
    if (expanded := sum(measured.values())) > max_expanded_bytes(opened.nbytes):
        raise DamagedFile(store.location(part), f"expands from {opened.nbytes:,} to {expanded:,} bytes of text", ADVICE)
    fields = [field.with_type(_with_texts(field.type)) for field in rows.schema]
    return rows.cast(pa.schema(fields, rows.schema.metadata))


def measure_texts(store: Store, part: str, opened: OpenedPart) -> None:
    """Raise `DamagedFile` if the texts of any columns of a part take too much memory."""
    for path in opened.texts:
        read_opened(store, part, opened, [path])
    store.measured_texts.setdefault((part, opened.nbytes), {})[ALL] = 0


def is_measured(store: Store, part: str) -> bool:
    """Whether `measure_texts` has found nothing wrong with a part."""
    return ALL in store.measured_texts.get((part, store.size(part)), ())


def is_among(path: str, columns: Sequence[str] | None) -> bool:
    """Whether the column of a path in the file is among columns (names or paths; None: all)."""
    return columns is None or any(f"{path}.".startswith(f"{name}.") for name in columns)


def _with_texts(kind: pa.DataType) -> pa.DataType:
    """A type with texts in place of dictionaries of texts."""
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_with_texts(field.type)) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_with_texts(kind.value_type)))
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_with_texts(kind.value_type)))
    is_text = pa.types.is_dictionary(kind) and not pa.types.is_primitive(kind.value_type)
    return kind.value_type if is_text else kind
