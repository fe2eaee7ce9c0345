"""The index of a large corpus, kept in the run folder: resuming, and other ranks, read it instead of all rows.

A safetensors file of the arrays of the index. It counts only if its key is that of the corpus: a digest of the contents
of all parts and of what the index is made with. Like the corpus, the file is not trusted: every number that is used as
a position is checked, and nothing is unpickled. A file that fails is ignored and written again.
"""

import json
import logging
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pyarrow as pa
import xxhash

from openuni.manifests.corpus.layout import SHARD_SUFFIXES, in_folder, latent_group, text_group
from openuni.manifests.corpus.names import find_fault, is_shard
from openuni.manifests.corpus.parts.part_files import content_digest
from openuni.manifests.corpus.splits import require_complete_splits
from openuni.manifests.errors import OpenUniError
from openuni.manifests.storage.store import temp_path
from openuni.training.data.clip_ids import ClipIds
from openuni.training.data.extents import DTYPES, Extents
from openuni.training.data.index import Index, choose_family, open_index

if TYPE_CHECKING:
    from openuni.manifests.corpus.corpus import Corpus

FORMAT = 1
MIN_SAMPLES = 20_000  # smaller indices open in a fraction of a second
MAX_HEADER_BYTES = 64 * 1024**2
LENGTH_BYTES = 8  # before the header of a safetensors file
METADATA = "__metadata__"
NUMPY = {"BOOL": bool, "U8": np.uint8, "I32": np.int32, "I64": np.int64, "U64": np.uint64}
NAMES = {np.dtype(kind): name for name, kind in NUMPY.items()}
OF_EXTENTS = {"shard": np.int32, "offset": np.int64, "xxh3": np.uint64, "kind": np.int32, "finite": bool}
logger = logging.getLogger(__name__)


class Unusable(Exception):
    """A cached index that is damaged or inconsistent."""


UNUSABLE: tuple[type[Exception], ...] = (  # of parsing what is not such a file
    *(Unusable, OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError, pa.ArrowException),
)


class IndexCache:
    """The index of a corpus for a recipe: `open` reads the file if it is there, else the corpus; `save` writes it."""

    def __init__(
        self,
        path: Path,
        corpus: "Corpus",
        modalities: tuple[str, ...],
        latents: str,
        text: str,
        validation_share: float,
        collections: tuple[str, ...] = (),
    ) -> None:
        """As `open_index`. `path`: of the file."""
        self.path, self.corpus = path, corpus
        self.arguments = (modalities, latents, text, validation_share, collections)
        self._names: dict[str, Any] = {}  # of families and modalities
        self._unsaved: tuple[str, Index] | None = None

    def open(self) -> Index:
        """The index. Raises `OpenUniError` as `open_index` does, also for missing shards."""
        key = self._key()
        found = self._read(key)
        if found is not None:
            return found
        index = open_index(self.corpus, *self.arguments)
        if key and len(index.clip_ids) >= MIN_SAMPLES and key == self._key():  # not written to meanwhile
            self._unsaved = key, index
        return index

    def save(self) -> None:
        """Write the file, unless `open` has read it, or reading the corpus is fast."""
        if self._unsaved is None:
            return
        (key, index), self._unsaved = self._unsaved, None
        temporary = temp_path(self.path)
        try:
            with temporary.open("wb") as file:
                _write(file, key, index)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
        finally:
            temporary.unlink(missing_ok=True)

    def _key(self) -> str:
        """Digest of the corpus and the arguments; empty if a part has no checksums, or something is amiss."""
        corpus, (modalities, latents, text, *others) = self.corpus, self.arguments
        try:
            require_complete_splits(corpus)
            families, texts = corpus.families(), corpus.text_families()
            latents, text = choose_family("latent", families, latents), choose_family("text", texts, text)
            self._names = {"latent_family": latents, "text_family": text, "modalities": list(modalities)}
            own = {*(latent_group(latents, name) for name in modalities), text_group(text)}
            other_tensors = {
                latent_group(family, name) for family in families for name in families[family]["modalities"]
            }
            other_tensors |= set(map(text_group, texts))
            parts = [
                part
                for group in corpus.groups()
                if group in own or group not in other_tensors
                for part in corpus.parts(group)
            ]
            with ThreadPoolExecutor(corpus.store.parallel_files) as pool:
                digests = list(pool.map(lambda part: content_digest(corpus.store, part), parts))
        except (OpenUniError, OSError):
            return ""  # `open_index` says what
        if not all(digests):
            return ""
        made_with = [FORMAT, corpus.record["keep"], families[latents], modalities, latents, text, *others]
        return xxhash.xxh3_128_hexdigest(json.dumps([made_with, parts, digests], sort_keys=True).encode())

    def _read(self, key: str) -> Index | None:
        if not key:
            return None
        try:
            with self.path.open("rb") as file:
                index = _load(file, key, self._names)
        except FileNotFoundError:
            return None
        except UNUSABLE as error:
            logger.warning("%s is damaged and is written again: %s", self.path, error)
            return None
        if index is not None:
            self._require_shards(index)
        return index

    def _require_shards(self, index: Index) -> None:
        """Raise `OpenUniError` if a shard is missing, as `open_index` does."""
        missing = []
        for extents in (*index.latents.values(), index.text):
            there = set(self.corpus.store.names(extents.group, SHARD_SUFFIXES))
            missing += sorted({in_folder(extents.group, shard) for shard in extents.shards} - there)
        if missing:
            raise OpenUniError("\n".join(self.corpus.missing_shard_message(name) for name in missing))


