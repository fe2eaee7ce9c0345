"""Verification of the payloads and shards that one Parquet part refers to."""

import json
import tarfile
from collections.abc import Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from openuni.manifests.contracts.schema import EXTENT_FIELDS
from openuni.manifests.corpus.clip_list import WITHIN
from openuni.manifests.corpus.layout import CLIPS, in_folder, operator_of, visible_group
from openuni.manifests.storage.store import Store
from openuni.manifests.video.source_file import BYTE_RANGE, CalledFile

READ_BYTES = 16 * 1024**2  # read at a time, which bounds the memory of a thread
EXTENT = [field.name for field in EXTENT_FIELDS]
MAX_HEADER_BYTES = 100 * 1024**2  # limit of the safetensors format
Entry = tuple[str, tuple[int, int]]  # name of a tensor (empty in tar files), offset and length


class Extents(NamedTuple):
    """The payloads that the rows of a part refer to; arrays of the same length."""

    row: np.ndarray  # int64, row of the part
    field: list[str]  # modality, or "" for latents and text
    shard: list[str]  # name of the file; relative to the corpus for sources inside it
    offset: np.ndarray  # int64
    nbytes: np.ndarray  # int64
    xxh3: np.ndarray  # uint64

    def take(self, indices: np.ndarray) -> "Extents":
        """The payloads with these indices."""
        names = ([values[index] for index in indices.tolist()] for values in (self.field, self.shard))
        field, shard = names
        return Extents(self.row[indices], field, shard, self.offset[indices], self.nbytes[indices], self.xxh3[indices])


class BadPayload(NamedTuple):
    """A payload that is damaged, or missing."""

    row: int
    shard: str
    kind: str  # payload, reference, shard
    reason: str


class PayloadCheck(NamedTuple):
    """The result for one part."""

    payloads: int
    nbytes: int
    bad: list[BadPayload]
    bad_index: list[tuple[str, str]]  # shard and what is wrong with its headers; payloads are read without them


def extents_of(rows: pa.Table, folder: str) -> Extents:
    """The payloads of all rows of a part in `folder`."""
    if visible_group(folder) == CLIPS:
        return _sources(rows)
    operator = operator_of(visible_group(folder))
    columns: dict[str, pa.Array] = {}
    if operator is not None and operator in rows.column_names:
        struct = rows.column(operator).combine_chunks()
        for field in struct.type:
            if pa.types.is_struct(field.type) and field.type.get_field_index("shard") >= 0:
                columns[field.name] = pc.struct_field(struct, field.name)
    elif operator is None and set(EXTENT) <= set(rows.column_names):
        columns[""] = rows.select(EXTENT).to_struct_array().combine_chunks()
    found = [_valid(name, column) for name, column in columns.items()]
    return _joined(found)


def _valid(name: str, column: pa.StructArray) -> Extents:
    shard = pc.struct_field(column, "shard")
    present = np.flatnonzero(pc.is_valid(shard).to_numpy(zero_copy_only=False))
    kept = column.take(pa.array(present))
    values = {key: pc.struct_field(kept, key) for key in EXTENT}
    numbers = {key: pc.fill_null(values[key], 0).to_numpy(zero_copy_only=False) for key in EXTENT[1:]}
    return Extents(present, [name] * len(present), values["shard"].to_pylist(), **numbers)


def _sources(rows: pa.Table) -> Extents:
    """Videos of clips that lie in shards of the corpus. Their checksum is verified as the importer's payload."""
    sources = rows.column("source").to_pylist() if "source" in rows.column_names else []
    found = []
    for row, source in enumerate(sources):
        match = BYTE_RANGE.search(source or "")
        if match and source.startswith(WITHIN):
            first, last = int(match[1]), int(match[2])
            digest = int(match[3], 16) if match[3] else 0
            found.append((row, source[len(WITHIN) : match.start()], first, last + 1 - first, digest))
    rows_at, offset, nbytes = (np.array([one[position] for one in found], np.int64) for position in (0, 2, 3))
    xxh3 = np.array([one[4] for one in found], np.uint64)
    return Extents(rows_at, ["source"] * len(found), [one[1] for one in found], offset, nbytes, xxh3)


def _joined(parts: list[Extents]) -> Extents:
    empty = np.zeros(0, np.int64)
    if not parts:
        return Extents(empty, [], [], empty, empty, empty.astype(np.uint64))
    names = ([name for part in parts for name in getattr(part, key)] for key in ("field", "shard"))
    field, shard = names
    row, offset, nbytes, xxh3 = (
        np.concatenate([getattr(part, key) for part in parts]) for key in ("row", "offset", "nbytes", "xxh3")
    )
    return Extents(row, field, shard, offset, nbytes, xxh3)


