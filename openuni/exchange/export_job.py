"""`openuni export`: a corpus's clips become files that another project reads, whole or not at all.

The files themselves say what is done: a batch of clips whose files are all there is not written again. Batches are
written in a folder of their own within the export and moved into place when finished. `export.json` says which export
the folder holds; `failed.csv` which clips it could not, from before their batch is moved into place.
"""

import csv
import fcntl
import json
import os
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash

from openuni.console.progress import Reporter
from openuni.exchange.export_selection import ExportOptions, Selection
from openuni.exchange.exporter import ExportBatch, ExportClip, ExportContext, Exporter, ExportFailure, json_line
from openuni.manifests.contracts.component import fingerprint
from openuni.manifests.contracts.options import recorded
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.errors import OpenUniError

RECORD, FAILED, UNFINISHED = "export.json", "failed.csv", ".unfinished"
WAITING_PER_WORKER = 2  # batches handed out ahead of the one that is waited for


class ExportReport(NamedTuple):
    """What became of the clips of an export; `clips` equals written + kept + failed."""

    clips: int
    written: int
    already_present: int  # were there from a run before
    failed: list[ExportFailure]

    def __str__(self) -> str:
        done = f"{self.written:,} written + {self.already_present:,} there before + {len(self.failed):,} failed"
        lines = [f"{self.clips:,} clips = {done}"]
        return "\n".join([*lines, *(f"  failed  {failure.clip_id}: {failure.error}" for failure in self.failed[:20])])


class BatchPlan(NamedTuple):
    """A batch of the plan: its place, and which clips of the selection it has."""

    group_key: str
    number: int
    total: int
    positions: np.ndarray


class PendingBatch(NamedTuple):
    """A batch handed out: where it is written, and what will come of it; no future where it was there before."""

    batch: ExportBatch
    folder: Path
    future: "Future[list[ExportFailure]] | None"


