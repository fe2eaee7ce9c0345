"""`openuni export`: write the clips of a corpus as files that another project reads; every file is complete or absent.

The files themselves record progress: a batch whose files all exist is not written again. A batch is written to its own
folder within the export and moved into place when finished. `export.json` identifies the export; `failed.csv` lists the
clips that could not be exported and is updated before their batch is moved into place.
"""

import fcntl
import itertools
import json
import logging
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

from openuni.console.progress import Counter, Reporter
from openuni.exchange.export_batches import (
    FAILED,
    RECORD,
    UNFINISHED,
    BatchItem,
    ExportSpec,
    read_failures,
    write_batch,
    write_failures,
    written_folder,
)
from openuni.exchange.export_selection import ExportOptions, Selection
from openuni.exchange.exporter import ExportBatch, ExportClip, ExportContext, Exporter, ExportFailure, json_line
from openuni.manifests.contracts.component import fingerprint
from openuni.manifests.contracts.options import recorded
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.errors import OpenUniError
from openuni.manifests.storage.store import Store, is_unused, require_folder
from openuni.pipeline.runners.pool_sizes import cpu_pool
from openuni.pipeline.runners.resources import Pool, Runner
from openuni.pipeline.worker import ItemOutcome

logger = logging.getLogger(__name__)

WAITING_PER_WORKER = 2  # batches submitted ahead of the one that is collected next


class ExportReport(NamedTuple):
    """Clip outcomes of an export; `clips` equals written + already_present + failed."""

    clips: int
    written: int
    already_present: int  # written by an earlier run
    failed: list[ExportFailure]

    def __str__(self) -> str:
        done = f"{self.written:,} written + {self.already_present:,} already present + {len(self.failed):,} failed"
        lines = [f"{self.clips:,} clips = {done}"]
        return "\n".join([*lines, *(f"  failed  {failure.clip_id}: {failure.error}" for failure in self.failed[:20])])


class BatchPlan(NamedTuple):
    """A planned batch: its group, its index, and the positions of its clips in the selection."""

    group_key: str
    number: int
    total: int
    positions: np.ndarray


