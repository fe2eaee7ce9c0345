"""`openuni import`: store each clip of another project's dataset as rows and payloads, or as a row with the error.

Uses the workers of a pipeline run: parallel, resumable, each clip imported once. The row in the importer's column group
`annotations/IMPORTER` is written before the row in `clips/`. An annotation without a clip is left over from a killed
worker and is removed before the clip is read again.
"""

import dataclasses
import itertools
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import TypeAdapter

from openuni.console.progress import Reporter
from openuni.exchange.importer import FoundClip, ImportedClip, Importer
from openuni.manifests.contracts import schema
from openuni.manifests.contracts.modality import Modality, Payload
from openuni.manifests.contracts.options import recorded
from openuni.manifests.corpus.clip_list import WITHIN
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.layout import CLIPS, annotation_group
from openuni.manifests.corpus.names import is_label, new_label_fault, shown
from openuni.manifests.corpus.parts.compaction import compact_if_worthwhile
from openuni.manifests.corpus.shards import TarShard
from openuni.manifests.corpus.splits import write_pending_splits
from openuni.manifests.errors import ClipError, OpenUniError
from openuni.manifests.video.clip import Clip, clip_id
from openuni.manifests.video.probe import make_clip, probe
from openuni.pipeline.ledger import run_ledger
from openuni.pipeline.phases import CorpusWorker, decoder_threads
from openuni.pipeline.runners.pool_sizes import cpu_pool
from openuni.pipeline.runners.resources import Pool, Runner
from openuni.pipeline.worker import ItemOutcome, Spec


@dataclass(frozen=True)
class ImportItem:
    """One clip to import."""

    found: FoundClip
    clip_id: str

    @property
    def key(self) -> str:
        """The item's identity in a run."""
        return self.clip_id


@dataclass(frozen=True)
class ImportSpec(Spec):
    """Read clips with an importer."""

    corpus_url: str
    importer: Importer
    version: str
    collection: str

    def start(self, device: str) -> "ImportWorker":
        """See `Spec.start`."""
        return ImportWorker(self)


class PreparedClip(NamedTuple):
    """One validated clip, ready to be written."""

    clip: Clip  # with an empty source if the pixels are stored in the corpus
    payloads: dict[str, Payload]
    sizes: dict[str, tuple[int, int, int]]  # frames, height_px, width_px
    values: dict[str, Any]  # all other fields of the importer's row


class ImportWorker(CorpusWorker):
    """Reads and validates a clip, encodes its modalities, and writes both rows."""

    def __init__(self, spec: ImportSpec) -> None:
        super().__init__(spec.corpus_url)
        self.spec = spec
        self.name = spec.importer.name()
        kind = type(spec.importer)
        self.writers["maps"] = self.corpus.writer(
            annotation_group(self.name), schema.producer_schema(kind), spec.version, TarShard
        )
        self.writers["clips"] = self.corpus.writer("clips", schema.clip_schema(), "1")

        self.encoders = ThreadPoolExecutor(decoder_threads() or os.cpu_count(), thread_name_prefix="encode")

    def prepare(self, item: ImportItem) -> ImportedClip[Any]:
        """Read and validate the clip."""
        if not _is_unicode(item.found.key):
            raise ClipError(f"file name {item.found.key!a} is not valid UTF-8. Rename the file.")
        return self.spec.importer.read(item.found)

    def compute(self, item: ImportItem, prepared: ImportedClip[Any]) -> PreparedClip:
        """Encode, in parallel, the modalities that the importer did not return as payloads."""
        if prepared.split is not None and (fault := new_label_fault(prepared.split)):
            raise ClipError(f"split {fault}")
        fields = prepared.maps._asdict()
        maps = {name: value for name, value in fields.items() if isinstance(value, Modality)}
        clip = prepared.video
        fps = prepared.fps if clip is None else clip.fps
        encoded = {
            name: self.encoders.submit(modality.encode, fps)
            for name, modality in maps.items()
            if name not in prepared.payloads
        }
        payloads = dict(prepared.payloads) | {name: future.result() for name, future in encoded.items()}
        if clip is None:
            if "rgb" not in maps:
                raise ClipError(f"{self.name}: the importer returned neither a video nor frames")
            clip = make_clip("", probe(item.found.key, data=payloads["rgb"].data))
            clip = dataclasses.replace(clip, fps=prepared.fps)  # the container rounds to milliseconds
        clip = dataclasses.replace(
            clip,
            clip_id=item.clip_id,
            caption=prepared.caption,
            collection=self.spec.collection,
            origin=prepared.origin,
            split=prepared.split,
        )
        sizes = {}
        for name, payload in payloads.items():
            signal = maps.get(name)
            size_px, frames = (
                (payload.size_px, payload.frames) if signal is None else (signal.size_px, len(signal.array))
            )
            if size_px is None or frames is None:
                raise ClipError(f"{self.name}: payload {name} has no size, and the importer returned no map")
            sizes[name] = (frames, *size_px)
            if sizes[name][0] != clip.frame_count:
                raise ClipError(f"{name} has {sizes[name][0]} frames, the video has {clip.frame_count}")
        kinds = schema.producer_schema(type(self.spec.importer)).field(self.name).type
        values = {
            name: schema.stored(value, kinds.field(name).type, f"{self.name}.{name}")
            for name, value in fields.items()
            if name not in payloads
        }
        return PreparedClip(clip, payloads, sizes, values)

    def operator_seconds(self, computed: PreparedClip, compute_s: float) -> dict[str, float]:
        """See `Worker.operator_seconds`; of the importer."""
        return {self.name: compute_s}

    def store(self, item: ImportItem, computed: PreparedClip) -> ItemOutcome:
        """Write the payloads and the importer's row, then the clip's row."""
        row = {"status": "ok", "error": None, "version": self.spec.version, "ms": None, **computed.values}
        source = computed.clip.source
        for name, payload in computed.payloads.items():
            extent = self.writers["maps"].put(f"{item.clip_id}.{name}.{payload.suffix}", payload.data)
            frames, height_px, width_px = computed.sizes[name]
            size = {"frames": frames, "height_px": height_px, "width_px": width_px, "pts_hash": computed.clip.pts_hash}
            row[name] = extent | size | schema.stored_constants(payload.constants, name)
            if name == "rgb" and not source:
                first, last = extent["offset"], extent["offset"] + extent["nbytes"] - 1
                span = f"#bytes={first}-{last}&xxh3={extent['xxh3']:016x}"
                source = f"{WITHIN}{annotation_group(self.name)}/{extent['shard']}{span}"
        self.writers["maps"].commit({"clip_id": item.clip_id, self.name: row})
        clip = dataclasses.replace(computed.clip, source=source)
        self.writers["clips"].commit(dataclasses.asdict(clip) | {"status": "ok", "error": None})
        return ItemOutcome(item.key, "ok")

    def fail(self, item: ImportItem, error: str) -> ItemOutcome:
        """Record that the clip was rejected, and why."""
        self.writers["maps"].rollback()
        row: dict[str, Any] = dict.fromkeys(Clip.__dataclass_fields__)
        row |= {"clip_id": item.clip_id, "source": item.found.key, "collection": self.spec.collection}
        self.writers["clips"].commit(row | {"status": "failed", "error": error})
        return ItemOutcome(item.key, "failed", error)

    def finish(self) -> None:
        """See `CorpusWorker.finish`."""
        self.encoders.shutdown()
        super().finish()


