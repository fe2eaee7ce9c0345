"""Writing the batches of an export, in threads or by the workers of a Ray cluster.

A batch is written to a draft folder, which is renamed when it is complete, with the list of clips that could not be
exported. Whoever renames it first has written the batch; it stays there until the driver moves its files into place.
"""

import csv
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from openuni.exchange.csv_cells import csv_line, unguarded
from openuni.exchange.exporter import ExportBatch, ExportClip, ExportContext, Exporter, ExportFailure, StoredMap
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.errors import OpenUniError
from openuni.manifests.video.clip import Clip
from openuni.pipeline.worker import ItemOutcome, Spec, Worker

RECORD, FAILED, UNFINISHED = "export.json", "failed.csv", ".unfinished"


@dataclass(frozen=True)
class BatchItem:
    """One batch to write. Its clips are without their corpus, which every process opens for itself."""

    number: int  # among all batches of the export
    clips: tuple[tuple[Clip, Mapping[str, StoredMap], Mapping[str, Mapping[str, Any]]], ...]
    group_key: str
    number_in_group: int
    total: int  # batches in its group

    @classmethod
    def of(cls, number: int, batch: ExportBatch) -> "BatchItem":
        """The item of a batch."""
        clips = tuple((clip.clip, clip.maps, clip.scores) for clip in batch.clips)
        return cls(number, clips, batch.group_key, batch.number, batch.total)

    @property
    def key(self) -> str:
        """The item's identity in the export."""
        return f"{self.number:08}"

    def batch(self, corpus: Corpus) -> ExportBatch:
        """The batch itself."""
        clips = [ExportClip(corpus, *one) for one in self.clips]
        return ExportBatch(clips, self.group_key, self.number_in_group, self.total)


def written_folder(out: Path, item: BatchItem) -> Path:
    """The folder of a batch that is complete."""
    return out / UNFINISHED / item.key


def write_batch(exporter: Exporter, contents: ExportContext, item: BatchItem) -> None:
    """Write a batch. What another process that died has written is kept."""
    draft = _draft(contents.out, item)
    failures = exporter.write(item.batch(contents.corpus), draft, contents)
    _commit(draft, contents.out, item, failures)


def write_failed_batch(contents: ExportContext, item: BatchItem, error: str) -> None:
    """Record that none of a batch's clips could be exported."""
    failures = [ExportFailure(clip.clip_id, clip.source, error) for clip, _, _ in item.clips]
    _commit(_draft(contents.out, item), contents.out, item, failures)


def _draft(out: Path, item: BatchItem) -> Path:
    folder = out / UNFINISHED / f".{item.key}.{secrets.token_hex(4)}"
    folder.mkdir(parents=True)
    return folder


def _commit(draft: Path, out: Path, item: BatchItem, failures: Sequence[ExportFailure]) -> None:
    if failures:
        write_failures(draft / FAILED, failures, "w")
    try:
        draft.rename(written_folder(out, item))
    except OSError:
        if not written_folder(out, item).is_dir():
            raise
        shutil.rmtree(draft)  # a worker that was taken for dead has written the same


def write_failures(path: Path, failures: Sequence[ExportFailure], mode: str) -> None:
    """Write or append to the list of failures."""
    with path.open(mode, encoding="utf-8", newline="") as file:
        file.writelines(map(csv_line, [*([] if file.tell() else [ExportFailure._fields]), *failures]))


def read_failures(path: Path) -> list[ExportFailure]:
    """The list of failures, empty if there is no file. Raises `OpenUniError` if it is damaged."""
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise OpenUniError(
            f"{path} is damaged: {error}. Restore it, or delete it and export to a new folder with --out."
        ) from error
    return [
        ExportFailure(*map(unguarded, row)) for row in rows if len(row) == 3 and tuple(row) != ExportFailure._fields
    ]


@dataclass(frozen=True)
class ExportSpec(Spec):
    """Write batches of an export in worker processes."""

    corpus_url: str
    exporter: Exporter
    annotators: Mapping[str, str]
    scores: Mapping[str, pa.StructType]
    out: str
    record: str  # contents of export.json, by which a node sees that it has the same folder

    def start(self, device: str) -> "ExportWorker":
        """See `Spec.start`. Raises `OpenUniError` on a node that does not see the output folder."""
        path = Path(self.out) / RECORD
        if not path.is_file() or path.read_text(encoding="utf-8") != self.record:
            raise OpenUniError(f"cannot see {self.out}. Mount it there under the same path.")
        corpus = Corpus.open(self.corpus_url)
        return ExportWorker(self.exporter, ExportContext(corpus, self.annotators, self.scores, Path(self.out)))


class ExportWorker(Worker):
    """Writes batches, one after the other."""

    def __init__(self, exporter: Exporter, contents: ExportContext) -> None:
        self.exporter, self.contents = exporter, contents

    def prepare(self, item: BatchItem) -> None:
        """Nothing: clips are read one by one."""

    def compute(self, item: BatchItem, prepared: None) -> None:
        """Write the batch."""
        write_batch(self.exporter, self.contents, item)

    def store(self, item: BatchItem, computed: None) -> ItemOutcome:
        """Nothing is left to write."""
        return ItemOutcome(item.key, "ok")

    def fail(self, item: BatchItem, error: str) -> ItemOutcome:
        """Record all clips of the batch as failed."""
        write_failed_batch(self.contents, item, error)
        return ItemOutcome(item.key, "failed", error)

    def finish(self) -> None:
        """Nothing is open."""