def check_payloads(
    store: Store,
    folder: str,
    clip_ids: list[str],
    extents: Extents,
    chosen: np.ndarray | None,
    misplaced: Mapping[str, str] = MappingProxyType({}),
) -> PayloadCheck:
    """Verify shard references of all payloads, and the checksums of the chosen ones (indices; None: all).

    `clip_ids`: of the rows. The headers of a shard are verified if all payloads are. `misplaced`: shards that are in
    another folder -> their names.
    """
    bad: list[BadPayload] = []
    bad_index: list[tuple[str, str]] = []
    payloads = nbytes = 0
    to_read = set(range(len(extents.row)) if chosen is None else chosen.tolist())
    is_clips = visible_group(folder) == CLIPS
    for shard, indices in _by_shard(extents):
        name = shard if is_clips else misplaced.get(shard, in_folder(folder, shard))
        plain = is_clips or "/" not in shard
        size = _size(store, name) if plain and store.is_name(name) else None
        if size is None:
            kind = "shard" if plain else "reference"
            reason = "the file is missing" if plain else f'the row refers to "{shard}", which is no file of its folder'
            bad += [BadPayload(int(extents.row[index]), shard, kind, reason) for index in indices]
            continue
        for index in indices:
            row, offset, length = int(extents.row[index]), int(extents.offset[index]), int(extents.nbytes[index])
            if offset < 0 or length < 0 or offset + length > size:
                reason = f"no {length:,} bytes at offset {offset:,}: the file has {size:,} bytes"
                bad.append(BadPayload(row, shard, "payload", reason))
            elif index in to_read and not is_clips:
                payloads, nbytes = payloads + 1, nbytes + length
                if _checksum(store, name, offset, length) != int(extents.xxh3[index]):
                    bad.append(BadPayload(row, shard, "payload", f"checksum mismatch at offset {offset:,}"))
        if chosen is None and not is_clips:
            is_tar = shard.endswith(".tar")  # whose headers have checksums of their own; tensors are named by clip
            keys = ["" if is_tar else clip_ids[int(extents.row[index])] for index in indices]
            places = zip(extents.offset[indices].tolist(), extents.nbytes[indices].tolist(), strict=True)
            if problem := _index_problem(store, name, size, set(zip(keys, places, strict=True))):
                bad_index.append((name, problem))
    return PayloadCheck(payloads, nbytes, bad, bad_index)


def _by_shard(extents: Extents) -> Iterator[tuple[str, list[int]]]:
    """Each shard and the indices of its payloads, in the order of the file."""
    groups: dict[str, list[int]] = {}
    for index, shard in enumerate(extents.shard):
        groups.setdefault(shard, []).append(index)
    for shard, indices in groups.items():
        yield shard, sorted(indices, key=lambda index: int(extents.offset[index]))


def _size(store: Store, name: str) -> int | None:
    """Size of a file, None if it is missing."""
    try:
        return store.nbytes(name)
    except FileNotFoundError:
        return None


def _checksum(store: Store, name: str, offset: int, nbytes: int) -> int:
    """xxh3 of a byte range; -1 if it is shorter."""
    digest = xxhash.xxh3_64()
    for start in range(offset, offset + nbytes, READ_BYTES):
        data = store.read_range(name, start, min(READ_BYTES, offset + nbytes - start))
        digest.update(data)
        if len(data) < min(READ_BYTES, offset + nbytes - start):
            return -1
    return digest.intdigest()


# ---------------------------------------------------------------------- headers of shards


def _index_problem(store: Store, name: str, size: int, wanted: set[Entry]) -> str:
    """What is wrong with the headers of a shard, which other programs read; empty if nothing.

    `wanted`: every payload with a row. Payloads whose rows were deleted may be there too.
    """
    try:
        found = set(_tar_members(store, name, size) if name.endswith(".tar") else _tensors(store, name, size))
    except (tarfile.TarError, ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        return f"its headers are damaged: {str(error)[:200]}"
    lost = len(wanted - found)
    return f"its headers do not list {lost:,} of {len(wanted):,} payloads" if lost else ""


def _tar_members(store: Store, name: str, size: int) -> Iterator[Entry]:
    end = 0
    with tarfile.open(fileobj=CalledFile(partial(store.read_range, name), size), mode="r:") as tar:
        for member in tar:
            yield "", (member.offset_data, member.size)
            end = member.offset_data + member.size + (-member.size % tarfile.BLOCKSIZE)
    if end + 2 * tarfile.BLOCKSIZE != size:
        raise ValueError(f"the list of members ends at {end:,} of {size:,} bytes")


def _tensors(store: Store, name: str, size: int) -> Iterator[Entry]:
    header_bytes = int.from_bytes(store.read_range(name, 0, 8), "little")
    if header_bytes > min(size - 8, MAX_HEADER_BYTES):
        raise ValueError(f"a header of {header_bytes:,} bytes in a file of {size:,}")
    header = json.loads(store.read_range(name, 8, header_bytes))
    if not isinstance(header, dict):
        raise ValueError("the header is not a table")
    for key, entry in header.items():
        if key != "__metadata__":
            start, end = entry["data_offsets"]
            width = {"F32": 4, "F16": 2, "BF16": 2}[entry["dtype"]]
            if not 0 <= start <= end <= size - 8 - header_bytes or int(np.prod(entry["shape"])) * width != end - start:
                raise ValueError(f'size or position of "{key[:80]}"')
            yield key, (8 + header_bytes + start, end - start)
