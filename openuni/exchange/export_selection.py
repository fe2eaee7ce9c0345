"""Selection of the clips and maps to export, read in windows of rows because a corpus may have millions of clips."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from openuni.exchange.exporter import ExportClip, ExportContext, Exporter, StoredMap
from openuni.manifests.contracts.modality import modality_names
from openuni.manifests.contracts.schema import OUTCOME_FIELDS, clip_schema, null_nonfinite
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.coverage import annotators_by_modality
from openuni.manifests.corpus.layout import annotation_group, filter_group
from openuni.manifests.corpus.splits import require_complete_splits
from openuni.manifests.errors import OpenUniError, unknown_name

WINDOW_CLIPS = 1000  # rows held in memory as Python objects


@dataclass(frozen=True)
class ExportOptions:
    """Which clips and maps of a corpus to export."""

    # "depth", or "raft.flow" if several annotators have it; empty: all that the format supports
    modalities: tuple[str, ...] = ()
    split: str | None = None  # only clips of this split
    limit: int | None = None  # only the first N clips


class Selection:
    """The selected clips, in corpus order. `contents`: the properties that all of them share."""

    def __init__(self, corpus: Corpus, exporter: Exporter, export_options: ExportOptions, out: Path) -> None:
        self.corpus = corpus
        require_complete_splits(corpus)
        annotators = choose_maps(corpus, exporter, export_options.modalities)
        self.contents = ExportContext(corpus, annotators, score_types(corpus), out.resolve())
        self.versions = {name: corpus.group_version(annotation_group(name)) for name in annotators.values()}
        corpus.require_shards([annotation_group(name) for name in self.versions])
        listed = corpus.clip_list
        mask = pc.is_in(listed.ids, value_set=corpus.kept_clip_id_array())
        if export_options.split is not None:
            mask = pc.and_(mask, self._in_split(export_options.split))
        self.ids: pa.Array = listed.ids.filter(mask).slice(0, export_options.limit)
        self.rows: np.ndarray = listed.rows[mask.to_numpy(zero_copy_only=False)][: export_options.limit]
        if not len(self.ids):
            raise OpenUniError(f"no clips to export in {corpus.store.url}. See: openuni summary {corpus.store.url}")

    def __len__(self) -> int:
        return len(self.ids)

    def clips(self, positions: np.ndarray | None = None) -> Iterator[ExportClip]:
        """All clips, or those at `positions` (int, increasing, positions in this selection)."""
        chosen = np.arange(len(self)) if positions is None else positions
        for start in range(0, len(chosen), WINDOW_CLIPS):
            yield from self._window(chosen[start : start + WINDOW_CLIPS])

    def _window(self, positions: np.ndarray) -> Iterator[ExportClip]:
        ids = self.ids.take(pa.array(positions))
        found = {name: self._maps_of(name, ids) for name in self.versions}
        scores = {
            name: null_nonfinite(
                self.corpus.look_up(
                    filter_group(name), ids, {field.name: pads.field(name, field.name) for field in kind}
                )
            )
            for name, kind in self.contents.scores.items()
        }
        clips = (row for table in self.corpus.clip_list.tables(self.rows[positions]) for row in table.to_pylist())
        for position, clip in enumerate(clips):
            yield ExportClip(
                self.corpus,
                self.corpus.clip_list.clip_of_row(clip),
                self._stored({name: rows[position].as_py() for name, rows in found.items()}),
                {name: row for name, rows in scores.items() if (row := rows[position].as_py()) is not None},
            )

    def _maps_of(self, annotator: str, ids: pa.Array) -> pa.StructArray:
        requested = [name for name, maker in self.contents.annotators.items() if maker == annotator]
        return self.corpus.look_up(
            annotation_group(annotator), ids, {name: pads.field(annotator, name) for name in requested}
        )

    def _stored(self, rows: Mapping[str, Mapping[str, Any] | None]) -> dict[str, StoredMap]:
        """The maps that exist, in the format's order, from the clip's row of each annotator."""
        found = {}
        for modality, annotator in self.contents.annotators.items():
            row = rows[annotator]
            if row is not None and row[modality] is not None and row[modality]["shard"] is not None:
                found[modality] = StoredMap(annotator, self.versions[annotator], row[modality])
        return found

    def _in_split(self, split: str) -> pa.Array:
        column = self.corpus.dataset("clips", clip_schema()).to_table(columns=["split"]).column("split")
        splits = column.combine_chunks().take(pa.array(self.corpus.clip_list.rows))
        known = sorted(name for name in pc.unique(splits).to_pylist() if name is not None)
        if split not in known:
            raise OpenUniError(unknown_name("split", split, known))
        return pc.fill_null(pc.equal(splits, split), False)


def choose_maps(corpus: Corpus, exporter: Exporter, requested: Sequence[str]) -> dict[str, str]:
    """Modality -> annotator, in the format's order.

    Raises `OpenUniError` for unknown or missing modalities, and for those of several annotators.
    """
    available = current_annotators_by_modality(corpus)
    supported = list(exporter.names) if exporter.names is not None else modality_names()
    if not exporter.stores_rgb:
        supported = [name for name in supported if name != "rgb"]
    chosen: dict[str, str] = {}
    for text in requested or [name for name in supported if name in available]:
        annotator, _, name = text.rpartition(".")
        modality = next((own for own, called in (exporter.names or {}).items() if called == name), name)
        if modality == "rgb" and not exporter.stores_rgb:
            continue  # the video is always exported
        if modality not in supported:
            raise OpenUniError(unknown_name(f"modality of the format {exporter.name()}", name, supported))
        if modality not in available:
            names = ", ".join(available) or "none"
            raise OpenUniError(f"no clip of {corpus.store.url} has {modality}. Available: {names}.")
        chosen[modality] = _pick_annotator(available[modality], modality, annotator)
    return {name: chosen[name] for name in supported if name in chosen}


def current_annotators_by_modality(corpus: Corpus) -> dict[str, list[str]]:
    """Modality -> the annotators that stored it for at least one clip."""
    of_annotator: dict[str, list[str]] = {}
    for modality, names in annotators_by_modality(corpus).items():
        for name in names:
            of_annotator.setdefault(name, []).append(modality)
    found: dict[str, list[str]] = {}
    for name, modalities in sorted(of_annotator.items()):
        columns = {modality: pads.field(name, modality, "shard") for modality in modalities}
        table = corpus.dataset(annotation_group(name)).to_table(columns=columns)
        for modality in modalities:
            if table.column(modality).null_count < len(table):
                found.setdefault(modality, []).append(name)
    return found


def _pick_annotator(names: list[str], modality: str, annotator: str) -> str:
    if annotator and annotator not in names:
        raise OpenUniError(unknown_name(f"annotator of {modality}", annotator, names))
    if not annotator and len(names) > 1:
        named = ", ".join(f'"{name}.{modality}"' for name in names)
        raise OpenUniError(f"several annotators have {modality}. Select one with --modalities: {named}.")
    return annotator or names[0]


def score_types(corpus: Corpus) -> dict[str, pa.StructType]:
    """The score columns of each filter that has results; list columns (hashes, embeddings) are left out."""
    outcome = {field.name for field in OUTCOME_FIELDS}
    found = {}
    for name in corpus.operators("filter"):
        seen = corpus.parts(filter_group(name))
        columns = corpus.dataset(filter_group(name)).schema.field(name).type if seen else ()
        fields = [field for field in columns if field.name not in outcome and not pa.types.is_list(field.type)]
        if fields:
            found[name] = pa.struct(fields)
    return found