# ---------------------------------------------------------------- writing


def _arrays(index: Index) -> Iterator[tuple[str, np.ndarray]]:
    ids = pa.concat_arrays([pa.array(index.clip_ids, pa.string())])  # without the offset of a slice
    _, ends, data = ids.buffers()
    yield "id_ends", np.frombuffer(ends, np.int32)[: len(ids) + 1]
    yield "id_bytes", np.frombuffer(data, np.uint8)[: np.frombuffer(ends, np.int32)[len(ids)]]
    yield "held_out", index.held_out
    yield "collection", index.collection.astype(np.int32)
    if index.window is not None:
        yield "window", index.window
    for stream, extents in (*index.latents.items(), ("text", index.text)):
        yield f"{stream}.kinds", extents.kinds
        for name, kind in OF_EXTENTS.items():
            yield f"{stream}.{name}", getattr(extents, name).astype(kind, copy=False)


def _write(file: BinaryIO, key: str, index: Index) -> None:
    header: dict[str, Any] = {}
    at = 0
    for name, array in _arrays(index):
        header[name] = {
            "dtype": NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [at, at + array.nbytes],
        }
        at += array.nbytes
    streams = {**index.latents, "text": index.text}
    facts = {
        "key": key,
        "latent_family": index.latent_family,
        "text_family": index.text_family,
        "collections": index.collections,
        "modalities": list(index.latents),
        "shards": {name: extents.shards for name, extents in streams.items()},
        "dtypes": {name: extents.dtypes for name, extents in streams.items()},
    }
    total = xxhash.xxh3_64(_canonical(header, facts))
    for _, array in _arrays(index):
        total.update(np.ascontiguousarray(array).data)
    header[METADATA] = {"index": json.dumps(facts | {"xxh3": total.hexdigest()})}
    data = json.dumps(header).encode()
    data += b" " * (-len(data) % LENGTH_BYTES)
    file.write(len(data).to_bytes(LENGTH_BYTES, "little") + data)
    for _, array in _arrays(index):
        file.write(np.ascontiguousarray(array).data)


def _canonical(header: dict[str, Any], facts: dict[str, Any]) -> bytes:
    """What the checksum covers besides the arrays."""
    return json.dumps([header, facts], sort_keys=True).encode()


# ---------------------------------------------------------------- reading


