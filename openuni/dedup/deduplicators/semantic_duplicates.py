"""Semantic duplicates: clips of the same content by embedding similarity."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Interval

from openuni.dedup.deduplicator import Deduplicator, DuplicateAssignments, RankedClips
from openuni.dedup.deduplicators._clusters import UnionFind, assign_representatives
from openuni.dedup.deduplicators._embedding_search import open_embeddings
from openuni.manifests.corpus.corpus import Corpus


@dataclass(frozen=True)
class SemanticDuplicates(Deduplicator):
    """Semantic duplicates: clips whose mean CLIP embeddings point in almost the same direction.

    Up to 20,000 clips, all pairs are compared; beyond that, each clip is compared with its nearest neighbours in an
    approximate index (faiss inverted lists), which may miss a few. A duplicate always has at least `min_similarity` to
    its representative.
    """

    min_similarity: Annotated[float, "minimum cosine similarity of semantic duplicates", Interval(gt=0, le=1)] = 0.95

    by: ClassVar[str] = "embedding"
    source_filter: ClassVar[str] = "embedding"
    column: ClassVar[str] = "vector"
    origin: ClassVar[str] = "SemDeDup, Abbas et al. 2023 (arXiv:2303.09540); faiss"

    def find(self, corpus: Corpus, clips: RankedClips) -> DuplicateAssignments:
        """See `Deduplicator.find`. The similarity is the cosine."""
        vectors = open_embeddings(corpus, self, clips)
        groups = UnionFind(len(clips.ids))
        for left, right in vectors.similar_pairs(self.min_similarity):
            unlinked = groups.unlinked(left, right)
            groups.link(left[unlinked], right[unlinked])

        def compare(clip: int, others: np.ndarray) -> np.ndarray:
            cosines = vectors.rows(others) @ vectors.rows(np.array([clip]))[0]
            return np.where(cosines >= self.min_similarity, cosines, np.nan)

        return assign_representatives(groups, compare)
