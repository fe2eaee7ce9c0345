"""Splits: which clips train and which are held out, by origin, even over collections and modalities, and for good.

Clips of one origin (a scene, a person; else the source they were cut from) are never in two splits. A clip that has a
split keeps it: a corpus that grows gets splits for what is new and moves nothing. What is new is dealt out in an order
that only the seed and the origins' names decide, each origin to the split that lacks most clips, both among clips of
its own collection and modalities and in the corpus.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from openuni.manifests.contracts.schema import clip_schema
from openuni.manifests.corpus.coverage import NO_COLLECTION, modality_availability
from openuni.manifests.errors import OpenUniError

if TYPE_CHECKING:
    from openuni.manifests.corpus.corpus import Corpus

TRAIN = "train"


class SplitGroup(NamedTuple):
    """Clips that must not be parted."""

    name: str
    stratum: tuple[str, int]  # collection, and the modalities that any of the clips has, as bits
    clips: int
    split: str | None  # that it has already


def assign(corpus: "Corpus", shares: Mapping[str, float], seed: int = 0, *, anew: bool = False) -> dict[str, int]:
    """Give every clip that ingest accepted a split, and return the number of clips in each.

    `shares`: of every split but "train", which gets the rest; such as {"validation": 0.05, "test": 0.05}. `anew`: also
    move clips that have one. Raises `OpenUniError` for shares that are no shares, and when the clips of one origin
    came with different splits.
    """
    wanted = _checked(shares)
    columns = ["clip_id", "source", "origin", "collection", "split", "status"]
    clips = corpus.dataset("clips", clip_schema()).to_table(columns=columns)
    clips = clips.filter(pc.equal(clips["status"], "ok"))
    if not len(clips):
        raise OpenUniError(f"{corpus.store.url} holds no clips to split")
    names = split_group_names(clips)
    units = _units(corpus, clips, names, anew=anew)
    splits = _assign_groups(units, wanted, seed)
    chosen = pa.DictionaryArray.from_arrays(names.indices, pa.array([splits[unit.name] for unit in units], pa.string()))
    _write(corpus, clips["clip_id"], chosen.cast(pa.string()))
    counts = {name: 0 for name in wanted}
    for unit in units:
        counts[splits[unit.name]] = counts.get(splits[unit.name], 0) + unit.clips
    return counts


def split_group_names(clips: pa.Table) -> pa.DictionaryArray:
    """What each clip must not be parted from, by name. `clips`: columns source, origin, collection."""
    origin = pc.binary_join_element_wise(pc.fill_null(clips["collection"], ""), clips["origin"], "\n")
    return pc.coalesce(origin, clips["source"]).combine_chunks().dictionary_encode()


def _checked(shares: Mapping[str, float]) -> dict[str, float]:
    wrong = [name for name, share in shares.items() if not 0 <= share < 1 or not name or name == TRAIN]
    if wrong or sum(shares.values()) >= 1:
        given = ", ".join(f"{name} = {share:g}" for name, share in shares.items())
        raise OpenUniError(f"splits: {given}. Allowed: shares from 0 that sum to less than 1; {TRAIN} gets the rest.")
    return {TRAIN: 1 - sum(shares.values()), **shares}


def _units(corpus: "Corpus", clips: pa.Table, names: pa.DictionaryArray, *, anew: bool) -> list[SplitGroup]:
    codes = names.indices.to_numpy()
    count = len(names.dictionary)
    bits = np.zeros(count, np.int64)
    for position, mask in enumerate(modality_availability(corpus, clips["clip_id"]).values()):
        bits[codes[mask.to_numpy(zero_copy_only=False)]] |= 1 << position
    first = np.zeros(count, np.int64)
    first[codes[::-1]] = np.arange(len(codes))[::-1]  # any clip tells the collection; the first one does
    collections = pc.fill_null(clips["collection"], NO_COLLECTION).take(pa.array(first)).to_pylist()
    sizes = np.bincount(codes, minlength=count).tolist()
    known: list[str | None] = [None] * count
    if not anew:
        told = pc.is_valid(clips["split"])
        pairs = zip(codes[told.to_numpy()].tolist(), clips["split"].filter(told).to_pylist(), strict=True)
        for code, split in pairs:
            if known[code] not in (None, split):
                raise OpenUniError(
                    f'clips of one origin came with the splits "{known[code]}" and "{split}": '
                    f"{names.dictionary[code].as_py()!r}. Mend the set, or deal all clips out again with --anew."
                )
            known[code] = split
    rows = zip(names.dictionary.to_pylist(), collections, bits.tolist(), sizes, known, strict=True)
    return [SplitGroup(name, (collection, mask), size, split) for name, collection, mask, size, split in rows]


def _assign_groups(units: list[SplitGroup], wanted: Mapping[str, float], seed: int) -> dict[str, str]:
    """The split of every unit, by name."""
    dealt: dict[str, str] = {}
    have: dict[tuple[str, int] | None, dict[str, int]] = defaultdict(lambda: dict.fromkeys(wanted, 0))
    total: dict[tuple[str, int] | None, int] = defaultdict(int)  # None: the whole corpus

    def put(unit: SplitGroup, split: str) -> None:
        dealt[unit.name] = split
        for place in (unit.stratum, None):
            have[place][split] = have[place].get(split, 0) + unit.clips
            total[place] += unit.clips

    def lack(unit: SplitGroup, split: str) -> float:
        places = (unit.stratum, None)
        return sum(wanted[split] * (total[place] + unit.clips) - have[place][split] for place in places)

    for unit in units:
        if unit.split is not None:
            put(unit, unit.split)
    new = [unit for unit in units if unit.split is None]
    for unit in sorted(new, key=lambda unit: (xxhash.xxh3_64_intdigest(f"{seed}\0{unit.name}".encode()), unit.name)):
        put(unit, max(wanted, key=lambda split: lack(unit, split)))  # of equals the first: train
    return dealt


def _write(corpus: "Corpus", ids: pa.ChunkedArray, splits: pa.Array) -> None:
    """Write the column where it differs; a clip that ingest refused has no split."""
    ids = ids.combine_chunks()

    def change(rows: pa.Table) -> pa.Table:
        found = splits.take(pc.index_in(rows["clip_id"], value_set=ids))
        return rows.set_column(rows.schema.get_field_index("split"), rows.schema.field("split"), found)

    corpus.rewrite("clips", change)
