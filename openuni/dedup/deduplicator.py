"""The finder contract: what only a look at all clips of a corpus together can tell, as a column group of its own.

A deduplicator is one file in `openuni/dedup/deduplicators/`: a frozen dataclass of options, and `find`, which reads
what a filter has stored of every clip. Its group `filters/NAME` is written as a whole, by `openuni duplicates`; a
recipe's `keep` may read it like any filter's. It is computed anew when clips, scores or options have changed, and not
otherwise.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import xxhash

from openuni.manifests.contracts.component import fingerprint
from openuni.manifests.contracts.discovery import component_names, find_component
from openuni.manifests.contracts.producer import Producer
from openuni.manifests.contracts.schema import clip_schema, producer_schema
from openuni.manifests.corpus import keep_rule
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.layout import filter_group
from openuni.manifests.errors import OpenUniError, unknown_name


class DuplicateInfo(NamedTuple):
    """Which clips show the same, and which of them is kept."""

    cluster: Annotated[
        str | None, "clip_id of the clip that is kept of those that show the same; its own if it is kept"
    ]
    is_representative: Annotated[bool | None, "whether this is the clip that is kept: the largest, longest, then by id"]
    clips: Annotated[int | None, "how many clips the cluster has, itself included"]
    similarity: Annotated[float | None, "how similar it is to the clip that is kept, up to 1; null for that one itself"]


class RankedClips(NamedTuple):
    """All clips of a corpus by rank: of two that show the same, the one of lower number is kept."""

    ids: pa.Array  # string [N]
    known: np.ndarray  # bool [N], whether the filter that is read has a result


class DuplicateAssignments(NamedTuple):
    """What a finder found, by rank."""

    representative: np.ndarray  # int64 [N], number of the clip that is kept; of a clip that is kept, its own
    similarity: np.ndarray  # float64 [N], to that clip; NaN for one that is kept


@dataclass(frozen=True)
class Deduplicator(Producer):
    """Base of the finders."""

    by: ClassVar[str]  # what clips are compared by, as `openuni duplicates --by` says it
    source_filter: ClassVar[str]  # the filter whose results it compares
    column: ClassVar[str]  # of that filter

    @abstractmethod
    def find(self, corpus: Corpus, clips: RankedClips) -> DuplicateAssignments:
        """Compare all clips. The result depends on neither the order nor the parts in which they are stored."""

    @classmethod
    def result_type(cls) -> type[tuple[Any, ...]]:
        """See `Producer.result_type`."""
        return DuplicateInfo

    @classmethod
    def group(cls) -> str:
        """The column group it fills."""
        return filter_group(cls.name())


class DedupReport(NamedTuple):
    """What a finder did."""

    group: str
    clips: int
    compared: int  # clips with a result of the filter that is read
    representative_count: int  # of these
    largest: int  # clips in the largest cluster
    computed: bool  # False: nothing had changed since the last time

    def __str__(self) -> str:
        copies = self.compared - self.representative_count
        text = f"{self.compared:,} clips compared: {self.representative_count:,} kept, {copies:,} duplicates of these"
        text += f" (largest cluster: {self.largest:,} clips)" if copies else ""
        left = self.clips - self.compared
        text += f"; {left:,} could not be compared" if left else ""
        name = self.group.rpartition("/")[2]
        return f'{text}. Keep one of each with: keep = "{name}.is_representative"'


def find_duplicates(finder: Deduplicator, corpus: Corpus) -> DedupReport:
    """Fill the finder's column group, unless it is as it should be. The corpus's lock is held by the caller."""
    corpus.recover()
    clips = rank_clips(corpus, finder)
    facts = xxhash.xxh3_64(clips.known.tobytes())
    for text in clips.ids.to_pylist():
        facts.update(f"{text}\n".encode())
    version = fingerprint(
        finder=finder.version(), reads=corpus.group_version(filter_group(finder.source_filter)), clips=facts.hexdigest()
    )
    group = finder.group()
    done = corpus.group_version(group) == version and len(corpus.done(group)) == len(clips.ids)
    if not done:
        found = finder.find(corpus, clips)
        for part in corpus.parts(group):  # nothing is set aside: computing it anew takes as long as writing it
            corpus.store.delete(part)
        _write(corpus, finder, clips, found, version)
    sizes = corpus.table(group, {"clips": pads.field(finder.name(), "clips"), "kept": _representative_field(finder)})
    kept = sizes.filter(sizes["kept"])["clips"]
    largest = pc.max(kept).as_py() or 0
    return DedupReport(group, len(clips.ids), int(clips.known.sum()), len(kept), largest, computed=not done)


def rank_clips(corpus: Corpus, finder: Deduplicator) -> RankedClips:
    """All clips that ingest accepted: the largest picture first, then the longest, then by id.

    Raises `OpenUniError` when the filter that the finder reads has no result for any of them.
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
    if corpus.parts(filter_group(finder.source_filter)):
        wanted = {"clip_id": field("clip_id")}
        there = (field(finder.source_filter, "status") == "ok") & field(finder.source_filter, finder.column).is_valid()
        rows = corpus.dataset(filter_group(finder.source_filter)).to_table(columns=wanted, filter=there)
        known[pc.index_in(rows["clip_id"], value_set=ids).drop_null().to_numpy()] = True
    if not known.any():
        raise OpenUniError(
            f"{corpus.store.url}: no clip has a result of {finder.source_filter}, which {finder.name()} compares. "
            f"Write [filters.{finder.source_filter}] in the recipe and run it first: openuni run"
        )
    return RankedClips(ids, known)