def _is_unicode(text: str) -> bool:
    return text == text.encode("utf-8", "replace").decode()


@dataclass(frozen=True)
class ImportOptions:
    """Which clips of a dataset to import, and into which collection."""

    collection: str = ""  # empty: name of the dataset's folder
    limit: int | None = None  # only the first N clips
    retry_failed: bool = False  # retry rejected clips
    raise_errors: bool = False  # stop at the first rejected clip and raise its exception


class ClipListing:
    """The clips of a dataset, listed once: ids in memory, the rest on disk as JSON, because there may be millions."""

    def __init__(self) -> None:
        self.ids = pa.array([], pa.string())
        self.kinds: list[TypeAdapter[Any]] = []  # one per type of `FoundClip.location`; there are few
        self.file = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the listing

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def fill(self, clips: Iterable[FoundClip], id_of: Callable[[FoundClip], str]) -> pa.Array:
        """Store the clips; returns their clip_ids (string array)."""
        numbers: dict[type, int] = {}

        def kept() -> Iterator[str]:
            for found in clips:
                kind = type(found.location)
                if kind not in numbers:
                    numbers[kind] = len(self.kinds)
                    self.kinds.append(TypeAdapter(tuple[str, kind]))  # type: ignore[valid-type]
                number = numbers[kind]
                plain = self.kinds[number].dump_python(tuple(found), mode="json")
                self.file.write(f"{number} {json.dumps(plain)}\n".encode())  # names that are not UTF-8 are escaped
                yield id_of(found)

        self.ids = pa.array(kept(), pa.string())
        return self.ids

    def items(self, wanted: pa.Array) -> Iterator[ImportItem]:
        """Iterate over the clips selected by `wanted` (booleans), lazily; one iteration at a time."""
        self.file.seek(0)
        for line, name, chosen in zip(self.file, self.ids, wanted, strict=True):
            if chosen.as_py():
                number, _, record = line.partition(b" ")
                yield ImportItem(FoundClip(*self.kinds[int(number)].validate_python(json.loads(record))), name.as_py())


