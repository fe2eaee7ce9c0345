"""Exact search for the most similar representative of every clip, in memory independent of the number of pairs.

Clips are visited by rank, in blocks, and compared with the representatives found so far. Most pairs are dismissed by an
upper bound of their cosine, a matrix product of few columns: with the projections p of unit vectors onto the leading
principal components and the lengths r of what these leave, cos(x, y) <= p_x . p_y + r_x r_y (Cauchy-Schwarz). The
cosine of every other pair is computed in float64 from the stored vectors, each pair by itself: the projection and the
sizes of blocks and tiles decide how long the search takes, never what it finds.
"""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from openuni.dedup.deduplicator import Deduplicator, DuplicateAssignments, RankedClips
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.layout import filter_group
from openuni.manifests.errors import OpenUniError

READ_ROWS = 4096
BLOCK_ROWS = 1024  # clips that are compared at a time
TILE_ROWS = 4096  # representatives that they are compared with at a time
PAIRS_AT_ONCE = 256  # cosines computed at a time: larger arrays leave the cache
OFFERED_PAIRS = 4096
SAMPLE_ROWS = 8192  # one half determines the principal components, the other their number
WIDTHS = (32, 64, 96, 128, 192, 256)  # columns of the bounds to choose from
SLACK = 1e-4  # of products in float32, whose errors are below 1e-5
# Costs in multiplications of a matrix product, as measured: of a bound besides its own, and of a cosine
BOUND_COST, COSINE_COST = 20.0, 160_000.0
MAX_COSINE_SHARE = 1 / 256  # of a tile: beyond it, a matrix product of the whole vectors is cheaper