def deduplicator_names() -> list[str]:
    """Names of the finders: the files of their folder."""
    return component_names("deduplicators")


def find_deduplicator(name: str) -> type[Deduplicator]:
    """The finder of that name."""
    found: type[Deduplicator] = find_component("deduplicators", Deduplicator, name)
    return found


def deduplicator_by(by: str) -> type[Deduplicator]:
    """The finder that compares clips by "hash", "embedding" or what else there is."""
    found = {finder.by: finder for finder in map(find_deduplicator, deduplicator_names())}
    if by not in found:
        raise OpenUniError(unknown_name("duplicates by", by, found))
    return found[by]


def deduplicator_schemas() -> dict[str, pa.Schema]:
    """Column group -> schema of all finders: what a `keep` may read besides the recipe's own filters."""
    found = (find_deduplicator(name) for name in deduplicator_names())
    return {finder.group(): producer_schema(finder) for finder in found}


def not_compared_reason(corpus: Corpus, keep: str) -> str:
    """What keeps clips from passing a `keep` that reads a finder: that it has not seen them. Empty where it has.

    Raises `OpenUniError` when it has seen none.
    """
    notes = []
    named = {column[0] for rule in keep_rule.parse(keep) for column in rule.columns}
    for name in sorted(named & set(deduplicator_names())):
        finder = find_deduplicator(name)
        group, how = finder.group(), f"openuni duplicates {corpus.store.url} --by {finder.by}"
        if not corpus.parts(group):
            raise OpenUniError(
                f"keep reads {name}, which compares all clips and has not been made. Make it with: {how}"
            )
        missing = len(corpus) - len(corpus.done(group))
        if missing:
            notes.append(f"{missing:,} clips are not in {name} yet and do not pass keep. Add them with: {how}")
    return "; ".join(notes)


def _write(corpus: Corpus, finder: Deduplicator, clips: RankedClips, found: DuplicateAssignments, version: str) -> None:
    name = finder.name()
    writer = corpus.writer(finder.group(), producer_schema(type(finder)), version)
    sizes = np.bincount(found.representative, minlength=len(clips.ids))
    unknown = {
        "status": "unavailable",
        "error": f"{finder.source_filter} has no result for this clip",
        "version": version,
    }
    for number, clip_id in enumerate(clips.ids.to_pylist()):
        row: dict[str, Any] = unknown
        if clips.known[number]:
            kept = int(found.representative[number])
            similarity = float(found.similarity[number]) if kept != number else None
            copies = DuplicateInfo(clips.ids[kept].as_py(), kept == number, int(sizes[kept]), similarity)
            row = {"status": "ok", "error": None, "version": version, "ms": None} | copies._asdict()
        writer.commit({"clip_id": clip_id, name: row})
    writer.finish()


def _representative_field(finder: Deduplicator) -> pads.Expression:
    return pc.coalesce(pads.field(finder.name(), "is_representative"), pads.scalar(False))
