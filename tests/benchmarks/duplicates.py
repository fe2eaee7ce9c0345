"""What finding the duplicates of a million clips costs: seconds and peak memory, and whether the result is right.

    python -m tests.benchmarks.duplicates [--rows 1000000] [--frames 8] [--numbers 768] [--work FOLDER]

Builds a local corpus with hashes and embeddings, then finds duplicates with a fresh process for each way, as a user
would, imports included. With --work, the corpus is built in that folder, or found there, and stays.

Hashes are random; every tenth clip is a copy of another (3 bits turned in each frame). Embeddings have a common
direction and a falling spectrum, as those of CLIP; `--spectrum flat`: all directions alike. One clip in eight is
planted: in groups of 2 to 1,000 around one clip, with cosines on both sides of the threshold and exact repeats, and in
chains, whose links alone are similar. The result is compared with brute force for every planted clip of a sample and
as many others.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.manifests import measure

PART_ROWS = 20_000
COPY_EVERY = 10
BITS = 3
MIN_SIMILARITY = 0.95
COSINES = (1.0, 0.99, 0.97, 0.951, 0.949, 0.93)  # of the members of a group to its centre, in turns
CHAIN_COSINE, CHAIN_LENGTH = 0.97, 5
GROUP_SIZES = (2, 2, 3, 10, 100, 1000)  # in turns, with a chain after each
PLANTED_EVERY = 8
CHECKED = 4000  # clips that are compared with all others
GOAL_MB = 4000.0
WAYS = {"hash": "duplicates", "embedding": "semantic_duplicates"}


def build(folder: str, rows: int, frames: int, numbers: int, spectrum: str) -> None:
    """Clips, hashes and embeddings in the corpus's own layout; copies stand anywhere."""
    import numpy as np
    import pyarrow as pa

    from openuni.filters.embedding import Embedding
    from openuni.filters.perceptual_hash import PerceptualHash
    from openuni.manifests.corpus.corpus import Corpus

    corpus = Corpus.create(folder)
    source, plan = copied_from(rows), Planted(rows, numbers, spectrum)
    for start in range(0, rows, PART_ROWS):
        count = min(PART_ROWS, rows - start)
        ids = pa.array([clip_id(number) for number in range(start, start + count)])
        put_clips(corpus, start, ids)
        hashes = np.stack([hashes_of(number, source[number], frames) for number in range(start, start + count)])
        put_scores(corpus, PerceptualHash, start, ids, pa.array(hashes.ravel()), frames)
        flat = plan.vectors(np.arange(start, start + count)).astype(np.float16).astype(np.float32).ravel()
        put_scores(corpus, Embedding, start, ids, pa.array(flat), numbers)


