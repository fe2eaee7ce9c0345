"""One clip of a corpus, as people and notebooks use it: pixels, modalities and rows by name."""

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
    """`corpus[i]`. `clip.rgb`, `clip.depth`, `clip.flow`, ... are the arrays of its modalities."""

    corpus: ColumnGroups
    clip: Clip

    @property
    def clip_id(self) -> str:
        """The clip's id."""
        return self.clip.clip_id

    @property
    def caption(self) -> str | None:
        """The clip's caption, where it has one."""
        return self.clip.caption

    def row(self, operator: str) -> dict[str, Any]:
        """The operator's row about this clip: status, error, version, ms and its scores and constants."""
        for kind in ("filter", "annotator"):
            if operator in self.corpus.operators(kind):
                row = self.corpus.find(operator_group(kind, operator), self.clip_id)
                if row is None:
                    raise OpenUniError(f"{operator} has not seen clip {self.clip_id} (dropped, or not run yet)")
                return dict(row[operator])
        known = [*self.corpus.operators("filter"), *self.corpus.operators("annotator")]
        raise OpenUniError(unknown_name("operator of this corpus", operator, known))

    def modality(self, name: str, annotator: str | None = None) -> Modality:
        """A modality with its facts. Where several annotators made it, name one."""
        found = {who: row[field] for who, field, row in self._rows_with(name) if annotator in (None, who)}
        if not found:
            where = f" by {annotator}" if annotator else ""
            raise OpenUniError(f"clip {self.clip_id} has no {name}{where}")
        if len(found) > 1:
            raise OpenUniError(
                f'several annotators made {name}: {", ".join(sorted(found))}. Name one: modality("{name}", ...)'
            )
        who, extent = next(iter(found.items()))
        return read_modality(self.corpus, annotation_group(who), find_modality(name), extent, self.clip)

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
                continue  # this annotator has not seen the clip
            field = modality_column(row, modality)
            if field:
                found.append((operator, field, row))
        return found


def modality_column(row: dict[str, Any], modality: str) -> str | None:
    """The field of an annotator's row that holds a modality, when it is present."""
    value = row.get(modality)
    return modality if isinstance(value, dict) and "shard" in value else None


def read_modality(
    corpus: ColumnGroups, group: str, modality: type[Modality], extent: Mapping[str, Any], clip: Clip
) -> Modality:
    """Decode a stored modality and check that it shows the clip's instants."""
    if extent["pts_hash"] != clip.pts_hash or extent["frames"] != clip.frame_count:
        raise OpenUniError(
            f"{group}: {modality.name} of clip {clip.clip_id} has {extent['frames']} frames and other timestamps than "
            f"the clip's {clip.frame_count}; run again to recompute it"
        )
    data = corpus.read(group, *(extent[key] for key in EXTENT))
    kind: Any = modality.constants_type  # a row written before it had all of these fields goes by their defaults
    given = {name: extent[name] for name in kind._fields if name in extent or name not in kind._field_defaults}
    signal = modality.read(data, kind(**given))
    if len(signal.array) != clip.frame_count:
        raise OpenUniError(f"{group}: {modality.name} of {clip.clip_id} decodes to {len(signal.array)} frames")
    return signal
