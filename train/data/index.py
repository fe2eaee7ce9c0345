"""Index of the latents and text embeddings of a corpus, as arrays that scale to millions of clips."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import xxhash

from openuni.manifests.contracts.schema import clip_schema
from openuni.manifests.corpus.layout import latent_group, text_group
from openuni.manifests.corpus.payload_reader import Payload, PayloadReader
from openuni.manifests.corpus.splits import require_complete_splits, split_group_names
from openuni.manifests.errors import OpenUniError, did_you_mean
from openuni.training.tasks import TEXT

if TYPE_CHECKING:
    from openuni.manifests.corpus.corpus import Corpus
    from openuni.training.data.captions import Captions

COLUMNS = ("clip_id", "status", "shard", "offset", "nbytes", "shape", "dtype", "xxh3", "absmax")
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


# of each stored dtype: an integer of its size, and the bits of the exponent, all set in NaN and infinity
EXPONENTS = {
    torch.float16: (np.uint16, 0x7C00),
    torch.bfloat16: (np.uint16, 0x7F80),
    torch.float32: (np.uint32, 0x7F800000),
}
FINITE_CHECK_BYTES = 1 << 17  # at a time: stays in the cache


Allocate = Callable[[int], torch.Tensor]  # memory of a number of bytes: uint8, contiguous, in RAM


def new_bytes(count: int) -> torch.Tensor:
    """Memory that nothing else uses."""
    return torch.empty(count, dtype=torch.uint8)


class TensorError(OpenUniError):
    """Latents or a text embedding of a clip cannot be read or used."""


@dataclass(frozen=True, eq=False)
class Extents:
    """Tensors of one column group, by clip number. Arrays have length N; a clip without a tensor has shard -1."""

    group: str
    shards: list[str]
    dtypes: list[str]
    shard: np.ndarray  # int32 [N], index into `shards`
    offset: np.ndarray  # int64 [N], bytes from the start of the shard
    nbytes: np.ndarray  # int64 [N]
    xxh3: np.ndarray  # uint64 [N]
    dtype: np.ndarray  # int8 [N], index into `dtypes`
    shape: np.ndarray  # int32 [N, dimensions]
    finite: np.ndarray  # bool [N], whether their largest value was recorded as finite when they were written

    @cached_property
    def present(self) -> np.ndarray:
        """bool [N]."""
        return self.shard >= 0

    def payload(self, clip: int) -> Payload:
        """Where the tensor of a clip lies."""
        numbers = (int(values[clip]) for values in (self.offset, self.nbytes, self.xxh3))
        return Payload(self.group, self.shards[self.shard[clip]], *numbers)

    def place(self, clips: Sequence[int], allocate: Allocate) -> torch.Tensor:
        """Memory for the tensors of clips of one shape and dtype, as they are stored: [B, *shape].

        Raises `OpenUniError` if they differ.
        """
        kinds = {(tuple(self.shape[clip].tolist()), int(self.dtype[clip])) for clip in clips}
        if len(kinds) != 1:
            raise OpenUniError(f"{self.group}: tensors of different shapes or dtypes: {sorted(kinds)}")
        (shape, number), *_ = kinds
        dtype = DTYPES[self.dtypes[number]]
        return allocate(len(clips) * math.prod(shape) * dtype.itemsize).view(dtype).reshape(len(clips), *shape)


@dataclass(frozen=True, eq=False)
class Index:
    """The trainer's view of a corpus: kept clips with their split, and the extents of their tensors."""

    latent_family: str
    text_family: str
    clip_ids: list[str]  # [N], sorted
    held_out: np.ndarray  # bool [N]
    collections: list[str]  # names, sorted; "" for clips without a collection
    collection: np.ndarray  # int32 [N], index into `collections`
    latents: dict[str, Extents]  # by modality
    text: Extents
    captions: "Captions | None" = None  # for models that generate text

    @cached_property
    def present(self) -> np.ndarray:
        """uint64 [N]: bit i is set if the clip has latents of modality i of `latents`; the next bit, a target text."""
        bits = np.zeros(len(self.clip_ids), dtype=np.uint64)
        for position, extents in enumerate(self.latents.values()):
            bits |= extents.present.astype(np.uint64) << np.uint64(position)
        if self.captions is not None:
            bits |= self.captions.fits.astype(np.uint64) << np.uint64(len(self.latents))
        return bits

    def streams(self, bits: int) -> frozenset[str]:
        """Streams encoded in `bits` (a value of `present`): modalities, and "text" if the clip has a target text."""
        return frozenset(name for position, name in enumerate([*self.latents, TEXT]) if bits >> position & 1)

    @cached_property
    def shapes(self) -> np.ndarray:
        """int32 [N, 4]: the latent shape [C, T, H, W] shared by all streams of a clip; zeros without latents.

        Raises `OpenUniError` if streams of a clip differ in shape.
        """
        shapes = np.zeros((len(self.clip_ids), 4), dtype=np.int32)
        for name, extents in self.latents.items():
            known = extents.present & shapes.any(axis=1)
            differing = np.flatnonzero(known & (extents.shape != shapes).any(axis=1))
            if len(differing):
                clip = differing[0]
                raise OpenUniError(
                    f"{len(differing)} clips have {name} latents of another shape than their other streams, first "
                    f"{self.clip_ids[clip]}: {extents.shape[clip].tolist()} and {shapes[clip].tolist()}. "
                    f"Re-encode the corpus."
                )
            shapes[extents.present] = extents.shape[extents.present]
        return shapes

    def read_latents(
        self, reader: PayloadReader, modality: str, clips: Sequence[int], allocate: Allocate = new_bytes
    ) -> torch.Tensor:
        """Latents of a modality of clips of one shape: [B, C, T, H, W], in the dtype in which they are stored.

        Raises `TensorError`.
        """
        return self._read(reader, self.latents[modality], f"{modality} latents", clips, allocate)

    def read_text(self, reader: PayloadReader, clip: int) -> torch.Tensor:
        """Text embedding of clip number `clip`, float32 [L, D]. Raises `TensorError`."""
        return self._read(reader, self.text, "text embedding", [clip], new_bytes)[0].float()

    def _read(
        self, reader: PayloadReader, extents: Extents, what: str, clips: Sequence[int], allocate: Allocate
    ) -> torch.Tensor:
        payloads = [extents.payload(clip) for clip in clips]
        place = f"clip {self.clip_ids[clips[0]]}: {what}"
        try:
            tensors = extents.place(clips, allocate)
        except OpenUniError as error:
            raise TensorError(f"{place}: {error}") from error
        buffers = [memoryview(one.view(torch.uint8).numpy().reshape(-1)) for one in tensors]
        for position, reason in reader.read_into(payloads, buffers).items():
            raise self._unreadable(f"clip {self.clip_ids[clips[position]]}: {what}", payloads[position], reason)
        for position, buffer in enumerate(buffers):
            if reader.verify and not extents.finite[clips[position]] and not all_finite(buffer, tensors.dtype):
                raise TensorError(
                    f"clip {self.clip_ids[clips[position]]}: {what} in {payloads[position].name} have NaN or infinite "
                    "values. Re-encode the clip, or exclude it."
                )
        return tensors

    def _unreadable(self, place: str, payload: Payload, error: Exception) -> TensorError:
        if isinstance(error, OpenUniError):
            found = TensorError(f"{place}: {error}")
        else:
            found = TensorError(
                f"{place}: {payload.name} cannot be read: {error}. Restore the file, or delete its .parquet part and "
                "recompute it with: openuni run. Training can only resume on the same latents and texts."
            )
        found.__cause__ = error
        return found

    def digest(self) -> str:
        """Fingerprint (16 hex digits) of all clips, splits and tensors."""
        total = xxhash.xxh3_64(",".join(self.clip_ids).encode())
        total.update(self.held_out.tobytes())
        if self.collections != [""]:
            total.update(",".join(self.collections).encode())
            total.update(self.collection.tobytes())
        for name, extents in [*self.latents.items(), ("text", self.text)]:
            total.update(name.encode())
            total.update(extents.present.tobytes())
            total.update(extents.xxh3.tobytes())
        if self.captions is not None:
            total.update(self.captions.digest())
        return total.hexdigest()


