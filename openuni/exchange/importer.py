"""The importer contract: read the clips of another project's dataset, each validated before any of it is written.

An importer is one file in `openuni/exchange/importers/`: a frozen dataclass of options with `find`, which lists the
clips, and `read`, which returns one clip or raises `ClipError`. `openuni import` provides the rest: workers, storage,
resuming, and the ledger.
"""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, NamedTuple, TypeVar, get_args, get_type_hints

from openuni.manifests.contracts.discovery import find_component
from openuni.manifests.contracts.modality import Payload
from openuni.manifests.contracts.producer import Producer
from openuni.manifests.errors import OpenUniError
from openuni.manifests.video.clip import Clip

M = TypeVar("M", bound=tuple[Any, ...])


class FoundClip(NamedTuple):
    """A clip of the dataset that `find` has listed and that has not been read yet."""

    key: str  # name of the clip in the dataset; must not change when the dataset is moved or extended
    location: Any  # input of `read` (paths, offsets): a small NamedTuple of JSON types


class ImportedClip(NamedTuple, Generic[M]):
    """One validated clip.

    `maps`: the importer's NamedTuple of modalities (or None) and plain values; every map has one frame per frame of the
    video. If `video` is None, the clip's pixels are the modality `rgb` in `maps` and are stored in the corpus without
    loss; otherwise the clip is all frames of that video, which is referenced where it is.
    """

    maps: M
    fps: float  # of `rgb`; a video brings its own
    video: Clip | None = None  # the whole video, as returned by `openuni.manifests.video.probe.probe_clip`
    caption: str | None = None
    origin: str | None = None  # scene or recording shared with other clips; None: not shared
    split: str | None = None  # if the dataset defines splits, such as "train" or "test"
    # by modality of `maps`: bytes of the dataset to store as they are; its map may be None if it has size and frames
    payloads: Mapping[str, Payload] = MappingProxyType({})


@dataclass(frozen=True)
class Importer(Producer):
    """Base class of importers."""

    @abstractmethod
    def find(self, folder: Path) -> Iterable[FoundClip]:
        """All clips of the dataset in `folder`, in a fixed order, without reading them.

        Raises `OpenUniError` if the folder is not a dataset of this format, and names the expected files.
        """

    @abstractmethod
    def read(self, found: FoundClip) -> ImportedClip[Any]:
        """Read one clip. Pure. Annotate the return type as `ImportedClip[SomeNamedTuple]`. Raises `ClipError`."""

    @classmethod
    def result_type(cls) -> type[tuple[Any, ...]]:
        """The NamedTuple in the return annotation of `read`."""
        inner = get_args(get_type_hints(cls.read).get("return"))
        if not (inner and isinstance(inner[0], type) and hasattr(inner[0], "_fields")):
            raise OpenUniError(f"{cls.name()}: read() must have the return annotation ImportedClip[SomeNamedTuple]")
        return inner[0]


def find_importer(name: str, *, imports: bool = False) -> type[Importer]:
    """The importer of that name; "openuni-csv" and "openuni_csv" are the same. `imports`: see `find_component`."""
    file = name if "." in name else name.replace("-", "_")
    found: type[Importer] = find_component("importers", Importer, file, imports=imports)
    return found
