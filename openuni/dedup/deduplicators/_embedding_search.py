"""Search for pairs of similar embeddings: exact for small corpora, with an approximate index for large ones."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from openuni.dedup.deduplicator import Deduplicator, RankedClips
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.layout import filter_group
from openuni.manifests.errors import OpenUniError

MAX_EXACT = 20_000  # number of clips up to which all pairs are compared
BATCH_ROWS = 4096
NEIGHBOURS = 16
PROBES = 8  # inverted lists searched per clip
SAMPLES_PER_LIST = 40  # minimum number of k-means samples per list
ROUNDING = 0.002  # error of cosines between float16 vectors


class EmbeddingIndex(ABC):
    """One embedding per clip, by clip number."""

    @abstractmethod
    def rows(self, clips: np.ndarray) -> np.ndarray:
        """float32 [n, D] of unit length; zeros for clips without an embedding."""

    @abstractmethod
    def similar_pairs(self, min_similarity: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Pairs of clips (int64 [n], int64 [n]) with at least this cosine, up to rounding."""


class ExactIndex(EmbeddingIndex):
    """Compares all pairs of a matrix in memory."""

    def __init__(self, batches: Iterator[tuple[np.ndarray, np.ndarray]], count: int) -> None:
        found = list(batches)
        self.matrix = np.zeros((count, found[0][1].shape[1]), np.float16)
        for numbers, vectors in found:
            self.matrix[numbers] = vectors

    def rows(self, clips: np.ndarray) -> np.ndarray:
        """See `EmbeddingIndex.rows`."""
        return _unit(self.matrix[clips].astype(np.float32))

    def similar_pairs(self, min_similarity: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """See `EmbeddingIndex.similar_pairs`."""
        for start in range(0, len(self.matrix), BATCH_ROWS):
            first = self.rows(np.arange(start, min(start + BATCH_ROWS, len(self.matrix))))
            for other in range(start, len(self.matrix), BATCH_ROWS):
                second = self.rows(np.arange(other, min(other + BATCH_ROWS, len(self.matrix))))
                left, right = np.nonzero(first @ second.T >= min_similarity)
                left, right = left + start, right + other
                yield left[left < right], right[left < right]


class IvfIndex(EmbeddingIndex):
    """An inverted-list index (faiss) with the only copy of the vectors, as float16: two bytes per component."""

    def __init__(self, corpus: Corpus, deduplicator: Deduplicator, clips: RankedClips) -> None:
        import faiss

        count = int(clips.known.sum())
        lists = max(1, int(2 * count**0.5))
        step = max(1, count // (lists * SAMPLES_PER_LIST))
        sample = np.concatenate([vectors[::step].copy() for _, vectors in iter_embeddings(corpus, deduplicator, clips)])
        width = sample.shape[1]
        self.quantizer = faiss.IndexFlatIP(width)  # keep a reference: the index only points to it
        kind = faiss.ScalarQuantizer.QT_fp16
        self.index = faiss.IndexIVFScalarQuantizer(
            self.quantizer, width, lists, kind, faiss.METRIC_INNER_PRODUCT, False
        )
        self.index.cp.spherical = True
        self.index.train(sample)
        del sample
        self.clips = np.empty(count, np.int64)  # position in the index -> clip number
        self.places = np.full(len(clips.ids), -1, np.int64)
        for numbers, vectors in iter_embeddings(corpus, deduplicator, clips):
            self.clips[self.index.ntotal : self.index.ntotal + len(numbers)] = numbers
            self.places[numbers] = np.arange(self.index.ntotal, self.index.ntotal + len(numbers))
            self.index.add(vectors)
        self.index.make_direct_map()
        self.index.nprobe = PROBES

    def rows(self, clips: np.ndarray) -> np.ndarray:
        """See `EmbeddingIndex.rows`."""
        places = self.places[clips]
        found: np.ndarray = self.index.reconstruct_batch(np.maximum(places, 0))
        found[places < 0] = 0
        return _unit(found)

    def similar_pairs(self, min_similarity: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """See `EmbeddingIndex.similar_pairs`: the nearest neighbours of each clip, in the nearest lists."""
        for start in range(0, len(self.clips), BATCH_ROWS):
            numbers = self.clips[start : start + BATCH_ROWS]
            cosines, places = self.index.search(self.rows(numbers), NEIGHBOURS + 1)
            row, column = np.nonzero((cosines >= min_similarity - ROUNDING) & (places >= 0))
            left, right = numbers[row], self.clips[places[row, column]]
            near = (self.rows(left) * self.rows(right)).sum(axis=1) >= min_similarity
            yield left[near & (left != right)], right[near & (left != right)]


def open_embeddings(corpus: Corpus, deduplicator: Deduplicator, clips: RankedClips) -> EmbeddingIndex:
    """The embeddings of all clips, in the way that their number asks for."""
    if clips.known.sum() <= MAX_EXACT:
        return ExactIndex(iter_embeddings(corpus, deduplicator, clips), len(clips.ids))
    return IvfIndex(corpus, deduplicator, clips)


def iter_embeddings(
    corpus: Corpus, deduplicator: Deduplicator, clips: RankedClips
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Clip numbers (int64 [n]) and embeddings (float32 [n, D], unit length) in stored order, batch by batch.

    Raises `OpenUniError` if the embeddings differ in length.
    """
    columns = {"clip_id": pads.field("clip_id"), "vector": pads.field(deduplicator.source_filter, deduplicator.column)}
    dataset = corpus.dataset(filter_group(deduplicator.source_filter))
    options: dict[str, Any] = {"batch_size": BATCH_ROWS, "batch_readahead": 1, "fragment_readahead": 1}
    known = clips.ids.filter(pa.array(clips.known))
    numbers_of_known = np.flatnonzero(clips.known)
    width = 0
    for batch in dataset.to_batches(columns=columns, **options):
        places = pc.index_in(batch.column("clip_id"), value_set=known)
        there = pc.is_valid(places)
        lists = batch.column("vector").filter(there)
        if not len(lists):
            continue
        values = lists.flatten().to_numpy(zero_copy_only=False)
        widths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
        width = width or int(widths[0])
        if (widths != width).any():
            name = f"{deduplicator.source_filter}.{deduplicator.column}"
            raise OpenUniError(f"{name} has vectors of different lengths; the corpus is damaged")
        yield numbers_of_known[places.drop_null().to_numpy()], _unit(values.reshape(-1, width).astype(np.float32))


def _unit(vectors: np.ndarray) -> np.ndarray:
    """float32 [n, D] scaled to unit length; zeros stay zeros, and vectors with NaN (older corpora) become zeros."""
    vectors = np.where(np.isfinite(vectors).all(axis=1, keepdims=True), vectors, np.float32(0))
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: np.ndarray = vectors / np.where(lengths > 0, lengths, 1)
    return unit
