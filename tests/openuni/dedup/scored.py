"""Corpora of bare rows with hashes or embeddings, in any order and any parts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from openuni.filters.embedding import Embedding
from openuni.filters.perceptual_hash import PerceptualHash
from openuni.manifests.contracts.schema import producer_schema
from openuni.manifests.corpus.corpus import Corpus
from tests.bare_corpora import bare_corpus

SPAN = {"start_pts": 0, "time_base_num": 1, "time_base_den": 10}


def clip(name: str, seconds: int = 5, height_px: int = 240, **more: Any) -> dict[str, Any]:
    """The fields of a clip that matter here."""
    size = {"width_px": height_px * 4 // 3, "height_px": height_px}
    return {"clip_id": name, "end_pts": seconds * 10, **SPAN, **size, **more}


def write_scores(corpus: Corpus, scores: dict[str, Any], part_rows: int = 1000) -> None:
    """One row per clip of `filters/perceptual_hash` (lists of numbers) or `filters/embedding` (vectors).

    None makes a failed row, an empty vector a row with none.
    """
    first = next(value for value in scores.values() if value is not None)
    kind: Any = Embedding if isinstance(first, np.ndarray) else PerceptualHash
    name, column = ("embedding", "vector") if kind is Embedding else ("perceptual_hash", "hashes")
    for start in range(0, len(scores), part_rows):
        writer = corpus.writer(f"filters/{name}", producer_schema(kind), "1")
        for clip_id in list(scores)[start : start + part_rows]:
            value = scores[clip_id]
            row: dict[str, Any] = {"status": "ok" if value is not None else "failed", "version": "1"}
            if value is not None and (kind is PerceptualHash or len(value)):
                row[column] = np.asarray(value).tolist()
            writer.commit({"clip_id": clip_id, name: row})
        writer.finish()


def scored_corpus(
    folder: Path, clips: Sequence[dict[str, Any]], scores: dict[str, Any], part_rows: int = 1000
) -> Corpus:
    """A new corpus with these clips, in this order, and scores."""
    for start in range(0, len(clips), part_rows):
        corpus = bare_corpus(folder, clips[start : start + part_rows])
    write_scores(corpus, scores, part_rows)
    return corpus


def clusters_of(corpus: Corpus, name: str = "duplicates") -> dict[str, str]:
    """clip_id -> the clip that is kept."""
    rows = corpus.table(f"filters/{name}").to_pylist()
    assert len({row["clip_id"] for row in rows}) == len(rows)
    return {row["clip_id"]: row[name]["cluster"] for row in rows}


def turned(hashes: Sequence[int], bits: int, seed: int = 0) -> list[int]:
    """The hashes (signed 64-bit) with that many bits of each turned over."""
    rng = np.random.default_rng(seed)
    masks = [sum(1 << int(bit) for bit in rng.choice(64, bits, replace=False)) for _ in hashes]
    changed = [(value ^ mask) % 2**64 for value, mask in zip(hashes, masks, strict=True)]
    return [value - 2**64 if value >= 2**63 else value for value in changed]


def random_hashes(count: int, seed: int) -> list[int]:
    """Signed 64-bit numbers."""
    found: list[int] = np.random.default_rng(seed).integers(-(2**63), 2**63, count).tolist()
    return found
