"""Index of the latents and text embeddings of a corpus, as arrays that scale to millions of clips."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import xxhash

from openuni.manifests.contracts.schema import clip_schema
from openuni.manifests.corpus.layout import latent_group, text_group
from openuni.manifests.corpus.parts.part_listing import relisted
from openuni.manifests.corpus.payload_reader import Payload, PayloadReader
from openuni.manifests.corpus.splits import require_complete_splits, split_group_names
from openuni.manifests.errors import OpenUniError, did_you_mean
from openuni.training.data.clip_ids import ROWS_AT_A_TIME, ClipIds
from openuni.training.data.extents import Allocate, Extents, all_finite, new_bytes, read_extents
from openuni.training.tasks import TEXT

if TYPE_CHECKING:
    from openuni.manifests.corpus.corpus import Corpus
    from openuni.training.data.captions import Captions
    from openuni.training.data.subjects import Subjects


class TensorError(OpenUniError):
    """Latents or a text embedding of a clip cannot be read or used."""


class DamagedTensor(TensorError):
    """The stored bytes of one sample are missing, changed or not finite. Other errors of reading may pass."""

    def __init__(self, message: str, clip: int) -> None:
        super().__init__(message)
        self.clip = clip  # its number in the index


@dataclass(frozen=True, eq=False)
class Index:
    """The trainer's view of a corpus: samples with their split, and the extents of their tensors.

    A sample is a kept clip, or a window of one in families with windows. All windows of a clip have its split and text.
    """

    latent_family: str
    text_family: str
    clip_ids: Sequence[str]  # [N], sorted; of clips with several windows, once per window
    held_out: np.ndarray  # bool [N]
    collections: list[str]  # names, sorted; "" for clips without a collection
    collection: np.ndarray  # int32 [N], index into `collections`
    latents: dict[str, Extents]  # by modality
    text: Extents
    captions: "Captions | None" = None  # for models that generate text
    window: np.ndarray | None = None  # int64 [N], number of the window in its clip; None without windows
    subjects: "Subjects | None" = None  # see `openuni.training.data.subjects`

    @cached_property
    def sample_ids(self) -> Sequence[str]:
        """[N]: the clip id, and for windows `CLIP_ID#WINDOW`."""
        if self.window is None:
            return self.clip_ids
        return [f"{clip}#{window}" for clip, window in zip(self.clip_ids, self.window.tolist(), strict=True)]

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
                    f"{self.sample_ids[clip]}: {extents.shape[clip].tolist()} and {shapes[clip].tolist()}. "
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
        place = f"clip {self.sample_ids[clips[0]]}: {what}"
        try:
            tensors = extents.place(clips, allocate)
        except OpenUniError as error:
            raise TensorError(f"{place}: {error}") from error
        buffers = [memoryview(one.view(torch.uint8).numpy().reshape(-1)) for one in tensors]
        for position, reason in reader.read_into(payloads, buffers).items():
            raise self._unreadable(clips[position], what, payloads[position], reason)
        for position, buffer in enumerate(buffers):
            if reader.verify and not extents.finite[clips[position]] and not all_finite(buffer, tensors.dtype):
                raise DamagedTensor(
                    f"clip {self.sample_ids[clips[position]]}: {what} in {payloads[position].name} have NaN or "
                    "infinite values. Re-encode the clip, or exclude it.",
                    clips[position],
                )
        return tensors

    def _unreadable(self, clip: int, what: str, payload: Payload, error: Exception) -> TensorError:
        place = f"clip {self.sample_ids[clip]}: {what}"
        if isinstance(error, OpenUniError):
            found: TensorError = DamagedTensor(f"{place}: {error}", clip)
        else:
            found = TensorError(
                f"{place}: {payload.name} cannot be read: {error}. Restore the file, or delete its .parquet part and "
                "recompute it with: openuni run. Training can only resume on the same latents and texts."
            )
        found.__cause__ = error
        return found

    def digest(self) -> str:
        """Fingerprint (16 hex digits) of all clips, splits and tensors."""
        total, ids = xxhash.xxh3_64(), self.sample_ids
        for start in range(0, len(ids), ROWS_AT_A_TIME):
            total.update((("," if start else "") + ",".join(ids[start : start + ROWS_AT_A_TIME])).encode())
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
        if self.subjects is not None:
            total.update(self.subjects.digest())
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
    table = _of_collections(_drop_test_split(_kept_clips(corpus)), collections)
    ids = ClipIds(table["clip_id"].combine_chunks())
    names = pc.fill_null(table["collection"], "").combine_chunks()
    known = sorted(set(names.unique().to_pylist()))
    found = Index(
        latent_family=latent_family,
        text_family=text_family,
        clip_ids=ids,
        held_out=_held_out_clips(table, validation_share),
        collections=known,
        collection=pc.index_in(names, value_set=pa.array(known, pa.string())).to_numpy(zero_copy_only=False),
        latents={name: read_extents(corpus, latent_group(latent_family, name), ids, 4) for name in modalities},
        text=read_extents(corpus, text_group(text_family), ids, 2),
    )
    ids.forget()
    return _with_windows(found) if "windows" in corpus.families()[latent_family] else found


def _kept_clips(corpus: "Corpus") -> pa.Table:
    """The kept clips, sorted by id, with what their split and collection depend on."""
    columns = ["clip_id", "source", "origin", "collection", "split"]
    table = relisted(lambda: pa.concat_tables(corpus.checked_tables("clips", columns, clip_schema())))
    kept = corpus.kept_clip_id_array()
    rows = np.sort(ClipIds(table["clip_id"].combine_chunks()).positions(kept))
    if len(rows) != len(table):
        table = table.take(pa.array(rows))
    order = pc.sort_indices(table, sort_keys=[("clip_id", "ascending")])
    return table.take(order)


def _held_out_clips(clips: pa.Table, share: float) -> np.ndarray:
    """`held_out` of the clips; computed once per source and split."""
    names, splits = split_group_names(clips), pc.fill_null(clips["split"], "").combine_chunks().dictionary_encode()
    count = max(len(splits.dictionary), 1)
    pairs = names.indices.to_numpy().astype(np.int64) * count + splits.indices.to_numpy()
    distinct, which = np.unique(pairs, return_inverse=True)
    sources = names.dictionary.take(pa.array(distinct // count)).to_pylist()
    return held_out(sources, splits.dictionary.take(pa.array(distinct % count)).to_pylist(), share)[which]


def _with_windows(clips: Index) -> Index:
    """The index of all windows of the clips. Raises `OpenUniError` if streams of a clip differ in their number."""
    counts = np.zeros(len(clips.clip_ids), np.int64)
    for name, extents in clips.latents.items():
        own = extents.windows.counts if extents.windows is not None else extents.present.astype(np.int64)
        differing = np.flatnonzero((own > 0) & (counts > 0) & (own != counts))
        if len(differing):
            clip = differing[0]
            raise OpenUniError(
                f"{len(differing)} clips have another number of {name} windows than of their other streams, first "
                f"{clips.clip_ids[clip]}: {own[clip]} and {counts[clip]}. Re-encode the corpus."
            )
        counts = np.maximum(counts, own)
    counts = np.maximum(counts, 1)  # a clip without latents stays in the counts
    clip = np.repeat(np.arange(len(counts)), counts)
    window = np.arange(len(clip)) - np.repeat(np.cumsum(counts) - counts, counts)
    return replace(
        clips,
        clip_ids=ClipIds(pa.array(clips.clip_ids, pa.string()).take(pa.array(clip))),
        held_out=clips.held_out[clip],
        collection=clips.collection[clip],
        latents={name: extents.expanded(clip, window) for name, extents in clips.latents.items()},
        text=clips.text.expanded(clip, window),
        window=window,
    )


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