@dataclass(frozen=True)
class ExportJob:
    """One export into one folder. Running it again resumes it."""

    exporter: Exporter
    corpus: Corpus
    out: Path
    export_options: ExportOptions

    def run(self, workers: int, reporter: Reporter, runner: Runner | None = None) -> ExportReport:
        """Write all missing files, in `workers` threads or by the workers of a runner.

        Raises `OpenUniError` if the folder contains a different export.
        """
        selection = Selection(self.corpus, self.exporter, self.export_options, self.out)
        with self._folder_lock():
            shutil.rmtree(self.out / UNFINISHED, ignore_errors=True)
            plans, facts = self._plan(selection)
            self._check_record(facts)
            failed_before = {failure.clip_id for failure in read_failures(self.out / FAILED)}
            self._put_record(facts, finished=False)
            with reporter.phase(f"export {self.exporter.name()}", len(selection)) as counter:
                progress = _Progress(counter)
                items = self._items(selection, plans, failed_before, progress)
                if runner is None:
                    self._write_in_threads(items, selection.contents, progress, workers)
                else:
                    self._write_in_pool(items, selection.contents, progress, runner)
            failed = progress.failed()
            self._finish(selection, failed)
            self._put_record(facts, finished=True)
        return ExportReport(len(selection), progress.written, len(selection) - progress.written - len(failed), failed)

    # ------------------------------------------------------------------ plan

    def _plan(self, selection: Selection) -> tuple[list[BatchPlan], dict[str, Any]]:
        """The batches, and the identity of this export: hashes of the clips' metadata and of each modality's maps."""
        clips, maps = xxhash.xxh3_128(), {name: xxhash.xxh3_128() for name in selection.contents.annotators}
        groups: dict[str, list[list[int]]] = {}
        filled: dict[str, int] = {}
        bound = self.exporter.batch_bytes()
        for position, clip in enumerate(selection.clips()):
            record = clip.record()
            for name, facts in record.pop("modalities").items():
                maps[name].update(f"{clip.clip_id} {clip.maps[name].row['xxh3']} {json_line(facts)}\n".encode())
            clips.update(f"{json_line(record)} {clip.clip.pts_hash}\n".encode())
            group, nbytes = self.exporter.group_key(clip), self.exporter.estimate(clip)
            batches = groups.setdefault(group, [])
            if not batches or not bound or filled[group] + nbytes > bound:
                batches.append([])
                filled[group] = 0
            batches[-1].append(position)
            filled[group] += nbytes
        plans = [
            BatchPlan(group, number, len(batches), np.array(positions))
            for group, batches in groups.items()
            for number, positions in enumerate(batches)
        ]
        made_from: dict[str, Any] = {"format": self.exporter.name(), "clips": clips.hexdigest()}
        made_from |= {f"modality {name}": digest.hexdigest() for name, digest in maps.items()}
        options = recorded(self.exporter) | {"revision": self.exporter.revision}
        return plans, made_from | {f"option {name}": value for name, value in options.items()}

    # ------------------------------------------------------------------ writing

    def _items(
        self, selection: Selection, plans: Sequence[BatchPlan], failed_before: set[str], progress: "_Progress"
    ) -> Iterator[BatchItem]:
        """The batches to write; those whose files exist are counted as done."""
        for number, batch in enumerate(self._batches(selection, plans)):
            retry = any(clip.clip_id in failed_before for clip in batch.clips)
            if not retry and all((self.out / name).is_file() for name in self.exporter.files(batch)):
                progress.add(number, len(batch.clips), [], is_new=False)
            else:
                yield BatchItem.of(number, batch)

    def _write_in_threads(
        self, items: Iterator[BatchItem], contents: ExportContext, progress: "_Progress", workers: int
    ) -> None:
        waiting: deque[tuple[BatchItem, Future[None]]] = deque()

        def collect() -> None:
            item, future = waiting.popleft()
            future.result()
            self._finalize(item, progress)

        with ThreadPoolExecutor(workers) as pool:
            try:
                for item in items:
                    if len(waiting) >= WAITING_PER_WORKER * workers:
                        collect()
                    waiting.append((item, pool.submit(write_batch, self.exporter, contents, item)))
                while waiting:
                    collect()
            finally:
                pool.shutdown(cancel_futures=True)

    def _write_in_pool(
        self, items: Iterator[BatchItem], contents: ExportContext, progress: "_Progress", runner: Runner
    ) -> None:
        given: dict[str, BatchItem] = {}
        first = next(items, None)
        if first is None:
            return  # workers take seconds to start

        def handed_out() -> Iterator[BatchItem]:
            for item in itertools.chain([first], items):
                given[item.key] = item
                yield item

        def report(outcome: ItemOutcome) -> None:
            for failure in outcome.failures:
                logger.warning("batch %s: %s\n%s", outcome.key, failure.error, failure.traceback)
            self._finalize(given.pop(outcome.key), progress)

        def unfinished(held: list[BatchItem]) -> list[BatchItem]:
            """Of the batches that a dead worker held: those that it has not written."""
            for item in held:
                if written_folder(self.out, item).is_dir():
                    self._finalize(given.pop(item.key), progress)
            return [item for item in held if item.key in given]

        record = (self.out / RECORD).read_text(encoding="utf-8")
        spec = ExportSpec(
            self.corpus.store.url, self.exporter, contents.annotators, contents.scores, str(self.out), record
        )
        size = cpu_pool(runner.resources, runner.capacity())
        runner.run_pools([Pool(f"export {self.exporter.name()}", spec, handed_out(), report, unfinished, size)])

    def _batches(self, selection: Selection, plans: Sequence[BatchPlan]) -> Iterator[ExportBatch]:
        if not self.exporter.batch_bytes():  # one clip per batch: rows are read in windows, not one by one
            for clip in selection.clips():
                yield ExportBatch([clip])
            return
        for plan in plans:
            yield ExportBatch(list(selection.clips(plan.positions)), plan.group_key, plan.number, plan.total)

    def _finalize(self, item: BatchItem, progress: "_Progress") -> None:
        """Record the failures of a written batch, then move its files into place."""
        folder = written_folder(self.out, item)
        failures = read_failures(folder / FAILED)
        if failures:
            write_failures(self.out / FAILED, failures, "a")
        for name in self.exporter.files(item.batch(self.corpus)):
            if (folder / name).is_file():
                move(folder / name, self.out / name)
            else:
                (self.out / name).unlink(missing_ok=True)  # left by an earlier run; this clip fails now
        shutil.rmtree(folder)
        progress.add(item.number, len(item.clips), failures, is_new=True)

    def _finish(self, selection: Selection, failed: list[ExportFailure]) -> None:
        folder = self.out / UNFINISHED / "lists"
        folder.mkdir(parents=True)
        failed_ids = {failure.clip_id for failure in failed}
        clips: Iterator[ExportClip] = (clip for clip in selection.clips() if clip.clip_id not in failed_ids)
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
        """Lock the folder, so that no two exports write to it at once."""
        require_folder(self.out)
        if not (self.out / RECORD).is_file() and not is_unused(self.out):
            raise OpenUniError(f"{self.out} is not empty and is not an export. Pass a new or empty folder with --out.")
        self.out.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.out, os.O_RDONLY)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OpenUniError(
                    f"{self.out} is locked by another export. Wait for it to finish, or stop it."
                ) from None
            yield
        finally:
            os.close(handle)

    def _check_record(self, facts: dict[str, Any]) -> None:
        path = self.out / RECORD
        if not path.is_file():
            return
        remedy = "Restore it, or pass a new folder with --out."
        found = Store(str(self.out)).read_json(RECORD, {"made_from": dict}, remedy)["made_from"]
        facts = json.loads(json.dumps(facts))
        differ = [name for name in {**facts, **found} if facts.get(name) != found.get(name)]
        if differ:
            differences = ", ".join(self._difference(name, found.get(name), facts.get(name)) for name in differ)
            raise OpenUniError(
                f"{self.out} contains a different export: {differences}. Pass a new --out, or the former options."
            )

    @staticmethod
    def _difference(name: str, then: Any, now: Any) -> str:
        if name == "clips":
            return "the clips, or their captions or scores, have changed"
        if name.startswith("modality "):
            modality = name.removeprefix("modality ")
            if then is None or now is None:
                return f"{modality} is no longer selected" if now is None else f"{modality} was not exported"
            return f"the {modality} maps have changed"
        return f"{name} was {then}, is now {now}"

    def _put_record(self, facts: dict[str, Any], *, finished: bool) -> None:
        record = {"finished": finished, "fingerprint": fingerprint(**facts), "made_from": facts}
        draft = self.out / f".{RECORD}.tmp"
        draft.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        draft.replace(self.out / RECORD)


class _Progress:
    """What has become of the batches so far, in whatever order they are done."""

    def __init__(self, counter: Counter) -> None:
        self.counter = counter
        self.written = 0  # clips
        self._failures: dict[int, list[ExportFailure]] = {}  # by number of the batch

    def add(self, number: int, clips: int, failures: list[ExportFailure], *, is_new: bool) -> None:
        """Count a batch; `is_new`: it was written now."""
        if failures:
            self._failures[number] = failures
        self.written += (clips - len(failures)) if is_new else 0
        for status in ["failed"] * len(failures) + ["ok"] * (clips - len(failures)):
            self.counter.add(status)

    def failed(self) -> list[ExportFailure]:
        """All failures, in the order of the batches."""
        return [failure for number in sorted(self._failures) for failure in self._failures[number]]


def move(path: Path, target: Path) -> None:
    """Rename a file within the export, so that it is visible only when complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    path.replace(target)
