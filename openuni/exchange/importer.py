"""The importer contract: reading the clips of another project's set, each checked before any of it is written.

An importer is one file in `openuni/exchange/importers/`: a frozen dataclass of options, `find`, which lists the clips,
and `read`, which gives one of them or says why not. `openuni import` does the rest: workers, storage, resuming, the
ledger.
"""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, NamedTuple, TypeVar, get_args, get_type_hints

from openuni.manifests.contracts.discovery import component_names, find_component
from openuni.manifests.contracts.modality import Payload
from openuni.manifests.contracts.producer import Producer
from openuni.manifests.errors import OpenUniError
from openuni.manifests.video.clip import Clip

M = TypeVar("M", bound=tuple[Any, ...])


class FoundClip(NamedTuple):
    """A clip of the set that `find` has seen and nobody has read."""

    key: str  # names the clip within the set, the same wherever the set lies and however much is added to it
    location: Any  # what `read` needs to know: paths, offsets: a small NamedTuple of JSON's types


class ImportedClip(NamedTuple, Generic[M]):
    """One clip, checked.

    `maps`: the importer's NamedTuple of modalities (each or None) and plain values; every modality has one frame per
    frame of the video. Where `video` is None the clip's pixels are the modality `rgb` in `maps`, which goes into the
    corpus without loss; else they are all frames of that video, which stays where it is.
    """

    maps: M
    fps: float  # of `rgb`; a video has its own
    video: Clip | None = None  # the whole of it, as `openuni.manifests.video.reader.probe_clip` gives it
    caption: str | None = None
    origin: str | None = None  # the scene or recording it shares with other clips; None: it shares none
    split: str | None = None  # where the set says so, such as "train" or "test"
    # of `maps`: as stored in the set, kept byte by byte; where one says its size and frames, its map may be None
    payloads: Mapping[str, Payload] = MappingProxyType({})


@dataclass(frozen=True)
class Importer(Producer):
    """Base of the importers."""

    @abstractmethod
    def find(self, folder: Path) -> Iterable[FoundClip]:
        """All clips of the set in `folder`, in a fixed order, without reading them.

        Raises `OpenUniError` when this is no set of this format, naming what was looked for.
        """

    @abstractmethod
    def read(self, found: FoundClip) -> ImportedClip[Any]:
        """One clip, annotated as `Imported[SomeNamedTuple]`. Pure. Raises `ClipError` naming the fault."""

    @classmethod
    def result_type(cls) -> type[tuple[Any, ...]]:
        """The NamedTuple that `read` is annotated to bring."""
        inner = get_args(get_type_hints(cls.read).get("return"))
        if not (inner and isinstance(inner[0], type) and hasattr(inner[0], "_fields")):
            raise OpenUniError(f"{cls.name()}: read() must be annotated to return Imported[SomeNamedTuple]")
        return inner[0]


def importer_names() -> list[str]:
    """Names of the importers: the files of their folder."""
    return component_names("importers")


def find_importer(name: str, *, imports: bool = False) -> type[Importer]:
    """The importer of that name ("openuni-csv" and "openuni_csv" are one); `imports` as in `find_component`."""
    file = name if "." in name else name.replace("-", "_")
    found: type[Importer] = find_component("importers", Importer, file, imports=imports)
    return found
