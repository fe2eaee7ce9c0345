"""Modality coverage: the basis of all counts, joins and splits over clips that lack some modalities."""

from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

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
    columns = {
        "clip_id": pads.field("clip_id"),
        "status": pads.field(annotator, "status"),
        "shard": pads.field(annotator, modality, "shard"),
    }
    table = corpus.table(annotation_group(annotator), columns)
    present = pc.and_(pc.equal(table.column("status"), "ok"), pc.is_valid(table.column("shard")))
    return table.filter(present).column("clip_id").combine_chunks()


def modality_availability(corpus: ColumnGroups, clips: pa.Array | pa.ChunkedArray) -> dict[str, pa.Array]:
    """Modality -> boolean per clip: whether any annotator or importer stored it. Without `rgb` (all clips)."""
    found = {}
    for modality, names in annotators_by_modality(corpus).items():
        if modality == "rgb":
            continue  # every clip has its frames, whether stored as a map or not
        ids = [clip_ids_with_modality(corpus, name, modality) for name in names]
        mask = pc.is_in(clips, value_set=pa.concat_arrays(ids))
        found[modality] = mask.combine_chunks() if isinstance(mask, pa.ChunkedArray) else mask
    return found


def coverage(corpus: ColumnGroups) -> list[dict[str, str | int]]:
    """Number of accepted clips per collection, and how many of them have a caption and each modality.

    Rows are {"collection": name, "clips": n, "caption": n, MODALITY: n, ...}, sorted by collection.
    """
    columns = {
        "clip_id": pads.field("clip_id"),
        "collection": pc.coalesce(pads.field("collection"), pads.scalar(NO_COLLECTION)),
        "clips": pc.is_valid(pads.field("clip_id")),
        "caption": pc.is_valid(pads.field("caption")),
    }
    clips = corpus.dataset("clips", clip_schema()).to_table(columns=columns, filter=pads.field("status") == "ok")
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
    found = []
    for modality, names in annotators_by_modality(corpus).items():
        for name in names:
            column = {"nbytes": pads.field(name, modality, "nbytes")}
            sizes = corpus.table(annotation_group(name), column).column("nbytes").drop_null()
            if len(sizes):
                found.append(StoredSize(modality, name, len(sizes), pc.sum(sizes).as_py(), pc.max(sizes).as_py()))
    return found
