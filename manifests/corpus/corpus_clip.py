"""One clip of a corpus for interactive use: frames, modalities and rows by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from openuni.manifests.contracts.decoded_clip import decode
from openuni.manifests.contracts.modality import Modality, find_modality, modality_names
from openuni.manifests.corpus.column_groups import ColumnGroups
from openuni.manifests.corpus.layout import annotation_group, operator_group
from openuni.manifests.errors import OpenUniError, unknown_name
from openuni.manifests.video.clip import Clip

EXTENT = ("shard", "offset", "nbytes", "xxh3")


@dataclass(frozen=True, eq=False)
class CorpusClip:
    """A clip of a corpus, `corpus[i]`. `clip.rgb`, `clip.depth`, `clip.flow`, ...: the arrays of its modalities."""

    corpus: ColumnGroups
    clip: Clip

    @property
    def clip_id(self) -> str:
        """The clip's id."""
        return self.clip.clip_id

    @property
    def caption(self) -> str | None:
        """The clip's caption, or None."""
        return self.clip.caption

    def row(self, operator: str) -> dict[str, Any]:
        """The operator's row of this clip: status, error, version, ms, scores and constants.

        Raises `OpenUniError` if the operator is unknown or has no row for the clip.
        """
        for kind in ("filter", "annotator"):
            known = [*self.corpus.operators(kind), *self.corpus.unfinished_operators(kind)]
            if operator in known:
                row = self.corpus.find(operator_group(kind, operator), self.clip_id)
                if row is None:
                    raise OpenUniError(f"{operator} has no result for clip {self.clip_id} (dropped, or not run yet)")
                return dict(row[operator])
        known = [*self.corpus.operators("filter"), *self.corpus.operators("annotator")]
        raise OpenUniError(unknown_name("operator of this corpus", operator, known))

    def modality(self, name: str, annotator: str | None = None) -> Modality:
        """A modality map of the clip. `annotator` is required if several annotators produced the modality.

        Raises `OpenUniError` if the map is missing, ambiguous or damaged.
        """
        extents = {
            producer: row[field] for producer, field, row in self._rows_with(name) if annotator in (None, producer)
        }
        if not extents:
            suffix = f" from {annotator}" if annotator else ""
            raise OpenUniError(f"clip {self.clip_id} has no {name} map{suffix}")
        if len(extents) > 1:
            raise OpenUniError(
                f"several annotators produced {name}: {', '.join(sorted(extents))}. Select one: "
                f'modality("{name}", "{min(extents)}")'
            )
        producer, extent = next(iter(extents.items()))
        return read_modality(self.corpus, annotation_group(producer), find_modality(name), extent, self.clip)

    @property
    def rgb(self) -> np.ndarray:
        """uint8 [T, H, W, 3]: all frames, decoded from the source."""
        return decode(self.clip).frames

    def __getattr__(self, name: str) -> np.ndarray:
        if name in modality_names():
            return self.modality(name).array
        raise AttributeError(unknown_name("attribute of a clip", name, modality_names()))

    def _rows_with(self, modality: str) -> list[tuple[str, str, dict[str, Any]]]:
        found = []
        for operator in self.corpus.operators("annotator"):
            try:
                row = self.row(operator)
            except OpenUniError:
                continue  # no row of this annotator for the clip
            field = modality_column(row, modality)
            if field:
                found.append((operator, field, row))
        return found


def modality_column(row: dict[str, Any], modality: str) -> str | None:
    """Name of the field of an annotator's row that holds the modality, or None if the clip lacks it."""
    value = row.get(modality)
    return modality if isinstance(value, dict) and "shard" in value else None


def read_modality(
    corpus: ColumnGroups, group: str, modality: type[Modality], extent: Mapping[str, Any], clip: Clip
) -> Modality:
    """Decode a stored map and check that its timestamps are the clip's. Raises `OpenUniError` if they differ."""
    if extent["pts_hash"] != clip.pts_hash or extent["frames"] != clip.frame_count:
        raise OpenUniError(
            f"{group}: {modality.name} of clip {clip.clip_id} has {extent['frames']} frames with other timestamps than "
            f"the clip's {clip.frame_count}; rerun to recompute it"
        )
    data = corpus.read(group, *(extent[key] for key in EXTENT))
    kind: Any = modality.constants_type  # fields that older rows lack get their defaults
    values = {name: extent[name] for name in kind._fields if name in extent or name not in kind._field_defaults}
    signal = modality.read(data, kind(**values))
    if len(signal.array) != clip.frame_count:
        raise OpenUniError(
            f"{group}: {modality.name} of clip {clip.clip_id} decodes to {len(signal.array)} frames, expected "
            f"{clip.frame_count}; delete its .parquet part and rerun to recompute it"
        )
    return signal