@dataclass(frozen=True)
class ImportJob:
    """One import into one corpus whose lease the caller holds. Running it again resumes it."""

    importer: Importer
    corpus: Corpus
    import_options: ImportOptions = ImportOptions()

    @property
    def group(self) -> str:
        """The column group of the importer's rows."""
        return annotation_group(self.importer.name())

    def run(self, folder: Path, runner: Runner, reporter: Reporter) -> None:
        """Import all missing clips; rejected clips become failed rows of the corpus."""
        version, collection = self.importer.version(), self.import_options.collection or folder.name
        if self.import_options.collection and (fault := new_label_fault(collection)):
            raise OpenUniError(f"--collection {fault}")
        if not is_label(collection):
            raise OpenUniError(f"the folder {shown(folder.name)} cannot name a collection. Name it with --collection.")
        self._check_version(version)
        self._check_folder(folder, collection)
        write_pending_splits(self.corpus)
        saved = self.corpus.recover()
        if saved:
            reporter.print_line(f"recovered {saved:,} finished rows of an interrupted import")
        asked = {
            "import": {"format": self.importer.name(), "folder": str(folder), "collection": collection},
            "options": recorded(self.importer),
        }
        with run_ledger(self.corpus, reporter, asked) as log, ClipListing() as listing:
            found = itertools.islice(self.importer.find(folder), self.import_options.limit)
            ids = listing.fill(found, partial(self._id, folder))
            self._check_ids(folder, listing)
            if self.import_options.retry_failed:
                self.corpus.delete_by_status("clips", ["failed"], {"clip_id": ids})
            self._remove_orphans(None)
            left = pc.invert(pc.is_in(ids, value_set=self.corpus.done("clips")))
            count = pc.sum(left).as_py()
            spec = ImportSpec(self.corpus.store.url, self.importer, version, collection)
            if count:
                with reporter.phase(f"import {self.importer.name()}", count) as counter:

                    def report(outcome: ItemOutcome) -> None:
                        counter.add(outcome.status, outcome.decodes, key=outcome.key, usage=outcome.usage)
                        log.outcome(outcome, "import", raise_errors=self.import_options.raise_errors)

                    size = cpu_pool(runner.resources, runner.capacity())
                    pool = Pool("import", spec, listing.items(left), report, self._unfinished, size, counter)
                    runner.run_pools([pool])
                self.corpus.recover()
                compact_if_worthwhile(self.corpus, [CLIPS, self.group])
            self.corpus.refresh()
            missing = pc.sum(pc.invert(pc.is_in(ids, value_set=self.corpus.done("clips")))).as_py()
            if missing:
                raise OpenUniError(f"{missing} of {len(ids)} clips have no row. Rerun the command to resume.")

    def _check_folder(self, folder: Path, collection: str) -> None:
        """Reject a second folder of the same name.

        Clips are identified by collection and key, so clips of the other folder would pass for these. If the user
        has named the collection, several folders may belong to it.
        """
        if self.import_options.collection:
            return
        for run in self.corpus.runs():
            before = run.get("import")
            if not isinstance(before, dict) or before.get("format") != self.importer.name():
                continue
            other = Path(str(before.get("folder")))
            if before.get("collection") == collection and other != folder and other.is_dir():
                raise OpenUniError(
                    f'the corpus already has clips of {other} as collection "{collection}"; clips of {folder} would be '
                    "mistaken for them. Pass a different --collection."
                )

    def _check_ids(self, folder: Path, listing: ClipListing) -> None:
        if not len(listing.ids):
            raise OpenUniError(f"{folder} has no clips in the format {self.importer.name()}")
        counts = pc.value_counts(listing.ids)
        repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
        if len(repeated):
            key = next(listing.items(pc.equal(listing.ids, repeated[0]))).found.key
            raise OpenUniError(f"{folder}: several clips are named {key}; names must be unique")

    def _id(self, folder: Path, found: FoundClip) -> str:
        collection = self.import_options.collection or folder.name
        return clip_id(f"{self.importer.name()}:{collection}:{found.key}", 0, 0, "")

    def _check_version(self, version: str) -> None:
        found = self.corpus.group_version(self.group)
        if found not in ("none", version):
            raise OpenUniError(
                f"{self.corpus.store.url} has clips imported as {self.importer.name()} with other options or with "
                "another version of OpenUni. Use the same options, or pass a new --out."
            )

    def _remove_orphans(self, among: pa.Array | None) -> None:
        """Remove rows of the importer without a clip; only those in `among`, if other workers are still writing."""
        rows = self.corpus.done(self.group)
        orphans = rows.filter(pc.invert(pc.is_in(rows, value_set=self.corpus.done("clips"))))
        if among is not None:
            orphans = orphans.filter(pc.is_in(orphans, value_set=among))
        if len(orphans):  # rare; only then are all columns read
            self.corpus.delete_rows(self.group, lambda rows: pc.is_in(rows["clip_id"], value_set=orphans))

    def _unfinished(self, held: list[ImportItem]) -> list[ImportItem]:
        """Items left to do after a worker has died: those that its journals do not contain."""
        self.corpus.recover()
        self._remove_orphans(pa.array([item.clip_id for item in held], pa.string()))
        clips = self.corpus.done("clips")
        return [item for item in held if pc.index(clips, item.clip_id).as_py() < 0]
