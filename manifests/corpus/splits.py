"""Splits: assignment of clips to train and held-out sets, grouped by origin, stratified by collection and modality.

Clips with the same origin (a scene, a person; default: their source) always get the same split. Clips that have a split
keep it, so only new clips are assigned when a corpus grows. New origins are assigned in an order that depends only on
the random seed and their names. Each goes to the split with the largest deficit of clips, summed over its stratum
(collection and modalities) and the whole corpus.
"""

import math
import shlex
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from openuni.manifests.contracts.schema import clip_schema
from openuni.manifests.corpus.column_groups import ColumnGroups
from openuni.manifests.corpus.coverage import NO_COLLECTION, modality_availability
from openuni.manifests.corpus.layout import PENDING_SPLITS
from openuni.manifests.corpus.names import new_label_fault
from openuni.manifests.corpus.parts.part_files import read_part, table_bytes
from openuni.manifests.errors import OpenUniError

TRAIN = "train"
NAMES_AT_A_TIME = 50_000  # names of groups held as Python strings


class SplitGroups(NamedTuple):
    """Clips that must get the same split, one entry for each group; sequences of the same length."""

    names: pa.Array  # strings
    strata: list[int]  # number of the stratum: collection, and the modalities that any of the clips has
    clips: list[int]  # number of clips
    splits: list[str | None]  # existing splits


def assign(corpus: ColumnGroups, shares: Mapping[str, float], seed: int = 0, *, anew: bool = False) -> dict[str, int]:
    """Assign a split to every clip that ingest accepted; return the number of clips per split.

    `shares`: fractions of all splits other than "train", which gets the rest, such as {"validation": 0.05, "test":
    0.05}. `seed`: random seed. `anew`: also reassign clips that already have a split.
    Raises `OpenUniError` for invalid fractions, and if clips with one origin already have different splits.
    """
    fractions = _with_train(shares)
    write_pending_splits(corpus)
    paths = {name: (name,) for name in ("clip_id", "source", "origin", "collection", "split", "status")}

    def accepted(rows: pa.Table) -> pa.Table:
        return rows.filter(pc.equal(rows["status"], "ok")).drop_columns("status")

    clips = corpus.columns("clips", paths, accepted, clip_schema())
    if not len(clips):
        raise OpenUniError(f"{corpus.store.url} has no clips to assign splits to. Add some with: openuni run")
    names = split_group_names(clips)
    groups = _split_groups(corpus, clips, names, anew=anew)
    splits = _assign_groups(groups, fractions, seed)
    split_by_group = pa.array(splits, pa.string())
    split_by_clip = pa.DictionaryArray.from_arrays(names.indices, split_by_group).cast(pa.string())
    decision = pa.table({"clip_id": clips["clip_id"], "split": split_by_clip})
    corpus.store.put(PENDING_SPLITS, table_bytes(decision))
    write_pending_splits(corpus)
    counts = {name: 0 for name in fractions}
    for split, size in zip(splits, groups.clips, strict=True):
        counts[split] = counts.get(split, 0) + size
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


def _split_groups(corpus: ColumnGroups, clips: pa.Table, names: pa.DictionaryArray, *, anew: bool) -> SplitGroups:
    codes = names.indices.to_numpy()
    count = len(names.dictionary)
    bits = np.zeros(count, np.int64)
    for position, mask in enumerate(modality_availability(corpus, clips["clip_id"]).values()):
        bits[codes[mask.to_numpy(zero_copy_only=False)]] |= 1 << position
    first = np.zeros(count, np.int64)
    first[codes[::-1]] = np.arange(len(codes))[::-1]  # the first clip of a group determines its collection
    collections = pc.fill_null(clips["collection"], NO_COLLECTION).take(pa.array(first)).combine_chunks()
    masks, of_mask = np.unique(bits, return_inverse=True)
    _, strata = np.unique(
        collections.dictionary_encode().indices.to_numpy().astype(np.int64) * len(masks) + of_mask, return_inverse=True
    )
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
    return SplitGroups(names.dictionary, strata.tolist(), sizes, known)


def _assign_groups(groups: SplitGroups, fractions: Mapping[str, float], seed: int) -> list[str]:
    """The split of each group."""
    assigned: list[str | None] = list(groups.splits)
    known = dict.fromkeys([*fractions, *(split for split in groups.splits if split is not None)])
    number_of = {split: number for number, split in enumerate(known)}
    shares = list(fractions.items())  # the first of `known`
    everything = max(groups.strata, default=-1) + 1  # number of a stratum that holds the whole corpus
    counts = [[0] * len(known) for _ in range(everything + 1)]  # clips by stratum and split
    total = [0] * (everything + 1)  # clips by stratum
    all_counts = counts[everything]
    for stratum, size, split in zip(groups.strata, groups.clips, groups.splits, strict=True):
        if split is not None:
            for one in (stratum, everything):
                counts[one][number_of[split]] += size
                total[one] += size
    for position in _order(groups, seed):
        stratum, size = groups.strata[position], groups.clips[position]
        of_stratum = counts[stratum]
        in_stratum, in_all = total[stratum] + size, total[everything] + size
        best, largest = 0, -math.inf
        for number, (_, share) in enumerate(shares):  # ties go to the first: train
            deficit = (share * in_stratum - of_stratum[number]) + (share * in_all - all_counts[number])
            if deficit > largest:
                best, largest = number, deficit
        assigned[position] = shares[best][0]
        of_stratum[best] += size
        all_counts[best] += size
        total[stratum], total[everything] = in_stratum, in_all
    return [split for split in assigned if split is not None]


def _order(groups: SplitGroups, seed: int) -> list[int]:
    """Positions of the groups without a split, in the order in which they get one: by hash, then by name."""
    new = np.array([position for position, split in enumerate(groups.splits) if split is None], np.int64)
    names = groups.names.take(pa.array(new))
    keys = np.empty(len(new), np.uint64)
    for start in range(0, len(new), NAMES_AT_A_TIME):
        texts = names.slice(start, NAMES_AT_A_TIME).to_pylist()
        keys[start : start + len(texts)] = [_order_key(seed, text) for text in texts]
    order = np.argsort(keys, kind="stable")
    in_order = keys[order]
    if (in_order[1:] == in_order[:-1]).any():
        texts = names.to_pylist()
        order = np.array(sorted(range(len(new)), key=lambda place: (keys[place], texts[place])))
    return list(new[order].tolist())


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
    decided = read_part(corpus.store, PENDING_SPLITS)
    splits = decided["split"].combine_chunks()
    # computed once for all parts, since it hashes all ids
    every_place = pc.index_in(
        corpus.table("clips", ["clip_id"])["clip_id"], value_set=decided["clip_id"].combine_chunks()
    )
    start = 0

    def change(rows: pa.Table) -> pa.Table:
        nonlocal start
        places = every_place.slice(start, len(rows)).combine_chunks()
        start += len(rows)
        column = pc.if_else(pc.is_valid(places), splits.take(places), rows["split"])
        return rows.set_column(rows.schema.get_field_index("split"), rows.schema.field("split"), column)

    corpus.rewrite("clips", change)
    corpus.store.delete(PENDING_SPLITS)
