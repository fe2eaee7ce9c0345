"""The exporter contract: writing a corpus's clips the way another project reads them.

An exporter is one file in `openuni/exchange/exporters/`: a frozen dataclass of options that says which files a batch of
clips becomes, writes them, and writes what lists them all. `openuni export` does the rest: which clips, workers, whole
files only, resuming, the ledger of failures.
"""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pyarrow as pa

from openuni.manifests.contracts.component import Component
from openuni.manifests.contracts.discovery import component_names, find_component
from openuni.manifests.contracts.modality import Modality, find_modality
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.corpus_clip import EXTENT, read_modality
from openuni.manifests.corpus.layout import annotation_group
from openuni.manifests.errors import ClipError, OpenUniError
from openuni.manifests.video.clip import Clip


class StoredMap(NamedTuple):
    """One modality of one clip, as the corpus has it."""

    annotator: str
    version: str
    row: Mapping[str, Any]  # where it lies, its size, its constants


@dataclass(frozen=True, eq=False)
class ExportClip:
    """A clip to export: its row, the maps that are wanted of it and there, and its scores by filter."""

    corpus: Corpus
    clip: Clip
    maps: Mapping[str, StoredMap]
    scores: Mapping[str, Mapping[str, Any]]

    @property
    def clip_id(self) -> str:
        """The clip's id: the name of its files."""
        return self.clip.clip_id

    def payload(self, modality: str) -> bytes:
        """The stored bytes of a map, their checksum proved. Raises `ClipError`."""
        found = self.maps[modality]
        try:
            return self.corpus.read(annotation_group(found.annotator), *(found.row[key] for key in EXTENT))
        except (OpenUniError, OSError) as error:  # damaged or not to be had: this clip's failure, not the export's
            raise ClipError(f"{modality}: {error}") from error

    def signal(self, modality: str) -> Modality:
        """A map, decoded. Raises `ClipError`."""
        found = self.maps[modality]
        try:
            group = annotation_group(found.annotator)
            return read_modality(self.corpus, group, find_modality(modality), dict(found.row), self.clip)
        except (OpenUniError, OSError) as error:
            raise ClipError(f"{modality}: {error}") from error

    def constants(self, modality: str) -> dict[str, Any]:
        """What the map's bytes mean and how it is rendered: the fields of the modality's `constants_type`."""
        names = find_modality(modality).constants_type._fields  # type: ignore[attr-defined]
        return {name: self.maps[modality].row[name] for name in names}

    def record(self) -> dict[str, Any]:
        """The clip's facts as formats write them into JSON; `modalities` by name: who made it, its size, constants."""
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
    """What an export holds, as far as it is the same for all clips."""

    corpus: Corpus
    annotators: Mapping[str, str]  # modality -> who made it
    scores: Mapping[str, pa.StructType]  # filter -> its scores
    out: Path  # the export's folder, absolute: for what must name it, never to write to


class ExportBatch(NamedTuple):
    """Clips that are written together: one, or those of one shard."""

    clips: Sequence[ExportClip]
    group_key: str = ""  # see `Exporter.group_key`
    number: int = 0  # of this batch on its shelf
    total: int = 1  # batches on its shelf


class ExportFailure(NamedTuple):
    """A clip that could not be exported."""

    clip_id: str
    source: str
    error: str


@dataclass(frozen=True)
class Exporter(Component, ABC):
    """Base of the exporters."""

    names: ClassVar[Mapping[str, str] | None] = None  # modality -> what the format calls it; None: any, by its name
    stores_rgb: ClassVar[bool] = False  # whether stored pixels are exported as a map, besides the video

    def check(self) -> None:
        """Raise `OpenUniError` for options out of range."""
        return

    def group_key(self, clip: ExportClip) -> str:
        """Clips of different shelves (such as splits) never share a batch."""
        return ""

    def batch_bytes(self) -> int:
        """About how much a batch may take; 0: every clip is a batch of its own."""
        return 0

    def estimate(self, clip: ExportClip) -> int:
        """About how many bytes the clip will take; known before it is written, so that batches are."""
        return 0

    @abstractmethod
    def files(self, batch: ExportBatch) -> list[str]:
        """The files that a batch becomes, relative to the export; the batch is done when all are there."""

    @abstractmethod
    def write(self, batch: ExportBatch, folder: Path, contents: ExportContext) -> list[ExportFailure]:
        """Write `files(batch)` under `folder`, an empty one of this batch's own; they are moved into place afterwards.

        A clip that cannot be exported is in the list, and in no file. Runs in several threads at once.
        """

    @abstractmethod
    def finish(self, clips: Iterable[ExportClip], folder: Path, contents: ExportContext) -> None:
        """Write what lists all clips that were exported (in order) under `folder`, to be moved into place."""


def exporter_names() -> list[str]:
    """Names of the exporters: the files of their folder."""
    return component_names("exporters")


def find_exporter(name: str, *, imports: bool = False) -> type[Exporter]:
    """The exporter of that name ("openuni-csv" and "openuni_csv" are one); `imports` as in `find_component`."""
    file = name if "." in name else name.replace("-", "_")
    found: type[Exporter] = find_component("exporters", Exporter, file, imports=imports)
    return found


def json_line(record: Mapping[str, Any]) -> str:
    """One line of JSON, keys sorted, numbers that JSON does not have as null."""
    return json.dumps(finite(record), sort_keys=True, ensure_ascii=False, allow_nan=False)


def finite(value: Any) -> Any:
    """NaN and infinities as None, inside dicts and lists too."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Text in UTF-8 with plain line ends, wherever this runs."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)
