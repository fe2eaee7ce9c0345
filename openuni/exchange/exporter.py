"""The exporter contract: write the clips of a corpus in the layout of another project.

An exporter is one file in `openuni/exchange/exporters/`: a frozen dataclass of options that names the files of a batch
of clips, writes them, and writes the index of the export. `openuni export` provides the rest: clip selection, workers,
atomic files, resuming, and the list of failures.
"""

import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pyarrow as pa

from openuni.manifests.contracts.component import Component
from openuni.manifests.contracts.discovery import find_component
from openuni.manifests.contracts.modality import Modality, find_modality
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.corpus_clip import EXTENT, read_modality, stored_blocks
from openuni.manifests.corpus.layout import annotation_group
from openuni.manifests.errors import ClipError, OpenUniError
from openuni.manifests.video.clip import Clip

# JSON allows these in strings; YAML does not, and some readers of lines end a line at U+0085, U+2028 and U+2029
ESCAPED = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")


class StoredMap(NamedTuple):
    """One modality map of one clip, as stored in the corpus."""

    annotator: str
    version: str
    row: Mapping[str, Any]  # extent, size and constants


@dataclass(frozen=True, eq=False)
class ExportClip:
    """A clip to export: its row, those of the requested maps that it has, and its scores by filter."""

    corpus: Corpus
    clip: Clip
    maps: Mapping[str, StoredMap]
    scores: Mapping[str, Mapping[str, Any]]

    @property
    def clip_id(self) -> str:
        """The clip's id, used as the stem of its file names."""
        return self.clip.clip_id

    def payload(self, modality: str) -> bytes:
        """The stored bytes of a map, verified against their checksum. Raises `ClipError`."""
        found = self.maps[modality]
        try:
            return self.corpus.read(annotation_group(found.annotator), *(found.row[key] for key in EXTENT))
        except (OpenUniError, OSError) as error:  # damaged or unreadable: fails this clip, not the export
            raise ClipError(f"{modality}: {error}") from error

    def signal(self, modality: str) -> Modality:
        """The decoded map. Raises `ClipError`."""
        found = self.maps[modality]
        try:
            group = annotation_group(found.annotator)
            return read_modality(self.corpus, group, find_modality(modality), dict(found.row), self.clip)
        except (OpenUniError, OSError) as error:
            raise ClipError(f"{modality}: {error}") from error

    def blocks(self, modality: str, frames_per_block: int) -> Iterator[Modality]:
        """The decoded map in blocks of frames, for maps of any length (see `stored_blocks`). Raises `ClipError`."""
        found = self.maps[modality]
        group, kind = annotation_group(found.annotator), find_modality(modality)
        try:
            yield from stored_blocks(self.corpus, group, kind, dict(found.row), self.clip, frames_per_block)
        except (OpenUniError, OSError) as error:
            raise ClipError(f"{modality}: {error}") from error

    def constants(self, modality: str) -> dict[str, Any]:
        """The map's constants (fields of the modality's `constants_type`), needed to decode and to render it."""
        names = find_modality(modality).constants_type._fields  # type: ignore[attr-defined]
        return {name: self.maps[modality].row[name] for name in names}

    def record(self) -> dict[str, Any]:
        """The clip's metadata for JSON files.

        `modalities`: name -> annotator, version, size and constants of the stored map.
        """
        modalities = {
            name: {
                "annotator": found.annotator,
                "version": found.version,
                "height_px": found.row["height_px"],
                "width_px": found.row["width_px"],
                "constants": self.constants(name),
            }
            for name, found in self.maps.items()
        }
        return {
            "clip_id": self.clip_id,
            "caption": self.clip.caption,
            "fps": self.clip.fps,
            "frames": self.clip.frame_count,
            "height_px": self.clip.height_px,
            "width_px": self.clip.width_px,
            "split": self.clip.split,
            "collection": self.clip.collection,
            "origin": self.clip.origin,
            "scores": self.scores,
            "modalities": modalities,
        }


class ExportContext(NamedTuple):
    """The properties of an export that are the same for all clips."""

    corpus: Corpus
    annotators: Mapping[str, str]  # modality -> annotator
    scores: Mapping[str, pa.StructType]  # filter -> its scores
    out: Path  # output directory, absolute: only for files that must contain the path; do not write to it


class ExportBatch(NamedTuple):
    """Clips that are written together: a single clip, or the clips of one shard."""

    clips: Sequence[ExportClip]
    group_key: str = ""  # see `Exporter.group_key`
    number: int = 0  # index of this batch within its group
    total: int = 1  # number of batches in its group


class ExportFailure(NamedTuple):
    """A clip that could not be exported."""

    clip_id: str
    source: str
    error: str


@dataclass(frozen=True)
class Exporter(Component, ABC):
    """Base class of exporters."""

    # modality -> its name in the format; None: all modalities, by their own names
    names: ClassVar[Mapping[str, str] | None] = None
    stores_rgb: ClassVar[bool] = False  # whether stored pixels are also exported as a map, next to the video

    def group_key(self, clip: ExportClip) -> str:
        """Group of the clip, such as its split. Clips of different groups never share a batch."""
        return ""

    def batch_bytes(self) -> int:
        """Target size of a batch in bytes; 0: one clip per batch."""
        return 0

    def estimate(self, clip: ExportClip) -> int:
        """Estimated size of the exported clip in bytes, used to plan batches before anything is written."""
        return 0

    @abstractmethod
    def files(self, batch: ExportBatch) -> list[str]:
        """File names of a batch, relative to the export. The batch is complete when all of them exist."""

    @abstractmethod
    def write(self, batch: ExportBatch, folder: Path, contents: ExportContext) -> list[ExportFailure]:
        """Write `files(batch)` under `folder`, an empty folder for this batch; they are then moved into place.

        Returns the clips that could not be exported, which are in none of the files. Called from several threads at
        once.
        """

    @abstractmethod
    def finish(self, clips: Iterable[ExportClip], folder: Path, contents: ExportContext) -> None:
        """Write the index of all exported clips (in order) under `folder`; its files are then moved into place."""


def find_exporter(name: str, *, imports: bool = False) -> type[Exporter]:
    """The exporter of that name; "openuni-csv" and "openuni_csv" are the same. `imports`: see `find_component`."""
    file = name if "." in name else name.replace("-", "_")
    found: type[Exporter] = find_component("exporters", Exporter, file, imports=imports)
    return found


def json_line(record: Mapping[str, Any]) -> str:
    """One line of JSON with sorted keys; NaN and infinities become null."""
    return json_text(finite(record))


def json_text(value: Any) -> str:
    """JSON with sorted keys: one line to every reader, and valid YAML. Raises `ValueError` for NaN and infinities."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def finite(value: Any) -> Any:
    """Replace NaN and infinities by None, also inside dicts and lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write lines of UTF-8 with `\n` line ends on every platform."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)