class Planted:
    """Embeddings of `rows` clips, any of which can be computed by itself."""

    def __init__(self, rows: int, numbers: int, spectrum: str) -> None:
        import numpy as np

        rng = np.random.default_rng(7)
        self.numbers = numbers
        rotation = np.linalg.qr(rng.standard_normal((numbers, numbers)))[0]
        scale = np.ones(numbers) if spectrum == "flat" else np.arange(1, numbers + 1) ** -0.4
        self.shape = ((scale / np.linalg.norm(scale))[:, None] * rotation).astype(np.float32)
        common = 0.0 if spectrum == "flat" else 1.0
        self.common = (common * rotation[-1]).astype(np.float32)
        self.parent = np.arange(rows)  # the clip that a planted one is made from
        self.cosine = np.ones(rows)  # to its parent
        self.is_planted = np.zeros(rows, bool)
        members = rng.permutation(rows)[: rows // PLANTED_EVERY]
        at = turn = 0
        while at < len(members):
            size = GROUP_SIZES[turn % len(GROUP_SIZES)]
            group, chain = members[at : at + size], members[at + size : at + size + CHAIN_LENGTH]
            self.parent[group[1:]] = group[0]
            self.cosine[group[1:]] = np.resize(np.roll(COSINES, -turn), max(0, len(group) - 1))
            self.parent[chain[1:]], self.cosine[chain[1:]] = chain[:-1], CHAIN_COSINE
            at, turn = at + size + CHAIN_LENGTH, turn + 1
        self.is_planted[members] = True

    def vectors(self, clips: Any) -> Any:
        """float32 [n, numbers] of length 1."""
        import numpy as np

        found = np.empty((len(clips), self.numbers), np.float32)
        own = self.parent[clips] == clips
        found[own] = self._unit(self._noise(clips[own], 0) + self.common)
        if not own.all():
            parents, cosines = self.vectors(self.parent[clips[~own]]), self.cosine[clips[~own], None]
            other = self._noise(clips[~own], 1)
            other -= (other * parents).sum(axis=1, keepdims=True) * parents
            found[~own] = cosines * parents + (1 - cosines**2) ** 0.5 * self._unit(other)
        return found

    def _noise(self, clips: Any, kind: int) -> Any:
        import numpy as np

        drawn = [np.random.default_rng((kind, int(clip))).standard_normal(self.numbers, np.float32) for clip in clips]
        return np.stack(drawn) @ self.shape if drawn else np.empty((0, self.numbers), np.float32)

    @staticmethod
    def _unit(vectors: Any) -> Any:
        import numpy as np

        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def clip_id(number: int) -> str:
    """32 hex digits whose order has nothing to do with the number."""
    import hashlib

    return hashlib.blake2b(str(number).encode(), digest_size=16).hexdigest()


def copied_from(rows: int) -> Any:
    """For each clip the number of the one it is a copy of, or its own; int64 [rows]."""
    import numpy as np

    source = np.arange(rows)
    copies = source[COPY_EVERY - 1 :: COPY_EVERY]
    originals = np.setdiff1d(source, copies)
    source[copies] = np.random.default_rng(1).choice(originals, len(copies), replace=False)
    return source


def hashes_of(number: int, source: int, frames: int) -> Any:
    """int64 [frames]; of a copy those of its source with some bits turned."""
    import numpy as np

    found = np.random.default_rng(int(source)).integers(-(2**63), 2**63, frames)
    if number != source:
        bits = np.random.default_rng(number).permuted(np.tile(np.arange(64), (frames, 1)), axis=1)[:, :BITS]
        found ^= np.bitwise_or.reduce(np.left_shift(np.uint64(1), bits.astype(np.uint64)), axis=1).view(np.int64)
    return found


def put_clips(corpus: Any, start: int, ids: Any) -> None:
    """One part of `clips`: all of one size and duration, so that ranks are the order of the ids."""
    import pyarrow as pa

    from openuni.manifests.contracts.schema import clip_schema

    same = {"source": "x.mp4", "status": "ok", "time_base_num": 1, "time_base_den": 25, "start_pts": 0}
    same |= {"end_pts": 125, "width_px": 1280, "height_px": 720, "stream_index": 0, "frame_count": 125, "fps": 25.0}
    same |= {"codec": "h264", "pts_hash": "0" * 16}
    columns = {name: pa.repeat(pa.scalar(value), len(ids)) for name, value in same.items()} | {"clip_id": ids}
    schema = clip_schema()
    table = [columns[f.name].cast(f.type) if f.name in columns else pa.nulls(len(ids), f.type) for f in schema]
    put(corpus, "clips", start, pa.table(table, schema=schema))


def put_scores(corpus: Any, kind: Any, start: int, ids: Any, flat: Any, width: int) -> None:
    """One part of a filter's group, whose last column has a list of `width` numbers per clip."""
    import numpy as np
    import pyarrow as pa

    from openuni.manifests.contracts.schema import producer_schema

    schema, name, count = producer_schema(kind), kind.name(), len(ids)
    lists = pa.ListArray.from_arrays(np.arange(count + 1, dtype=np.int32) * width, flat)
    fields = list(schema.field(name).type)
    given = {"status": pa.repeat(pa.scalar("ok"), count), fields[-1].name: lists}
    struct = pa.StructArray.from_arrays([given.get(f.name, pa.nulls(count, f.type)) for f in fields], fields=fields)
    put(corpus, f"filters/{name}", start, pa.table([ids, struct], schema=schema))


def put(corpus: Any, group: str, start: int, table: Any) -> None:
    """One part."""
    from openuni.manifests.corpus.column_groups import VERSION_KEY
    from openuni.manifests.corpus.parts.part_files import table_bytes

    data = table_bytes(table.replace_schema_metadata({VERSION_KEY: b"1"}))
    corpus.store.put(f"{group}/part-{start:09d}.parquet", data)


def check_hashes(folder: str) -> str:
    """How many of the planted copies are with their source, and how many other clips are dropped."""
    import numpy as np

    from openuni.manifests.corpus.corpus import Corpus

    rows = Corpus.open(folder).table("filters/duplicates").to_pylist()
    cluster = {row["clip_id"]: row["duplicates"]["cluster"] for row in rows}
    source = copied_from(len(rows))
    copies = np.flatnonzero(source != np.arange(len(source)))
    found = sum(cluster[clip_id(number)] == cluster[clip_id(source[number])] for number in copies)
    kept = len(set(cluster.values()))
    return f"{found:,} of {len(copies):,} planted copies found, {len(rows) - kept - found:,} other clips dropped"


def check_embeddings(folder: str, plan: Planted) -> str:
    """Compare the result with brute force, in float64, for a sample of clips: what they join, and at which cosine.

    Ranks are the ids here: all clips have one size and duration.
    """
    import numpy as np
    import pyarrow.dataset as pads

    from openuni.manifests.corpus.corpus import Corpus

    corpus = Corpus.open(folder)
    field = pads.field
    names = {name: field("semantic_duplicates", name) for name in ("cluster", "is_representative", "similarity")}
    table = corpus.table("filters/semantic_duplicates", {"clip_id": field("clip_id")} | names).sort_by("clip_id")
    ids = table["clip_id"].to_pylist()
    number_of = {clip_id(number): number for number in range(len(ids))}
    numbers = np.array([number_of[one] for one in ids])  # by rank
    rank_of = dict(zip(ids, range(len(ids)), strict=True))
    cluster = np.array([rank_of[one] for one in table["cluster"].to_pylist()])
    representative = np.flatnonzero(table["is_representative"].to_numpy())
    similarity = table["similarity"].to_numpy()
    planted = plan.is_planted[numbers]
    rng = np.random.default_rng(3)
    sample = np.concatenate(
        [rng.permutation(np.flatnonzero(planted == kind))[: CHECKED // 2] for kind in (True, False)]
    )
    stored = plan.vectors(numbers[sample]).astype(np.float16).astype(np.float32)
    best, best_at = np.full(len(sample), -1.0), np.full(len(sample), -1)
    for start in range(0, len(representative), PART_ROWS):
        columns = representative[start : start + PART_ROWS]
        others = plan.vectors(numbers[columns]).astype(np.float16).astype(np.float32)
        near = np.argwhere((stored @ others.T >= MIN_SIMILARITY - 0.01) & (columns[None] < sample[:, None]))
        left, right = stored[near[:, 0]].astype(float), others[near[:, 1]].astype(float)
        cosines = (left * right).sum(axis=1) / np.sqrt((left**2).sum(axis=1) * (right**2).sum(axis=1))
        for (row, column), cosine in zip(near.tolist(), cosines.tolist(), strict=True):
            if cosine >= MIN_SIMILARITY and cosine > best[row]:
                best[row], best_at[row] = cosine, columns[column]
    expected = np.where(best_at >= 0, best_at, sample)
    wrong = (cluster[sample] != expected) | (np.abs(np.nan_to_num(similarity[sample], nan=-1.0) - best) > 1e-6)
    dropped = len(ids) - len(representative)
    return (
        f"{len(representative):,} representatives, {dropped:,} duplicates; {len(sample):,} clips compared with all "
        f"by brute force: {int(wrong.sum())} wrong, {int((best_at >= 0).sum()):,} of them duplicates"
    )


def main() -> None:
    """Build, measure, print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--frames", type=int, default=8, help="hashes per clip")
    parser.add_argument("--numbers", type=int, default=768, help="numbers per embedding")
    parser.add_argument("--spectrum", choices=("falling", "flat"), default="falling", help="of the embeddings")
    parser.add_argument("--by", action="append", choices=WAYS, help="only this way; repeatable")
    parser.add_argument("--work", type=Path, help="build the corpus here, or use the one that is here, and keep it")
    given = parser.parse_args()
    if given.work:
        given.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=given.work) as scratch:
        corpus = (given.work or Path(scratch)) / "corpus"
        if not corpus.exists():
            build(str(corpus), given.rows, given.frames, given.numbers, given.spectrum)
        print(f"{given.rows:,} clips, {given.frames} hashes and {given.numbers} numbers each; goal {GOAL_MB:,.0f} MB")
        print(f"{'':<12}{'wall s':>9}{'CPU s':>9}{'peak MB':>9}", flush=True)
        for by in given.by or WAYS:
            row = measure(by, "-m", "openuni", "duplicates", str(corpus), "--by", by)
            verdict = "reached" if row.peak_mb < GOAL_MB else "NOT REACHED"
            print(f"{by:<12}{row.seconds:>9.1f}{row.cpu_s:>9.1f}{row.peak_mb:>9,.0f}  {verdict:<12}", flush=True)
            plan = Planted(given.rows, given.numbers, given.spectrum)
            told = check_hashes(str(corpus)) if by == "hash" else check_embeddings(str(corpus), plan)
            print(f"{'':<12}{told}", flush=True)


if __name__ == "__main__":
    main()
