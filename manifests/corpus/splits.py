"""Splits: assignment of clips to train and held-out sets, grouped by origin, stratified by collection and modality.

Clips with the same origin (a scene, a person; default: their source) always get the same split. Clips that have a split
keep it, so only new clips are assigned when a corpus grows. New origins are assigned in an order that depends only on
the random seed and their names. Each goes to the split with the largest deficit of clips, summed over its stratum
(collection and modalities) and the whole corpus.
"""

import shlex
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from openuni.manifests.contracts.schema import clip_schema
from openuni.manifests.corpus.column_groups import ColumnGroups
from openuni.manifests.corpus.coverage import NO_COLLECTION, modality_availability
from openuni.manifests.corpus.layout import PENDING_SPLITS
from openuni.manifests.corpus.names import new_label_fault
from openuni.manifests.corpus.writer import table_bytes
from openuni.manifests.errors import OpenUniError

TRAIN = "train"


class SplitGroup(NamedTuple):
    """Clips that must get the same split."""

    name: str
    stratum: tuple[str, int]  # collection, and bit mask of the modalities that any of the clips has
    clips: int  # number of clips
    split: str | None  # existing split


def assign(corpus: ColumnGroups, shares: Mapping[str, float], seed: int = 0, *, anew: bool = False) -> dict[str, int]:
    """Assign a split to every clip that ingest accepted; return the number of clips per split.

    `shares`: fractions of all splits other than "train", which gets the rest, such as {"validation": 0.05, "test":
    0.05}. `seed`: random seed. `anew`: also reassign clips that already have a split.
    Raises `OpenUniError` for invalid fractions, and if clips with one origin already have different splits.
    """
    fractions = _with_train(shares)
    write_pending_splits(corpus)
    columns = ["clip_id", "source", "origin", "collection", "split", "status"]
    clips = corpus.dataset("clips", clip_schema()).to_table(columns=columns)
    clips = clips.filter(pc.equal(clips["status"], "ok"))
    if not len(clips):
        raise OpenUniError(f"{corpus.store.url} has no clips to assign splits to. Add some with: openuni run")
    names = split_group_names(clips)
    groups = _split_groups(corpus, clips, names, anew=anew)
    splits = _assign_groups(groups, fractions, seed)
    split_by_group = pa.array([splits[group.name] for group in groups], pa.string())
    split_by_clip = pa.DictionaryArray.from_arrays(names.indices, split_by_group).cast(pa.string())
    decision = pa.table({"clip_id": clips["clip_id"], "split": split_by_clip})
    corpus.store.put(PENDING_SPLITS, table_bytes(decision))
    write_pending_splits(corpus)
    counts = {name: 0 for name in fractions}
    for group in groups:
        counts[splits[group.name]] = counts.get(splits[group.name], 0) + group.clips
    return counts


def split_group_names(clips: pa.Table) -> pa.DictionaryArray:
    """Name of each clip's split group: its origin (within its collection), else its source.

    `clips`: table with the columns source, origin and collection.
    """
    origin = pc.binary_join_element_wise(pc.fill_null(clips["collection"], ""), clips["origin"], "\n")
    return pc.coalesce(origin, clips["source"]).combine_chunks().dictionary_encode()


def _with_train(shares: Mapping[str, float]) -> dict[str, float]:
    invalid = [name for name, share in shares.items() if not 0 <= share < 1 or not name or name == TRAIN]
    if invalid or sum(shares.values()) >= 1:
        given = ", ".join(f"{name} = {share:g}" for name, share in shares.items())
        raise OpenUniError(
            f"splits: {given}. Allowed: fractions of at least 0 whose sum is below 1; {TRAIN} gets the rest."
        )
    for name in shares:
        if fault := new_label_fault(name):
            raise OpenUniError(f"split {fault}")
    return {TRAIN: 1 - sum(shares.values()), **shares}