@dataclass(frozen=True)
class ExportJob:
    """One export into one folder. Done again, it goes on where it stopped."""

    exporter: Exporter
    corpus: Corpus
    out: Path
    export_options: ExportOptions

    def run(self, workers: int, reporter: Reporter) -> ExportReport:
        """Write what is not there yet. Raises `OpenUniError` when the folder holds another export."""
        selection = Selection(self.corpus, self.exporter, self.export_options, self.out)
        with self._folder_lock():
            shutil.rmtree(self.out / UNFINISHED, ignore_errors=True)
            slots, facts = self._plan(selection)
            self._check_record(facts)
            before = {failure.clip_id for failure in self._failures()}
            self._put_record(facts, finished=False)
            failed: list[ExportFailure] = []
            written = 0
            with reporter.phase(f"export {self.exporter.name()}", len(selection)) as counter:
                for clips, failures, fresh in self._write_all(selection, slots, before, workers):
                    failed += failures
                    written += (clips - len(failures)) if fresh else 0
                    for status in ["failed"] * len(failures) + ["ok"] * (clips - len(failures)):
                        counter.add(status)
            self._finish(selection, failed)
            self._put_record(facts, finished=True)
        return ExportReport(len(selection), written, len(selection) - written - len(failed), failed)

    # ------------------------------------------------------------------ plan

    def _plan(self, selection: Selection) -> tuple[list[BatchPlan], dict[str, Any]]:
        """The batches, and what this export is made from: hashes of the clips' facts and of each modality's maps."""
        clips, maps = xxhash.xxh3_128(), {name: xxhash.xxh3_128() for name in selection.contents.annotators}
        shelves: dict[str, list[list[int]]] = {}
        filled: dict[str, int] = {}
        bound = self.exporter.batch_bytes()
        for position, clip in enumerate(selection.clips()):
            record = clip.record()
            for name, facts in record.pop("modalities").items():
                maps[name].update(f"{clip.clip_id} {clip.maps[name].row['xxh3']} {json_line(facts)}\n".encode())
            clips.update(f"{json_line(record)} {clip.clip.pts_hash}\n".encode())
            shelf, nbytes = self.exporter.group_key(clip), self.exporter.estimate(clip)
            batches = shelves.setdefault(shelf, [])
            if not batches or not bound or filled[shelf] + nbytes > bound:
                batches.append([])
                filled[shelf] = 0
            batches[-1].append(position)
            filled[shelf] += nbytes
        slots = [
            BatchPlan(shelf, number, len(batches), np.array(positions))
            for shelf, batches in shelves.items()
            for number, positions in enumerate(batches)
        ]
        made_from: dict[str, Any] = {"format": self.exporter.name(), "clips": clips.hexdigest()}
        made_from |= {f"modality {name}": digest.hexdigest() for name, digest in maps.items()}
        options = recorded(self.exporter) | {"revision": self.exporter.revision}
        return slots, made_from | {f"option {name}": value for name, value in options.items()}

    # ------------------------------------------------------------------ writing

    def _write_all(
        self, selection: Selection, slots: Sequence[BatchPlan], before: set[str], workers: int
    ) -> Iterator[tuple[int, list[ExportFailure], bool]]:
        """Per batch, in order: how many clips, which failed, and whether it was written now."""
        waiting: deque[PendingBatch] = deque()
        with ThreadPoolExecutor(workers) as pool:
            try:
                for number, batch in enumerate(self._batches(selection, slots)):
                    if len(waiting) >= WAITING_PER_WORKER * workers:
                        yield self._finalize(waiting.popleft())
                    again = any(clip.clip_id in before for clip in batch.clips)
                    done = not again and all((self.out / name).is_file() for name in self.exporter.files(batch))
                    folder = self.out / UNFINISHED / f"{number:08}"
                    future = None if done else pool.submit(self._write, batch, folder, selection.contents)
                    waiting.append(PendingBatch(batch, folder, future))
                while waiting:
                    yield self._finalize(waiting.popleft())
            finally:
                pool.shutdown(cancel_futures=True)

    def _batches(self, selection: Selection, slots: Sequence[BatchPlan]) -> Iterator[ExportBatch]:
        if not self.exporter.batch_bytes():  # one clip each: read by the window, not one by one
            for clip in selection.clips():
                yield ExportBatch([clip])
            return
        for slot in slots:
            yield ExportBatch(list(selection.clips(slot.positions)), slot.group_key, slot.number, slot.total)

    def _write(self, batch: ExportBatch, folder: Path, contents: ExportContext) -> list[ExportFailure]:
        folder.mkdir(parents=True)
        return self.exporter.write(batch, folder, contents)

    def _finalize(self, pending: "PendingBatch") -> tuple[int, list[ExportFailure], bool]:
        """Move a written batch into place; what it could not export is in the ledger before that."""
        batch, folder, future = pending
        if future is None:
            return len(batch.clips), [], False
        failures = future.result()
        if failures:
            write_failures(self.out / FAILED, failures, "a")
        for name in self.exporter.files(batch):
            if (folder / name).is_file():
                move(folder / name, self.out / name)
            else:
                (self.out / name).unlink(missing_ok=True)  # of a run before, of a clip that now fails
        shutil.rmtree(folder)
        return len(batch.clips), failures, True

    def _finish(self, selection: Selection, failed: list[ExportFailure]) -> None:
        folder = self.out / UNFINISHED / "lists"
        folder.mkdir(parents=True)
        lost = {failure.clip_id for failure in failed}
        clips: Iterator[ExportClip] = (clip for clip in selection.clips() if clip.clip_id not in lost)
        self.exporter.finish(clips, folder, selection.contents)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                move(path, self.out / path.relative_to(folder))
        if failed:
            write_failures(folder / FAILED, failed, "w")
            move(folder / FAILED, self.out / FAILED)
        else:
            (self.out / FAILED).unlink(missing_ok=True)
        shutil.rmtree(self.out / UNFINISHED)

    # ------------------------------------------------------------------ the folder

    @contextmanager
    def _folder_lock(self) -> Iterator[None]:
        """Hold the folder, so that no two exports write to it at once."""
        if self.out.exists() and not self.out.is_dir():
            raise OpenUniError(f"{self.out} is a file. Give a new or empty folder with --out.")
        if self.out.is_dir() and any(self.out.iterdir()) and not (self.out / RECORD).is_file():
            raise OpenUniError(f"{self.out} is not empty and holds no export. Give a new or empty folder with --out.")
        self.out.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.out, os.O_RDONLY)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OpenUniError(f"another export is writing to {self.out}. Wait for it, or stop it first.") from None
            yield
        finally:
            os.close(handle)

    def _check_record(self, facts: dict[str, Any]) -> None:
        path = self.out / RECORD
        if not path.is_file():
            return
        found = json.loads(path.read_text(encoding="utf-8"))["made_from"]
        facts = json.loads(json.dumps(facts))
        differ = [name for name in {**facts, **found} if facts.get(name) != found.get(name)]
        if differ:
            told = ", ".join(self._difference(name, found.get(name), facts.get(name)) for name in differ)
            raise OpenUniError(
                f"{self.out} holds another export: {told}. Export into a new folder, or give the same choices as then."
            )

    @staticmethod
    def _difference(name: str, then: Any, now: Any) -> str:
        if name == "clips":
            return "other clips, or their captions or scores have changed"
        if name.startswith("modality "):
            what = name.removeprefix("modality ")
            if then is None or now is None:
                return f"{what} is in it" if now is None else f"{what} is not in it"
            return f"other {what} maps"
        return f"{name} was {then}, is {now}"

    def _put_record(self, facts: dict[str, Any], *, finished: bool) -> None:
        record = {"finished": finished, "fingerprint": fingerprint(**facts), "made_from": facts}
        draft = self.out / f".{RECORD}.tmp"
        draft.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        draft.replace(self.out / RECORD)

    def _failures(self) -> list[ExportFailure]:
        path = self.out / FAILED
        if not path.is_file():
            return []
        with path.open(encoding="utf-8", newline="") as file:
            return [
                ExportFailure(*row) for row in csv.reader(file) if len(row) == 3 and tuple(row) != ExportFailure._fields
            ]


def write_failures(path: Path, failures: Sequence[ExportFailure], mode: str) -> None:
    """Write or append to the ledger of failures."""
    with path.open(mode, encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([*([] if file.tell() else [ExportFailure._fields]), *failures])


def move(path: Path, target: Path) -> None:
    """Rename within the export: the file is seen whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    path.replace(target)
