"""The deduplicator contract: compare all clips of a corpus and write the result as a column group.

A deduplicator is one file in `openuni/dedup/deduplicators/`: a frozen dataclass of options with `find`, which reads
what a filter has stored for every clip. `openuni duplicates` writes its column group `filters/NAME` as a whole, and a
recipe's `keep` can use the columns like those of any filter. It is recomputed only if clips, scores or options have
changed.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import xxhash

from openuni.console.progress import Reporter, ShareProgress
from openuni.manifests.contracts.component import fingerprint
from openuni.manifests.contracts.discovery import component_names, find_component
from openuni.manifests.contracts.producer import Producer
from openuni.manifests.contracts.schema import clip_schema, producer_schema
from openuni.manifests.corpus import keep_rule
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.layout import filter_group
from openuni.manifests.errors import OpenUniError, unknown_name

DIGEST_ROWS = 50_000


class DuplicateInfo(NamedTuple):
    """The duplicate cluster of a clip."""

    cluster: Annotated[
        str | None, "clip_id of the representative of the cluster; the clip's own id if it is the representative"
    ]
    is_representative: Annotated[
        bool | None, "whether the clip represents its cluster: the largest picture, then the longest, then by id"
    ]
    clips: Annotated[int | None, "number of clips in the cluster, including this one"]
    similarity: Annotated[float | None, "similarity to the representative, at most 1; null for the representative"]


class RankedClips(NamedTuple):
    """All clips of a corpus in order of rank: of two duplicates, the one with the lower number represents the other."""

    ids: pa.Array  # string [N]
    known: np.ndarray  # bool [N], whether the source filter has a result


class DuplicateAssignments(NamedTuple):
    """The result of a deduplicator, by rank."""

    representative: np.ndarray  # int64 [N], number of the representative; for a representative, its own
    similarity: np.ndarray  # float64 [N], to the representative; NaN for a representative


@dataclass(frozen=True)
class Deduplicator(Producer):
    """Base class of deduplicators."""

    by: ClassVar[str]  # value of `openuni duplicates --by`
    source_filter: ClassVar[str]  # filter whose results are compared
    column: ClassVar[str]  # column of that filter

    @abstractmethod
    def find(self, corpus: Corpus, clips: RankedClips, progress: Callable[[float], None]) -> DuplicateAssignments:
        """Compare all clips. The result must not depend on the order or the parts in which rows are stored.

        `progress` is called now and then with the share of the work that is done, 0..1.
        """

    @classmethod
    def result_type(cls) -> type[tuple[Any, ...]]:
        """See `Producer.result_type`."""
        return DuplicateInfo

    @classmethod
    def group(cls) -> str:
        """The column group that it writes."""
        return filter_group(cls.name())


class DedupReport(NamedTuple):
    """Summary of a deduplication."""

    group: str
    clips: int
    compared: int  # clips with a result of the source filter
    representative_count: int  # of the compared clips
    largest: int  # number of clips in the largest cluster
    computed: bool  # False: up to date, nothing was recomputed

    def __str__(self) -> str:
        duplicates = self.compared - self.representative_count
        text = f"{self.compared:,} clips compared: {self.representative_count:,} representatives"
        text += f", {duplicates:,} duplicates"
        text += f" (largest cluster: {self.largest:,} clips)" if duplicates else ""
        left = self.clips - self.compared
        text += f"; {left:,} not compared (no result of the filter)" if left else ""
        name = self.group.rpartition("/")[2]
        return f'{text}. Keep one clip per cluster with: keep = "{name}.is_representative"'


def find_duplicates(deduplicator: Deduplicator, corpus: Corpus, reporter: Reporter) -> DedupReport:
    """Write the deduplicator's column group, unless it is up to date. The caller holds the lease of the corpus.

    It is replaced as a whole: a search that is interrupted leaves the last result as it was.
    """
    corpus.recover()
    clips = rank_clips(corpus, deduplicator)
    clips_digest = xxhash.xxh3_64(clips.known.tobytes())
    for start in range(0, len(clips.ids), DIGEST_ROWS):
        texts = clips.ids[start : start + DIGEST_ROWS].to_pylist()
        clips_digest.update("".join(f"{text}\n" for text in texts).encode())
    version = fingerprint(
        finder=deduplicator.version(),
        reads=corpus.group_version(filter_group(deduplicator.source_filter)),
        clips=clips_digest.hexdigest(),
    )
    group = deduplicator.group()
    done = corpus.group_version(group) == version and len(corpus.done(group)) == len(clips.ids)
    if not done:
        with reporter:
            found = deduplicator.find(corpus, clips, ShareProgress(reporter, deduplicator.name()))
        corpus.replace(group, _rows(deduplicator, clips, found, version), version)
    sizes = corpus.table(
        group, {"clips": pads.field(deduplicator.name(), "clips"), "kept": _representative_field(deduplicator)}
    )
    kept = sizes.filter(sizes["kept"])["clips"]
    largest = pc.max(kept).as_py() or 0
    return DedupReport(group, len(clips.ids), int(clips.known.sum()), len(kept), largest, computed=not done)


def rank_clips(corpus: Corpus, deduplicator: Deduplicator) -> RankedClips:
    """All clips with status ok: largest picture first, then longest, then by id.

    Raises `OpenUniError` if the source filter has no result for any clip.
    """
    field = pads.field
    columns = {
        "clip_id": field("clip_id"),
        "px": field("width_px").cast(pa.int64()) * field("height_px").cast(pa.int64()),
        "s": (field("end_pts") - field("start_pts")).cast(pa.float64())
        * field("time_base_num").cast(pa.float64())
        / field("time_base_den").cast(pa.float64()),
    }
    table = corpus.dataset("clips", clip_schema()).to_table(columns=columns, filter=field("status") == "ok")
    order = pc.sort_indices(table, [("px", "descending"), ("s", "descending"), ("clip_id", "ascending")])
    ids = table["clip_id"].take(order).combine_chunks()
    known = np.zeros(len(ids), bool)
    if corpus.parts(filter_group(deduplicator.source_filter)):
        wanted = {"clip_id": field("clip_id")}
        there = (field(deduplicator.source_filter, "status") == "ok") & field(
            deduplicator.source_filter, deduplicator.column
        ).is_valid()
        rows = corpus.dataset(filter_group(deduplicator.source_filter)).to_table(columns=wanted, filter=there)
        known[pc.index_in(rows["clip_id"], value_set=ids).drop_null().to_numpy()] = True
    if not known.any():
        raise OpenUniError(
            f"{corpus.store.url}: no clip has a result of {deduplicator.source_filter}, which {deduplicator.name()} "
            f"requires. Add [filters.{deduplicator.source_filter}] to the recipe and run: openuni run"
        )
    return RankedClips(ids, known)


def deduplicator_names() -> list[str]:
    """Names of the deduplicators (file names in their folder)."""
    return component_names("deduplicators")


def find_deduplicator(name: str) -> type[Deduplicator]:
    """The deduplicator of that name."""
    found: type[Deduplicator] = find_component("deduplicators", Deduplicator, name)
    return found


def deduplicator_by(by: str) -> type[Deduplicator]:
    """The deduplicator for a value of `--by`, such as "hash" or "embedding"."""
    found = {deduplicator.by: deduplicator for deduplicator in map(find_deduplicator, deduplicator_names())}
    if by not in found:
        raise OpenUniError(unknown_name("deduplication method", by, found))
    return found[by]


def deduplicator_schemas() -> dict[str, pa.Schema]:
    """Column group -> schema of all deduplicators, which `keep` can use in addition to the recipe's filters."""
    found = (find_deduplicator(name) for name in deduplicator_names())
    return {deduplicator.group(): producer_schema(deduplicator) for deduplicator in found}


