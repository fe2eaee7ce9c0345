"""Semantic duplicates: clips of the same content by embedding similarity."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Interval

from openuni.dedup.deduplicator import Deduplicator, DuplicateAssignments, RankedClips
from openuni.dedup.deduplicators._embedding_search import EmbeddingSearch, read_embeddings
from openuni.manifests.corpus.corpus import Corpus


@dataclass(frozen=True)
class SemanticDuplicates(Deduplicator):
    """Semantic duplicates: clips whose mean CLIP embeddings point in almost the same direction.

    The result is that of comparing every clip with all representatives before it: nothing is approximated. A clip has
    at least `min_similarity` to its representative, and any two representatives have less.
    """

    min_similarity: Annotated[float, "minimum cosine similarity of semantic duplicates", Interval(gt=0, le=1)] = 0.95

    by: ClassVar[str] = "embedding"
    source_filter: ClassVar[str] = "embedding"
    column: ClassVar[str] = "vector"
    revision: ClassVar[int] = 2  # 1: an approximate index above 20,000 clips
    origin: ClassVar[str] = "SemDeDup, Abbas et al. 2023 (arXiv:2303.09540), without its clustering"

    def find(self, corpus: Corpus, clips: RankedClips, progress: Callable[[float], None]) -> DuplicateAssignments:
        """See `Deduplicator.find`. The similarity is the cosine."""
        found = EmbeddingSearch(read_embeddings(corpus, self, clips), self.min_similarity).run(progress)
        known = np.flatnonzero(clips.known)
        representative = np.arange(len(clips.ids), dtype=np.int64)
        similarity = np.full(len(clips.ids), np.nan)
        representative[known], similarity[known] = known[found.representative], found.similarity
        return DuplicateAssignments(representative, similarity)
