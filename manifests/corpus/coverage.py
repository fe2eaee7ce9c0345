"""Modality coverage: the basis of all counts, joins and splits over clips that lack some modalities."""

from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from openuni.manifests.contracts.schema import clip_schema
from openuni.manifests.corpus.column_groups import ColumnGroups
from openuni.manifests.corpus.layout import annotation_group

COLUMN = "has"  # struct column of booleans for keep rules, such as "has.depth and has.flow"
NO_COLLECTION = "(none)"  # placeholder in tables for clips without a collection


def annotators_by_modality(corpus: ColumnGroups) -> dict[str, list[str]]:
    """Modality -> names of the annotators and importers that stored it, sorted by modality."""
    found: dict[str, list[str]] = {}
    for name in corpus.operators("annotator"):
        for field in corpus.operator_fields(annotation_group(name)):
            if pa.types.is_struct(field.type) and field.type.get_field_index("shard") >= 0:
                found.setdefault(field.name, []).append(name)
    return dict(sorted(found.items()))


def clip_ids_with_modality(corpus: ColumnGroups, annotator: str, modality: str) -> pa.Array:
    """clip_ids (string array) for which an annotator stored a modality."""
    if not corpus.has_modality(annotator, modality):
        return pa.array([], pa.string())
    table = _stored(corpus, annotator, [modality])
    return table.filter(table.column(modality)).column("clip_id").combine_chunks()


def _stored(corpus: ColumnGroups, annotator: str, modalities: Sequence[str]) -> pa.Table:
    """clip_id, and a boolean per modality: whether the annotator stored it."""
    paths: dict[str, tuple[str, ...]] = {"clip_id": ("clip_id",), "status": (annotator, "status")}
    paths |= {f"{modality}.shard": (annotator, modality, "shard") for modality in modalities}

    def change(rows: pa.Table) -> pa.Table:
        is_ok = pc.fill_null(pc.equal(rows.column("status"), "ok"), False)
        stored = {name: pc.and_(is_ok, pc.is_valid(rows.column(f"{name}.shard"))) for name in modalities}
        return pa.table({"clip_id": rows.column("clip_id")} | stored)

    return corpus.columns(annotation_group(annotator), paths, change)


def modality_availability(corpus: ColumnGroups, clips: pa.Array | pa.ChunkedArray) -> dict[str, pa.Array]:
    """Modality -> boolean per clip: whether any annotator or importer stored it. Without `rgb` (all clips)."""
    wanted = annotators_by_modality(corpus)
    wanted.pop("rgb", None)  # every clip has its frames, whether stored as a map or not
    found: dict[str, pa.Array] = {}
    for name in sorted({name for names in wanted.values() for name in names}):
        modalities = [modality for modality, names in wanted.items() if name in names]
        table = _stored(corpus, name, modalities)
        rows = pc.index_in(clips, value_set=table.column("clip_id").combine_chunks())
        rows = rows.combine_chunks() if isinstance(rows, pa.ChunkedArray) else rows
        for modality in modalities:
            mask = pc.fill_null(table.column(modality).combine_chunks().take(rows), False)
            found[modality] = pc.or_(found[modality], mask) if modality in found else mask
    return {modality: found[modality] for modality in wanted}


def coverage(corpus: ColumnGroups) -> list[dict[str, str | int]]:
    """Number of accepted clips per collection, and how many of them have a caption and each modality.

    Rows are {"collection": name, "clips": n, "caption": n, MODALITY: n, ...}, sorted by collection.
    """
    paths = {name: (name,) for name in ("clip_id", "collection", "caption", "status")}

    def change(rows: pa.Table) -> pa.Table:
        rows = rows.filter(pc.equal(rows.column("status"), "ok"))
        return pa.table(
            {
                "clip_id": rows.column("clip_id"),
                "collection": pc.fill_null(rows.column("collection"), NO_COLLECTION),
                "clips": pc.is_valid(rows.column("clip_id")),
                "caption": pc.is_valid(rows.column("caption")),
            }
        )

    clips = corpus.columns("clips", paths, change, clip_schema())
    table = clips.drop_columns("clip_id")
    for modality, mask in modality_availability(corpus, clips["clip_id"]).items():
        table = table.append_column(modality, mask)
    names = table.column_names[1:]
    counts = table.group_by("collection").aggregate([(name, "sum") for name in names]).sort_by("collection")
    return [
        {"collection": row["collection"], **{name: row[f"{name}_sum"] for name in names}} for row in counts.to_pylist()
    ]


class StoredSize(NamedTuple):
    """Storage size of one modality of one annotator."""

    modality: str
    annotator: str
    clips: int
    nbytes: int  # total
    largest_nbytes: int  # maximum of a single map


def stored_sizes(corpus: ColumnGroups) -> list[StoredSize]:
    """Storage size of each modality in the shards, per annotator; modalities without maps are omitted."""
    wanted = annotators_by_modality(corpus)
    sizes: dict[tuple[str, str], pa.ChunkedArray] = {}
    for name in sorted({name for names in wanted.values() for name in names}):
        paths = {modality: (name, modality, "nbytes") for modality, names in wanted.items() if name in names}
        table = corpus.columns(annotation_group(name), paths)
        sizes |= {(modality, name): table.column(modality).drop_null() for modality in paths}
    return [
        StoredSize(*key, len(sizes[key]), pc.sum(sizes[key]).as_py(), pc.max(sizes[key]).as_py())
        for key in ((modality, name) for modality, names in wanted.items() for name in names)
        if len(sizes[key])
    ]