def not_compared_reason(corpus: Corpus, keep: str) -> str:
    """Why clips fail a `keep` that uses a deduplicator: they were not compared. Empty if all clips were.

    Raises `OpenUniError` if the deduplicator has not run at all.
    """
    notes = []
    named = keep_rule.names_read(keep_rule.parse(keep))
    for name in sorted(named & set(deduplicator_names())):
        deduplicator = find_deduplicator(name)
        group, command = deduplicator.group(), f"openuni duplicates {corpus.store.url} --by {deduplicator.by}"
        if not corpus.parts(group):
            raise OpenUniError(f"keep uses {name}, which has not been computed for this corpus. Run: {command}")
        missing = len(corpus) - len(corpus.done(group))
        if missing:
            notes.append(f"{missing:,} clips have no {name} result yet and do not pass keep. Run: {command}")
    return "; ".join(notes)


def _rows(deduplicator: Deduplicator, clips: RankedClips, found: DuplicateAssignments, version: str) -> pa.Table:
    """The rows of all clips, in order of rank."""
    count, known, unknown = len(clips.ids), pa.array(clips.known), pa.array(~clips.known)
    own = found.representative == np.arange(count)
    sizes = np.bincount(found.representative, minlength=count)
    error = f"{deduplicator.source_filter} has no result for this clip"
    columns = {
        "status": pc.if_else(known, "ok", "unavailable"),
        "error": pc.if_else(known, pa.scalar(None, pa.string()), error),
        "version": pa.repeat(version, count),
        "cluster": _null_where(unknown, clips.ids.take(pa.array(found.representative))),
        "is_representative": _null_where(unknown, pa.array(own)),
        "clips": _null_where(unknown, pa.array(sizes[found.representative])),
        "similarity": _null_where(pa.array(own | ~clips.known), pa.array(found.similarity)),
    }
    schema = producer_schema(type(deduplicator))
    fields = list(schema.field(deduplicator.name()).type)
    values = [columns.get(field.name, pa.nulls(count, field.type)).cast(field.type) for field in fields]
    return pa.table([clips.ids, pa.StructArray.from_arrays(values, fields=fields)], schema=schema)


def _null_where(mask: pa.Array, values: pa.Array) -> pa.Array:
    return pc.if_else(mask, pa.scalar(None, values.type), values)


def _representative_field(deduplicator: Deduplicator) -> pads.Expression:
    return pc.coalesce(pads.field(deduplicator.name(), "is_representative"), pads.scalar(False))
