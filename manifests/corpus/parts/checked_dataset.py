"""Parts as a dataset whose errors name the damaged part."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs

from openuni.manifests.corpus.parts.part_files import Path, measure_parts, part_errors, schema_of, type_at, validated
from openuni.manifests.corpus.parts.small_parts import read_joined
from openuni.manifests.storage.checked_file import CheckedFile
from openuni.manifests.storage.store import Store

MAX_REOPENED = 20  # times that a dataset is opened anew while parts are merged


class _CheckedFiles(pafs.FSSpecHandler):
    """pyarrow's view of a store, in which files are `CheckedFile`."""

    def __init__(self, store: Store) -> None:
        super().__init__(store.fs)
        self._store = store

    def open_input_file(self, path: str) -> pa.PythonFile:
        """See `pyarrow.fs.FileSystemHandler`."""
        return pa.PythonFile(CheckedFile(self._store, self._store.name_of(path)), mode="r")

    def open_input_stream(self, path: str) -> pa.PythonFile:
        """See `pyarrow.fs.FileSystemHandler`."""
        return self.open_input_file(path)


class CheckedDataset:
    """The methods of `pyarrow.dataset.Dataset` that read, with errors that name the damaged part.

    `reopen`: the dataset anew, if parts have been merged into others since they were listed; the rows are the same.
    Raises `DamagedFile` if the first part, whose schema counts unless one is given, is damaged.
    """

    def __init__(self, store: Store, parts: Sequence[str], schema: pa.Schema | None = None) -> None:
        self.store, self.parts, self.schema = store, parts, schema_of(store, parts[0]) if schema is None else schema
        self.reopen: Callable[[], CheckedDataset] | None = None

    @cached_property
    def unchecked(self) -> pads.Dataset:
        """The dataset itself. Its reads are verified too, but errors in parts without checksums are pyarrow's."""
        if not self.parts:
            return pads.dataset(self.schema.empty_table())
        measure_parts(self.store, self.parts)
        options = pads.ParquetFragmentScanOptions(page_checksum_verification=True)
        with part_errors(self.store, self.parts):
            return pads.dataset(
                [self.store.path(part) for part in self.parts],
                filesystem=pafs.PyFileSystem(_CheckedFiles(self.store)),
                format=pads.ParquetFileFormat(default_fragment_scan_options=options),
                schema=self.schema,
            )

    def to_table(
        self, columns: Sequence[str] | Mapping[str, Path | pads.Expression] | None = None, **options: Any
    ) -> pa.Table:
        """See `pyarrow.dataset.Dataset`. `columns` also allows paths, which are much faster than expressions.

        With paths or names alone, no other columns and fields of structs are read.
        """
        for _ in range(MAX_REOPENED):
            try:
                return self._to_table(columns, **options)
            except FileNotFoundError as error:
                self._reopen(error)
        return self._to_table(columns, **options)

    def _to_table(self, columns: Any, **options: Any) -> pa.Table:
        names = self.schema.names if columns is None else columns
        paths = names if isinstance(names, Mapping) else {name: (name,) for name in names}
        is_plain = all(isinstance(path, tuple) and type_at(self.schema, path) is not None for path in paths.values())
        if is_plain and not options:
            return read_joined(self.store, self.parts, paths, self.schema)
        if isinstance(columns, Mapping):
            columns = {name: pads.field(*path) if isinstance(path, tuple) else path for name, path in columns.items()}
        with part_errors(self.store, self.parts):
            return validated(self.unchecked.to_table(columns=columns, **options))

    def to_batches(self, **options: Any) -> Iterator[pa.RecordBatch]:
        """See `pyarrow.dataset.Dataset`."""
        done = 0  # rows
        for attempt in range(MAX_REOPENED + 1):
            left = done
            try:
                with part_errors(self.store, self.parts):
                    for batch in self.unchecked.to_batches(**options):
                        if left < len(batch):
                            batch.validate(full=True)
                            yield batch.slice(left)
                        done += max(0, len(batch) - left)
                        left = max(0, left - len(batch))
                return
            except FileNotFoundError as error:
                if attempt == MAX_REOPENED:
                    raise
                self._reopen(error)

    def _reopen(self, error: FileNotFoundError) -> None:
        """Read the parts that are there now."""
        if self.reopen is None:
            raise error
        self.parts = self.reopen().parts
        self.__dict__.pop("unchecked", None)


def parts_dataset(store: Store, parts: Sequence[str], schema: pa.Schema | None = None) -> CheckedDataset:
    """Parts as a lazy dataset; reading it raises `DamagedFile` that names the part. `schema`: default: the first's."""
    return CheckedDataset(store, parts, schema)