def open_index(
    corpus: "Corpus",
    modalities: tuple[str, ...],
    latents: str,
    text: str,
    validation_share: float,
    collections: tuple[str, ...] = (),
) -> Index:
    """Index of the kept clips, of all or some collections. `latents`, `text`: as in the recipe."""
    require_complete_splits(corpus)
    latent_family = choose_family("latent", corpus.families(), latents)
    text_family = choose_family("text", corpus.text_families(), text)
    kept = pa.array(sorted(corpus.kept_clip_ids()), pa.string())
    columns = ["clip_id", "source", "origin", "collection", "split"]
    table = corpus.dataset("clips", clip_schema()).to_table(columns=columns)
    table = table.take(pc.index_in(kept, value_set=table["clip_id"].combine_chunks()))
    table = _of_collections(_drop_test_split(table), collections)
    kept = table["clip_id"].combine_chunks()
    names = pc.fill_null(table["collection"], "").combine_chunks()
    known = sorted(set(names.unique().to_pylist()))
    return Index(
        latent_family=latent_family,
        text_family=text_family,
        clip_ids=kept.to_pylist(),
        held_out=held_out(split_group_names(table).to_pylist(), table["split"].to_pylist(), validation_share),
        collections=known,
        collection=pc.index_in(names, value_set=pa.array(known, pa.string())).to_numpy(zero_copy_only=False),
        latents={name: _extents(corpus, latent_group(latent_family, name), kept, 4) for name in modalities},
        text=_extents(corpus, text_group(text_family), kept, 2),
    )


def all_finite(data: memoryview, dtype: torch.dtype) -> bool:
    """Whether stored values have neither NaN nor infinity; many times as fast as `torch.isfinite` of 16-bit values."""
    kind, exponent = EXPONENTS[dtype]
    values = np.frombuffer(data, kind)
    step = FINITE_CHECK_BYTES // values.itemsize
    scratch = np.empty(min(step, len(values)), kind)
    for start in range(0, len(values), step):
        part = values[start : start + step]
        if np.bitwise_and(part, exponent, out=scratch[: len(part)]).max() == exponent:
            return False
    return True


