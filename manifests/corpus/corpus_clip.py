"""One clip of a corpus for interactive use: frames, modalities and rows by name."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from openuni.manifests.contracts.decoded_clip import decode
from openuni.manifests.contracts.modality import Modality, find_modality, modality_names
from openuni.manifests.corpus.column_groups import ColumnGroups
from openuni.manifests.corpus.layout import annotation_group, operator_group
from openuni.manifests.corpus.parts.payload_files import open_payload
from openuni.manifests.errors import ClipError, OpenUniError, unknown_name
from openuni.manifests.video.clip import Clip
from openuni.manifests.video.container import Limits
from openuni.manifests.video.passthrough import is_passthrough

MAX_BYTES_PER_PX = 12  # of a decoded map: three floats
PASSTHROUGH_HEAD_BYTES = 4096  # enough to know passthrough files by
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
        producer, extent = self._stored(name, annotator)
        return read_modality(self.corpus, annotation_group(producer), find_modality(name), extent, self.clip)

    def modality_blocks(
        self, name: str, annotator: str | None = None, frames_per_block: int = 64
    ) -> Iterator[Modality]:
        """A modality map of the clip in blocks of frames, for clips that are too long for the memory.

        Raises as `modality`; damage of the decoded maps may only show behind the last block.
        """
        producer, extent = self._stored(name, annotator)
        kind = find_modality(name)
        yield from stored_blocks(self.corpus, annotation_group(producer), kind, extent, self.clip, frames_per_block)

    def _stored(self, name: str, annotator: str | None) -> tuple[str, dict[str, Any]]:
        """The annotator of a map, and where it lies. Raises `OpenUniError` if it is missing or ambiguous."""
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
        return next(iter(extents.items()))

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
    constants = _constants_of_clip(group, modality, extent, clip)
    data = corpus.read(group, *(extent[key] for key in EXTENT))
    signal = modality.read(data, constants)
    _check_count(group, modality, len(signal.array), clip)
    return signal


def stored_blocks(  # noqa: PLR0913  # those of read_modality, and three
    corpus: ColumnGroups,
    group: str,
    modality: type[Modality],
    extent: Mapping[str, Any],
    clip: Clip,
    frames_per_block: int,
    limits: Limits | None = None,
    stop: int | None = None,
) -> Iterator[Modality]:
    """A stored map in blocks of frames, of which one is in memory; to frame `stop` (exclusive), or to the end.

    The payload is verified against its checksum before the first block, the decoded maps behind the last one. Maps that
    are not stored as one lossless video come as one block, within `limits.max_decoded_bytes` if that is given.
    Raises as `read_modality`.
    """
    constants = _constants_of_clip(group, modality, extent, clip)
    with open_payload(corpus, group, *(extent[key] for key in EXTENT)) as file:
        head = file.read(PASSTHROUGH_HEAD_BYTES)
        file.seek(0)
        if not modality.is_streamable() or is_passthrough(head):
            nbytes = extent["frames"] * extent["height_px"] * extent["width_px"] * MAX_BYTES_PER_PX
            if limits is not None and nbytes > limits.max_decoded_bytes:
                raise ClipError(
                    f"{group}: {modality.name} of clip {clip.clip_id} is read at once and may need {nbytes / 1e9:.3g} "
                    f"GB, over the limit of {limits.max_decoded_bytes / 1e9:.3g} GB ([work] max_decoded_gb)"
                )
            signal = read_modality(corpus, group, modality, extent, clip)
            yield signal.take(0, stop) if stop is not None else signal
            return
        done = 0
        for block in modality.decode_blocks(file, constants, frames_per_block):
            yield block.take(0, stop - done) if stop is not None and done + len(block.array) > stop else block
            done += len(block.array)
            if stop is not None and done >= stop:
                return
        _check_count(group, modality, done, clip)


def _constants_of_clip(group: str, modality: type[Modality], extent: Mapping[str, Any], clip: Clip) -> Any:
    """The constants of a stored map. Raises `OpenUniError` unless its timestamps are the clip's."""
    if extent["pts_hash"] != clip.pts_hash or extent["frames"] != clip.frame_count:
        raise OpenUniError(
            f"{group}: {modality.name} of clip {clip.clip_id} has {extent['frames']} frames with other timestamps than "
            f"the clip's {clip.frame_count}; rerun to recompute it"
        )
    kind: Any = modality.constants_type  # fields that older rows lack get their defaults
    return kind(**{name: extent[name] for name in kind._fields if name in extent or name not in kind._field_defaults})


def _check_count(group: str, modality: type[Modality], frames: int, clip: Clip) -> None:
    if frames != clip.frame_count:
        raise OpenUniError(
            f"{group}: {modality.name} of clip {clip.clip_id} decodes to {frames} frames, expected "
            f"{clip.frame_count}; delete its .parquet part and rerun to recompute it"
        )