def _split_groups(corpus: ColumnGroups, clips: pa.Table, names: pa.DictionaryArray, *, anew: bool) -> list[SplitGroup]:
    codes = names.indices.to_numpy()
    count = len(names.dictionary)
    bits = np.zeros(count, np.int64)
    for position, mask in enumerate(modality_availability(corpus, clips["clip_id"]).values()):
        bits[codes[mask.to_numpy(zero_copy_only=False)]] |= 1 << position
    first = np.zeros(count, np.int64)
    first[codes[::-1]] = np.arange(len(codes))[::-1]  # the first clip of a group determines its collection
    collections = pc.fill_null(clips["collection"], NO_COLLECTION).take(pa.array(first)).to_pylist()
    sizes = np.bincount(codes, minlength=count).tolist()
    known: list[str | None] = [None] * count
    if not anew:
        has_split = pc.is_valid(clips["split"])
        pairs = zip(codes[has_split.to_numpy()].tolist(), clips["split"].filter(has_split).to_pylist(), strict=True)
        for code, split in pairs:
            if known[code] not in (None, split):
                origin = names.dictionary[code].as_py().rpartition("\n")[2]  # without the collection
                raise OpenUniError(
                    f'clips of origin "{origin}" have different splits, "{known[code]}" and "{split}". '
                    "Correct the dataset, or assign all splits again with --reassign."
                )
            known[code] = split
    rows = zip(names.dictionary.to_pylist(), collections, bits.tolist(), sizes, known, strict=True)
    return [SplitGroup(name, (collection, mask), size, split) for name, collection, mask, size, split in rows]


def _assign_groups(groups: list[SplitGroup], fractions: Mapping[str, float], seed: int) -> dict[str, str]:
    """Split group -> split."""
    assigned: dict[str, str] = {}
    counts: dict[tuple[str, int] | None, dict[str, int]] = defaultdict(lambda: dict.fromkeys(fractions, 0))
    total: dict[tuple[str, int] | None, int] = defaultdict(int)  # None: the whole corpus

    def put(group: SplitGroup, split: str) -> None:
        assigned[group.name] = split
        for stratum in (group.stratum, None):
            counts[stratum][split] = counts[stratum].get(split, 0) + group.clips
            total[stratum] += group.clips

    def deficit(group: SplitGroup, split: str) -> float:
        strata = (group.stratum, None)
        return sum(fractions[split] * (total[stratum] + group.clips) - counts[stratum][split] for stratum in strata)

    for group in groups:
        if group.split is not None:
            put(group, group.split)
    new = [group for group in groups if group.split is None]
    for group in sorted(new, key=lambda group: (_order_key(seed, group.name), group.name)):
        put(group, max(fractions, key=lambda split: deficit(group, split)))  # ties go to the first: train
    return assigned


def _order_key(seed: int, name: str) -> int:
    return xxhash.xxh3_64_intdigest(f"{seed}\0{name}".encode())


def require_complete_splits(corpus: ColumnGroups) -> None:
    """Raise `OpenUniError` while an assignment is being written, or if it was interrupted: splits may be mixed."""
    if corpus.store.exists(PENDING_SPLITS):
        url = corpus.store.url
        raise OpenUniError(
            f"the splits of {url} are being written, or `openuni split` was interrupted while it did. Wait for it, or "
            f"complete it with: openuni split {shlex.quote(url)}"
        )


def write_pending_splits(corpus: ColumnGroups) -> None:
    """Complete an assignment that was interrupted, so that the clips get the splits that it had decided.

    The decision is stored before the first part of `clips` is rewritten. Without it, a rerun would take the splits of
    the parts already written as given and decide the others differently.
    """
    if not corpus.store.exists(PENDING_SPLITS):
        return
    decided = pq.read_table(corpus.store.path(PENDING_SPLITS), filesystem=corpus.store.fs)
    ids = decided["clip_id"].combine_chunks()

    def change(rows: pa.Table) -> pa.Table:
        places = pc.index_in(rows["clip_id"], value_set=ids)
        column = pc.if_else(pc.is_valid(places), decided["split"].combine_chunks().take(places), rows["split"])
        return rows.set_column(rows.schema.get_field_index("split"), rows.schema.field("split"), column)

    corpus.rewrite("clips", change)
    corpus.store.delete(PENDING_SPLITS)