def _load(file: BinaryIO, key: str, expected: dict[str, Any]) -> Index | None:
    """The index in a file; None if it is of another corpus or recipe. Raises `Unusable` and what parsing raises.

    `expected`: facts that it must have.
    """
    length = int.from_bytes(file.read(LENGTH_BYTES), "little")
    if not 0 < length <= MAX_HEADER_BYTES:
        raise Unusable(f"header of {length} bytes")
    header = json.loads(file.read(length))
    facts = json.loads(header.pop(METADATA)["index"])
    if facts["key"] != key:
        return None
    checksum = facts.pop("xxh3")
    total, arrays = xxhash.xxh3_64(_canonical(header, facts)), {}
    left = os.fstat(file.fileno()).st_size - length - LENGTH_BYTES
    for name, entry in header.items():  # in the order of the file
        kind, shape = np.dtype(NUMPY[entry["dtype"]]), [int(size) for size in entry["shape"]]
        nbytes = math.prod(shape) * kind.itemsize
        if min(shape, default=0) < 0 or nbytes > left:
            raise Unusable(f"{name} is longer than the file")
        left -= nbytes
        array = np.fromfile(file, np.uint8, nbytes)
        total.update(array.data)
        arrays[name] = array.view(kind).reshape(shape)
    if left or total.hexdigest() != checksum:
        raise Unusable("checksum mismatch")
    _require({name: facts[name] for name in expected} == expected, "families or modalities")
    return _checked(arrays, facts)


def _checked(arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> Index:
    """The index of these arrays, all of whose positions are within bounds."""
    ends, data = arrays["id_ends"], arrays["id_bytes"]
    count = len(ends) - 1
    _require(ends.dtype == np.int32 and ends[0] == 0 and ends[-1] == len(data) and (np.diff(ends) >= 0).all(), "ids")
    ids = pa.Array.from_buffers(pa.string(), count, [None, pa.py_buffer(ends), pa.py_buffer(data)])
    ids.validate(full=True)
    _require(find_fault(pa.chunked_array([ids]), ["clip_id"]) is None, "ids")
    collections = _texts(facts["collections"])
    held_out, collection, window = arrays["held_out"], arrays["collection"], arrays.get("window")
    _check_array("held_out", held_out, bool, count)
    _check_array("collection", collection, np.int32, count, 0, len(collections))
    if window is not None:
        _check_array("window", window, np.int64, count, 0)
    family, text = facts["latent_family"], facts["text_family"]
    groups = {name: latent_group(family, name) for name in _texts(facts["modalities"])} | {"text": text_group(text)}
    streams = {name: _extents(name, group, arrays, facts, count) for name, group in groups.items()}
    return Index(
        latent_family=family,
        text_family=text,
        clip_ids=ClipIds(ids),
        held_out=held_out,
        collections=collections,
        collection=collection,
        text=streams.pop("text"),
        latents=streams,
        window=window,
    )


def _extents(stream: str, group: str, arrays: dict[str, np.ndarray], facts: dict[str, Any], count: int) -> Extents:
    shards, dtypes = _texts(facts["shards"][stream]), _texts(facts["dtypes"][stream])
    own: dict[str, Any] = {name: arrays[f"{stream}.{name}"] for name in OF_EXTENTS}
    kinds = arrays[f"{stream}.kinds"]
    _require(all(map(is_shard, shards)) and set(dtypes) <= set(DTYPES), f"{stream}: shards or dtypes")
    _require(kinds.dtype == np.int64 and kinds.ndim == 2 and kinds.shape[1] == (4 if stream == "text" else 6), stream)
    _require(len(kinds) > 0 and kinds.min() >= 0, f"{stream}.kinds")
    _require(not len(dtypes) or kinds[:, -2].max() < len(dtypes), f"{stream}.kinds")
    bounds = {"shard": (-1, len(shards)), "kind": (0, len(kinds)), "offset": (0, None)}
    for name, kind in OF_EXTENTS.items():
        _check_array(f"{stream}.{name}", own[name], kind, count, *bounds.get(name, (None, None)))
    return Extents(group, shards, dtypes, kinds=kinds, **own)


def _check_array(
    name: str, array: np.ndarray, kind: Any, count: int, least: int | None = None, end: int | None = None
) -> None:
    """Raise `Unusable` unless it has this dtype and length, and values from `least` to below `end`."""
    _require(array.dtype == kind and array.shape == (count,), name)
    if count and kind is bool:
        _require(array.view(np.uint8).max() <= 1, name)
    if count and least is not None:
        _require(array.min() >= least and (end is None or array.max() < end), name)


def _require(is_so: Any, what: str) -> None:
    if not is_so:
        raise Unusable(f"{what} are not those of an index")


def _texts(values: Any) -> list[str]:
    _require(isinstance(values, list) and all(isinstance(value, str) for value in values), "names")
    return list(values)