def choose_family(kind: str, families: dict[str, dict[str, Any]], wanted: str) -> str:
    """The family with that name or codec, or the only one. Raises `OpenUniError` with the available families."""
    if not families:
        raise OpenUniError(f"the corpus has no {kind} family. Run the pipeline with an [encode] section first.")
    found = [name for name, record in families.items() if not wanted or wanted in (name, record.get("codec"))]
    if len(found) == 1:
        return found[0]
    key = "latents" if kind == "latent" else kind
    if found:
        raise OpenUniError(f"the corpus has {len(found)} {kind} families. Choose data.{key} from {', '.join(found)}")
    raise OpenUniError(
        f'{kind} family "{wanted}" is not in the corpus.{did_you_mean(wanted, families)} '
        f"Available: {', '.join(families)}."
    )


def _drop_test_split(clips: pa.Table) -> pa.Table:
    """If some clips have split "validation", remove those with split "test"."""
    splits = pc.fill_null(clips["split"], "")
    if not pc.any(pc.equal(splits, "validation")).as_py():
        return clips
    return clips.filter(pc.not_equal(splits, "test"))


def _of_collections(clips: pa.Table, names: tuple[str, ...]) -> pa.Table:
    """Clips of these collections; all if empty. Raises `OpenUniError` for an unknown collection."""
    if not names:
        return clips
    there = sorted({name for name in clips["collection"].unique().to_pylist() if name})
    for name in names:
        if name not in there:
            raise OpenUniError(
                f'collection "{name}" not found in the corpus.{did_you_mean(name, there)} '
                f"Collections of kept clips: {', '.join(there) or 'none'}."
            )
    return clips.filter(pc.is_in(clips["collection"], value_set=pa.array(names, pa.string())))


def held_out(sources: list[str], splits: list[str | None], share: float) -> np.ndarray:
    """bool [N]: held-out clips.

    Clips with a split are held out unless it is "train". Others are assigned by a hash of their origin or source, so
    that all clips of a source are on the same side and adding sources does not reassign others. With four or more
    sources at least one is held out (unless `share` is 0); at least one is always trained on.
    """
    undecided = {source for source, split in zip(sources, splits, strict=True) if not split}
    places = {source: xxhash.xxh3_64_intdigest(source.encode()) / 2**64 for source in undecided}
    ordered = sorted(places, key=lambda source: (places[source], source))
    out = {source for source in ordered if places[source] < share}
    if share > 0 and len(ordered) >= 4 and not out:
        out = {ordered[0]}
    if len(out) == len(ordered) and "train" not in splits:
        out -= set(ordered[-1:])
    return np.array(
        [split != "train" if split else source in out for source, split in zip(sources, splits, strict=True)],
        dtype=bool,
    )


def _extents(corpus: "Corpus", group: str, kept: pa.Array, dimensions: int) -> Extents:
    count = len(kept)
    empty = {"shard": np.full(count, -1, np.int32), "shape": np.zeros((count, dimensions), np.int32)}
    arrays: dict[str, np.ndarray] = empty | {
        name: np.zeros(count, kind)
        for name, kind in {
            "offset": np.int64,
            "nbytes": np.int64,
            "xxh3": np.uint64,
            "dtype": np.int8,
            "finite": bool,
        }.items()
    }
    corpus.require_shards([group])
    if not corpus.parts(group):
        return Extents(group=group, shards=[], dtypes=[], **arrays)
    table = corpus.table(group, COLUMNS)
    table = table.filter(pc.equal(table["status"], "ok"))
    where = pc.index_in(table["clip_id"].combine_chunks(), value_set=kept)
    table = table.filter(pc.is_valid(where))
    where = where.drop_null().to_numpy()
    named = {name: table[name].combine_chunks().dictionary_encode() for name in ("shard", "dtype")}
    for name, codes in named.items():
        arrays[name][where] = codes.indices.to_numpy(zero_copy_only=False)
    for name in ("offset", "nbytes", "xxh3"):
        arrays[name][where] = table[name].to_numpy()
    arrays["finite"][where] = pc.fill_null(pc.is_finite(table["absmax"]), False).to_numpy()
    sizes = table["shape"].combine_chunks().flatten().to_numpy()
    if len(sizes) != len(table) * dimensions:
        raise OpenUniError(f"{group}: tensors must have {dimensions} dimensions, but the manifest differs")
    arrays["shape"][where] = sizes.reshape(-1, dimensions)
    shards, dtypes = (named[name].dictionary.to_pylist() for name in ("shard", "dtype"))
    if odd := set(dtypes) - set(DTYPES):
        raise OpenUniError(f"{group}: dtype must be one of {', '.join(DTYPES)}, got {', '.join(sorted(odd))}")
    return Extents(group=group, shards=shards, dtypes=dtypes, **arrays)