class EmbeddingSearch:
    """Compares the embeddings of clips by rank.

    `vectors`: float16 [N, D], of any length; a vector of zeros is not similar to any other.
    """

    def __init__(self, vectors: np.ndarray, min_similarity: float) -> None:
        self.vectors, self.min_similarity = vectors, min_similarity
        self.squares = np.empty(len(vectors))  # squared lengths
        for start in range(0, len(vectors), READ_ROWS):
            block = vectors[start : start + READ_ROWS].astype(np.float64)
            self.squares[start : start + READ_ROWS] = (block * block).sum(axis=1)
        self.bounds = self._bounds()  # float32 [N, K]; None: vectors are compared as a whole
        self.representatives = np.empty(len(vectors), np.int64)  # by rank; the first `count` are known
        self.count = 0
        self._buffer = np.empty(BLOCK_ROWS * max(TILE_ROWS, BLOCK_ROWS), np.float32)

    def run(self, progress: Callable[[float], None]) -> DuplicateAssignments:
        """The most similar earlier representative of every clip, or the clip itself. `progress`: share done, 0..1."""
        total = len(self.vectors)
        representative = np.arange(total, dtype=np.int64)
        similarity = np.full(total, np.nan)
        for start in range(0, total, BLOCK_ROWS):
            stop = min(start + BLOCK_ROWS, total)
            nearest = self._visit(np.arange(start, stop))
            found = np.flatnonzero(nearest.clip >= 0)
            representative[start + found] = nearest.clip[found]
            similarity[start + found] = nearest.cosine[found]
            progress((stop / total) ** 2)
        return DuplicateAssignments(representative, similarity)

    def cosines(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Cosines of pairs of clips (int64 [n] each), float64 [n], exact but for the rounding of float64.

        Exactly 1 for equal vectors; 0 for vectors of zeros.
        """
        found = np.empty(len(left))
        for start in range(0, len(left), PAIRS_AT_ONCE):
            part = slice(start, start + PAIRS_AT_ONCE)
            products = self.vectors[left[part]].astype(np.float64)
            products *= self.vectors[right[part]]
            squares = self.squares[left[part]] * self.squares[right[part]]
            found[part] = products.sum(axis=1) / np.sqrt(np.where(squares > 0, squares, 1))
        return np.minimum(found, 1)

    def units(self, clips: np.ndarray) -> np.ndarray:
        """The vectors of clips (int64 [n]) scaled to length 1, float32 [n, D]; zeros stay zeros."""
        squares = self.squares[clips, None]
        scaled: np.ndarray = self.vectors[clips] * (1 / np.sqrt(np.where(squares > 0, squares, 1))).astype(np.float32)
        return scaled

    def _visit(self, clips: np.ndarray) -> "_Nearest":
        """Compare a block of clips with all representatives before them, and add its own to these."""
        nearest = _Nearest(len(clips))
        bounds = None if self.bounds is None else self.bounds[clips]
        for first in range(0, self.count, TILE_ROWS):
            tile = slice(first, min(first + TILE_ROWS, self.count))
            others = self.representatives[tile]
            known = None if self.bounds is None else self.bounds[tile]
            self._offer(nearest, clips, others, *self._candidates(clips, others, bounds, known))
        near = np.zeros((len(clips), len(clips)), bool)
        near[self._candidates(clips, clips, bounds, bounds)] = True
        near = np.triu(near, 1)
        added = []
        for place in np.flatnonzero(nearest.clip < 0).tolist():
            if nearest.clip[place] < 0:  # still: earlier clips of the block may be similar
                added.append(place)
                later = np.flatnonzero(near[place])
                self._offer(nearest, clips, clips[place : place + 1], later, np.zeros_like(later))
        end = self.count + len(added)
        self.representatives[self.count : end] = clips[added]
        if self.bounds is not None and bounds is not None:
            self.bounds[self.count : end] = bounds[added]  # rows of clips that were visited are free
        self.count = end
        return nearest

    def _offer(
        self, nearest: "_Nearest", clips: np.ndarray, others: np.ndarray, left: np.ndarray, right: np.ndarray
    ) -> None:
        """Compute the cosines of pairs (positions in `clips` and in `others`), and keep the best of each clip."""
        for start in range(0, len(left), OFFERED_PAIRS):
            rows, columns = left[start : start + OFFERED_PAIRS], right[start : start + OFFERED_PAIRS]
            cosines = self.cosines(clips[rows], others[columns])
            similar = cosines >= self.min_similarity
            nearest.offer(rows[similar], others[columns[similar]], cosines[similar])

    def _candidates(
        self, clips: np.ndarray, others: np.ndarray, bounds: np.ndarray | None, other_bounds: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Positions (int64 [n], int64 [n]) of all pairs that may be similar, in order of rank."""
        size = len(clips) * len(others)
        product = self._buffer[:size].reshape(len(clips), len(others))
        if bounds is not None and other_bounds is not None:
            places = _at_least(np.matmul(bounds, other_bounds.T, out=product), self.min_similarity - SLACK)
            if len(places) <= MAX_COSINE_SHARE * size:
                return np.divmod(places, len(others))
        np.matmul(self.units(clips), self.units(others).T, out=product)
        return np.divmod(_at_least(product, self.min_similarity - SLACK), len(others))

    def _bounds(self) -> np.ndarray | None:
        """Rows whose products are upper bounds of cosines, with the number of columns that costs least."""
        total, dimensions = self.vectors.shape
        if total <= TILE_ROWS:
            return None
        chosen = np.linspace(0, total - 1, min(SAMPLE_ROWS, total)).astype(np.int64)
        fitted, tested = self.units(chosen[::2]), self.units(chosen[1::2])
        moments = fitted.T.astype(np.float64) @ fitted
        components = np.ascontiguousarray(np.linalg.eigh(moments)[1][:, ::-1], np.float32)  # the largest first
        best_cost, best_width = dimensions + BOUND_COST, 0
        for width in WIDTHS:
            if width > dimensions:
                break
            rows = _bound_rows(tested, components[:, : width - 1])
            share = float((rows @ rows.T >= self.min_similarity - SLACK).mean()) - 1 / len(rows)  # less the diagonal
            cost = width + BOUND_COST + (share * COSINE_COST if share < MAX_COSINE_SHARE else dimensions)
            if cost < best_cost:
                best_cost, best_width = cost, width
        if not best_width:
            return None
        found = np.empty((total, best_width), np.float32)
        for start in range(0, total, READ_ROWS):
            clips = np.arange(start, min(start + READ_ROWS, total))
            found[clips] = _bound_rows(self.units(clips), components[:, : best_width - 1])
        return found


class _Nearest:
    """For each clip of a block the most similar of the clips offered; of equally similar ones, the first by rank."""

    def __init__(self, count: int) -> None:
        self.clip, self.cosine = np.full(count, -1, np.int64), np.full(count, -np.inf)

    def offer(self, rows: np.ndarray, clips: np.ndarray, cosines: np.ndarray) -> None:
        """Offer pairs; they follow those offered before by rank."""
        order = np.lexsort((clips, -cosines, rows))
        rows, clips, cosines = rows[order], clips[order], cosines[order]
        first = np.flatnonzero(np.diff(rows, prepend=-1))
        better = first[cosines[first] > self.cosine[rows[first]]]
        self.clip[rows[better]], self.cosine[rows[better]] = clips[better], cosines[better]


def read_embeddings(corpus: Corpus, deduplicator: Deduplicator, clips: RankedClips) -> np.ndarray:
    """The embeddings of the clips that have one, by rank: float16 [n, D].

    Vectors that float16 does not hold exactly are scaled to length 1 before they are rounded; those with values that
    are not finite (older corpora) become zeros. Raises `OpenUniError` if the embeddings differ in length.
    """
    dataset = corpus.dataset(filter_group(deduplicator.source_filter))
    known = clips.ids.filter(pa.array(clips.known))
    ranks = pc.index_in(dataset.to_table(columns=["clip_id"])["clip_id"], value_set=known).combine_chunks()
    vector = {"vector": pads.field(deduplicator.source_filter, deduplicator.column)}
    found, start = np.empty((0, 0), np.float16), 0
    for batch in dataset.to_batches(columns=vector, batch_size=READ_ROWS, batch_readahead=1, fragment_readahead=1):
        rank = ranks.slice(start, len(batch))
        start += len(batch)
        there = pc.and_(pc.is_valid(rank), pc.is_valid(batch["vector"]))
        lists, rows = batch["vector"].filter(there), rank.filter(there).to_numpy()
        if not len(lists):
            continue
        widths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
        if not found.size:
            found = np.zeros((len(known), int(widths[0])), np.float16)
        if (widths != found.shape[1]).any():
            name = f"{deduplicator.source_filter}.{deduplicator.column}"
            raise OpenUniError(f"{name} has vectors of different lengths; the corpus is damaged")
        values = lists.flatten().to_numpy(zero_copy_only=False).reshape(-1, found.shape[1])
        found[rows] = _as_float16(values)
    return found


def _as_float16(values: np.ndarray) -> np.ndarray:
    values = np.where(np.isfinite(values).all(axis=1, keepdims=True), values, 0).astype(np.float64)
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float16)
    inexact = np.flatnonzero((rounded != values).any(axis=1))
    if len(inexact):
        rounded[inexact] = values[inexact] / np.linalg.norm(values[inexact], axis=1, keepdims=True)
    return rounded


def _bound_rows(units: np.ndarray, components: np.ndarray) -> np.ndarray:
    """float32 [n, K + 1]: projections of unit vectors onto K orthonormal `components` [D, K], and what is left of them.

    The product of two rows is at least the cosine of the two vectors.
    """
    projected = units @ components
    left = np.linalg.norm(units - projected @ components.T, axis=1)
    return np.column_stack([projected, left])


def _at_least(product: np.ndarray, limit: float) -> np.ndarray:
    """Flat positions of the values that reach the limit, int64."""
    if product.size == 0 or product.max() < limit:  # most tiles: several times as fast
        return np.empty(0, np.int64)
    return np.flatnonzero(product >= np.float32(limit))
