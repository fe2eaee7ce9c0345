"""What finding the duplicates of a million clips costs: seconds and peak memory, and how many planted ones are found.

    python -m tests.benchmarks.duplicates [--rows 1000000] [--frames 8] [--numbers 512] [--work FOLDER]

Builds a local corpus with random hashes and embeddings in which every tenth clip is a copy of another (3 bits turned
in each frame; cosine 0.97), then finds them with a fresh process for each way, as a user would, imports included. With
--work, the corpus is built in that folder, or found there, and stays.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.manifests import measure

PART_ROWS = 20_000
COPY_EVERY = 10
COSINE, BITS = 0.97, 3
GOAL_MB = 4000.0
WAYS = {"hash": "duplicates", "embedding": "semantic_duplicates"}


def build(folder: str, rows: int, frames: int, numbers: int) -> None:
    """Clips, hashes and embeddings in the corpus's own layout; copies stand anywhere."""
    import numpy as np
    import pyarrow as pa

    from openuni.filters.embedding import Embedding
    from openuni.filters.perceptual_hash import PerceptualHash
    from openuni.manifests.contracts.schema import clip_schema
    from openuni.manifests.corpus.corpus import Corpus

    corpus, rng = Corpus.create(folder), np.random.default_rng(0)
    source = copied_from(rows)
    for start in range(0, rows, PART_ROWS):
        count = min(PART_ROWS, rows - start)
        ids = pa.array([clip_id(number) for number in range(start, start + count)])
        same = {"source": "x.mp4", "status": "ok", "time_base_num": 1, "time_base_den": 25, "start_pts": 0}
        same |= {"end_pts": 125, "width_px": 1280, "height_px": 720}
        columns = {name: pa.repeat(pa.scalar(value), count) for name, value in same.items()} | {"clip_id": ids}
        schema = clip_schema()
        table = [columns[f.name].cast(f.type) if f.name in columns else pa.nulls(count, f.type) for f in schema]
        put(corpus, "clips", start, pa.table(table, schema=schema))
        hashes = np.stack([hashes_of(number, source[number], frames) for number in range(start, start + count)])
        put_scores(corpus, PerceptualHash, start, ids, pa.array(hashes.ravel()), frames)
        vectors = vectors_of(source[start : start + count], np.arange(start, start + count), numbers, rng)
        flat = pa.array(vectors.astype(np.float16).astype(np.float32).ravel())
        put_scores(corpus, Embedding, start, ids, flat, numbers)


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


def vectors_of(sources: Any, own: Any, numbers: int, rng: Any) -> Any:
    """float32 [n, numbers] of length 1; a copy has a cosine of 0.97 to its source."""
    import numpy as np

    found = np.stack([np.random.default_rng(int(source)).standard_normal(numbers) for source in sources])
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    copies = sources != own
    other = rng.standard_normal((int(copies.sum()), numbers))
    other -= (other * found[copies]).sum(axis=1, keepdims=True) * found[copies]
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    found[copies] = COSINE * found[copies] + (1 - COSINE**2) ** 0.5 * other
    return found.astype(np.float32)


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
    from openuni.manifests.corpus.part_files import table_bytes

    data = table_bytes(table.replace_schema_metadata({VERSION_KEY: b"1"}))
    corpus.store.put(f"{group}/part-{start:09d}.parquet", data)


def check(folder: str, by: str) -> str:
    """How many of the planted copies are with their source, and how many other clips are dropped."""
    import numpy as np

    from openuni.manifests.corpus.corpus import Corpus

    corpus, name = Corpus.open(folder), WAYS[by]
    rows = corpus.table(f"filters/{name}").to_pylist()
    cluster = {row["clip_id"]: row[name]["cluster"] for row in rows}
    source = copied_from(len(rows))
    copies = np.flatnonzero(source != np.arange(len(source)))
    found = sum(cluster[clip_id(number)] == cluster[clip_id(source[number])] for number in copies)
    kept = len(set(cluster.values()))
    return f"{found:,} of {len(copies):,} planted copies found, {len(rows) - kept - found:,} other clips dropped"


def main() -> None:
    """Build, measure, print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--frames", type=int, default=8, help="hashes per clip")
    parser.add_argument("--numbers", type=int, default=512, help="numbers per embedding")
    parser.add_argument("--work", type=Path, help="build the corpus here, or use the one that is here, and keep it")
    given = parser.parse_args()
    if given.work:
        given.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=given.work) as scratch:
        corpus = (given.work or Path(scratch)) / "corpus"
        if not corpus.exists():
            build(str(corpus), given.rows, given.frames, given.numbers)
        print(f"{given.rows:,} clips, {given.frames} hashes and {given.numbers} numbers each; goal {GOAL_MB:,.0f} MB")
        print(f"{'':<12}{'wall s':>9}{'CPU s':>9}{'peak MB':>9}")
        for by in WAYS:
            row = measure(by, "-m", "openuni", "duplicates", str(corpus), "--by", by)
            verdict = "reached" if row.peak_mb < GOAL_MB else "NOT REACHED"
            print(f"{by:<12}{row.seconds:>9.1f}{row.cpu_s:>9.1f}{row.peak_mb:>9,.0f}  {verdict:<12}", flush=True)
            print(f"{'':<12}{check(str(corpus), by)}", flush=True)


if __name__ == "__main__":
    main()
