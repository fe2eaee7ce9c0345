"""What a corpus of a million clips costs to open, query, split, resume and select from: CPU seconds and peak memory.

    python -m tests.benchmarks.manifests [--rows 1000000] [--part-rows 20000] [--work FOLDER]

Builds a local corpus of six column groups, then does each thing in a fresh process, imports included.
The ratio is to bare DuckDB on the same files in the same run: for `summary`, the outcome and the columns
that it reads; for `select`, copies of all rows that it keeps. With --work, the corpus is built in that folder, or found
there, and stays. Small parts: `--rows 4000 --part-rows 2`, against `--rows 4000`.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from openuni.manifests.storage.lock import lock

ROOT = Path(__file__).parents[2]
GOAL_CPU_S, GOAL_MB = 10.0, 1000.0
KEEP = "motion.speed_diag_per_s > 0.02 and luminance.mean > 0.08"
SELECT = "motion.speed_diag_per_s > 0.3 and luminance.contrast > 0.1"
RECIPE: dict[str, Any] = {
    "keep": KEEP,
    "filters": {"motion": {}, "luminance": {}, "sharpness": {}, "still": {}},
    "annotators": {"supplied": {"modalities": ["depth", "flow", "segmentation"]}},
}
WITH_ENCODE = RECIPE | {"encode": {"modalities": ["rgb", "depth", "dis.flow"]}}
SEVERAL = 10  # in the cases "some left", one part in so many is taken away


class Measured(NamedTuple):
    """One fresh process."""

    what: str
    seconds: float
    cpu_s: float
    peak_mb: float
    result: str


# ---------------------------------------------------------------------- the corpus


def build(folder: str, rows: int, part_rows: int) -> None:
    """All groups, part by part, in the corpus's own layout; payload files are there and empty."""
    import numpy as np
    import pyarrow as pa

    from openuni.config.recipe import CorpusRecipe
    from openuni.console.progress import Reporter
    from openuni.manifests.contracts.schema import clip_schema, producer_schema
    from openuni.manifests.corpus.column_groups import VERSION_KEY
    from openuni.manifests.corpus.corpus import Corpus
    from openuni.manifests.corpus.parts.part_files import table_bytes
    from openuni.pipeline.pipeline import INGEST_VERSION, Pipeline
    from openuni.pipeline.runners.in_process_runner import InProcessRunner

    recipe = CorpusRecipe.parse(RECIPE)
    corpus = Corpus.create(folder)
    pipeline = Pipeline(recipe, corpus, InProcessRunner(), Reporter(quiet=True))
    groups: list[tuple[str, Any, str]] = [("clips", clip_schema(), INGEST_VERSION)]
    for folder_name, operators in (("filters", recipe.filters), ("annotations", recipe.annotators)):
        for name, operator in operators.items():
            groups.append(
                (f"{folder_name}/{name}", producer_schema(type(operator)), pipeline.planner.version(name, operator))
            )
    rng = np.random.default_rng(0)
    all_ids = _hex(rng, rows)
    for group, schema, version in groups:
        # workers finish clips in an order of their own: no two groups agree
        ids_of_group = all_ids if group == "clips" else all_ids.take(pa.array(rng.permutation(rows)))
        for part, start in enumerate(range(0, rows, part_rows)):
            columns = Columns(rng, ids_of_group.slice(start, part_rows), start, f"part-{part:06d}.tar")
            table = columns.table(schema).replace_schema_metadata({VERSION_KEY: version.encode()})
            corpus.store.put(f"{group}/part-{part:06d}.parquet", table_bytes(table))
            if group.startswith("annotations/"):
                corpus.store.put(f"{group}/part-{part:06d}.tar", bytes(10240))
    corpus.save_record(keep=KEEP, filters=list(recipe.filters), annotators=list(recipe.annotators))


class Columns:
    """Random columns of one part, by name and type."""

    def __init__(self, rng: Any, ids: Any, start: int, shard: str) -> None:
        self.rng, self.ids, self.start, self.shard = rng, ids, start, shard
        self.count = len(ids)

    def table(self, schema: Any) -> Any:
        """The part's table; about one row in a hundred is of a clip that failed."""
        import pyarrow as pa

        return pa.table([self.column(field.name, field.type) for field in schema], schema=schema)

    def column(self, name: str, kind: Any) -> Any:
        """One column."""
        import numpy as np
        import pyarrow as pa

        failed = np.arange(self.count) % 100 == 99
        if pa.types.is_struct(kind):
            fields = [kind.field(number) for number in range(kind.num_fields)]
            children = [self.column(field.name, field.type) for field in fields]
            if name in ("depth", "flow", "segmentation"):
                return pa.StructArray.from_arrays(children, fields=fields, mask=pa.array(failed))
            return pa.StructArray.from_arrays(children, fields=fields)
        if pa.types.is_list(kind):
            ends = np.arange(self.count + 1, dtype=np.int32) * 4
            return pa.ListArray.from_arrays(ends, np.tile(np.arange(4, dtype=np.int64), self.count))
        if pa.types.is_string(kind):
            return self.strings(name, failed)
        if pa.types.is_boolean(kind):
            return pa.array(np.ones(self.count, bool))
        if pa.types.is_floating(kind):
            scores = self.rng.random(self.count)
            return pa.array(scores + 0.01, mask=failed) if name != "fps" else pa.array(np.full(self.count, 25.0))
        if name in ("offset", "xxh3"):
            return pa.array(self.rng.integers(0, 2**62, self.count)).cast(kind)
        return pa.array(self.rng.integers(1, 4000, self.count)).cast(kind)

    def strings(self, name: str, failed: Any) -> Any:
        """Ids, paths, sentences, states."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if name == "clip_id":
            return self.ids
        if name == "source":
            numbers = pa.array(range(self.start, self.start + self.count)).cast(pa.string())
            return pc.binary_join_element_wise("/data/videos/shelf-042/clip-", numbers, ".mp4", "")
        if name == "caption":
            words = pa.array(_sentences(self.rng))
            return words.take(pa.array(self.rng.integers(0, len(words), self.count)))
        if name in ("status", "error"):
            bad = pa.array(failed)
            good, wrong = ("ok", "failed") if name == "status" else (None, "ClipError: frame 17 cannot be decoded")
            return pc.if_else(bad, pa.scalar(wrong), pa.scalar(good, pa.string()))
        if name == "pts_hash":
            return pc.utf8_slice_codeunits(self.ids, 0, 16)
        same = {"version": "0123456789abcdef", "shard": self.shard, "codec": "h264", "unit": "m"}
        return pa.repeat(pa.scalar(same.get(name), pa.string()), self.count)


def _hex(rng: Any, count: int) -> Any:
    """`count` random clip_ids: strings of 32 hex digits."""
    import pyarrow as pa

    digits = rng.bytes(16 * count).hex()
    return pa.array([digits[place : place + 32] for place in range(0, len(digits), 32)])


def _sentences(rng: Any) -> list[str]:
    """A thousand captions of about 60 words (400 letters)."""
    words = [
        "a",
        "person",
        "walks",
        "slowly",
        "along",
        "the",
        "wooden",
        "table",
        "while",
        "the",
        "camera",
        "turns",
        "towards",
        "two",
        "bright",
        "windows",
    ]
    return [" ".join(words[number] for number in rng.integers(0, len(words), 70)) for _ in range(1000)]


# ---------------------------------------------------------------------- what is measured, each in its own process


def open_corpus(folder: str) -> str:
    """Open, count, read one clip's rows."""
    from openuni.manifests.corpus.corpus import Corpus

    corpus = Corpus.open(folder)
    clip = corpus[len(corpus) // 2]
    return f"{len(corpus):,} clips, speed {clip.row('motion')['speed_diag_per_s']:.2f} of one"


def resume(folder: str, recipe: dict[str, Any]) -> str:
    """`Pipeline.run` as it is, to its end, or to where a phase has something to do (and then what)."""
    from openuni.config.recipe import CorpusRecipe
    from openuni.console.progress import Reporter
    from openuni.manifests.corpus.corpus import Corpus
    from openuni.pipeline.pipeline import Pipeline
    from openuni.pipeline.runners.resources import Runner

    class Planned(Exception):
        """Ends the run where work would begin."""

    class PlanOnly(Runner):
        """Looks at the first items and stops."""

        def run_pools(self, pools: Any) -> None:
            """See `Runner.run_pools`."""
            first = [item.key for item, _ in zip(pools[0].items, range(2500), strict=False)]
            raise Planned(f"the first {len(first):,} items drawn")

    corpus = Corpus.open(folder)
    sources = corpus.table("clips", ["source"]).column("source").to_pylist()
    reporter = Reporter(quiet=True)
    try:
        with lock(corpus.store):
            Pipeline(CorpusRecipe.parse(recipe), corpus, PlanOnly(), reporter).run(sources)
    except Planned as planned:
        phase = reporter.phases[-1]
        return f"{phase.name}: {phase.total:,} of {len(corpus):,} clips to do, {planned}"
    return "nothing to do"


def bare_summary(folder: str) -> str:
    """The same outcome by DuckDB, without OpenUni: one join and the columns that `summary` reads."""
    import duckdb

    filters = [f"{folder}/filters/{name}/*.parquet" for name in RECIPE["filters"]]
    query = " ".join(
        [
            "SELECT count(*), count(*) FILTER (WHERE c.status = 'ok'), min(c.error), count(c.caption),",
            "count(*) FILTER (WHERE motion.speed_diag_per_s > 0.02 AND luminance.mean > 0.08),",
            *(f"min({name}.error), count(*) FILTER (WHERE {name}.status = 'ok')," for name in RECIPE["filters"]),
            *(
                f"count(supplied.{name}.shard), sum(supplied.{name}.nbytes),"
                for name in ("depth", "flow", "segmentation")
            ),
            f"min(supplied.error) FROM '{folder}/clips/*.parquet' AS c",
            *(f"LEFT JOIN '{files}' USING (clip_id)" for files in filters),
            f"LEFT JOIN '{folder}/annotations/supplied/*.parquet' USING (clip_id)",
        ]
    )
    return str(duckdb.sql(query).fetchall()[0][:2])


def bare_select(folder: str) -> str:
    """The rows that `select` keeps, copied by DuckDB."""
    import duckdb

    connection = duckdb.connect()
    joined = f"'{folder}/filters/motion/*.parquet' JOIN '{folder}/filters/luminance/*.parquet' USING (clip_id)"
    connection.execute(f"CREATE TABLE kept AS SELECT clip_id FROM {joined} WHERE {SELECT}")
    groups = ["clips", *(f"filters/{name}" for name in RECIPE["filters"]), "annotations/supplied"]
    with tempfile.TemporaryDirectory(dir=Path(folder).parent) as out:
        for number, group in enumerate(groups):
            rows = f"SELECT * FROM '{folder}/{group}/*.parquet' SEMI JOIN kept USING (clip_id)"
            connection.execute(f"COPY ({rows}) TO '{out}/{number}.parquet' (FORMAT parquet, COMPRESSION zstd)")
    return f"{connection.execute('SELECT count(*) FROM kept').fetchall()[0][0]:,} clips"


def explain(folder: str) -> str:
    """`openuni explain` of the last clip."""
    from openuni.manifests.corpus.corpus import Corpus
    from openuni.report.explain import explain

    corpus = Corpus.open(folder)
    return explain(corpus, corpus.clip_list.ids[-1].as_py()).splitlines()[0]


CHILDREN = {
    "summary by DuckDB": bare_summary,
    "select by DuckDB": bare_select,
    "explain": explain,
    "open": open_corpus,
    "resume": lambda folder: resume(folder, RECIPE),
    "encode": lambda folder: resume(folder, WITH_ENCODE),
}


WAIT_FOR_END = os.WEXITED | os.WNOHANG | os.WNOWAIT


def _peak_kb(pid: int) -> int:
    """Largest resident size of a process so far. `ru_maxrss` would begin with that of the process that forked it."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("VmHWM:")), 0)


def measure(what: str, *command: str) -> Measured:
    """Wall time from start to exit of one process, and the largest resident size it had."""
    started = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=output, stderr=output)
        peak_kb = 0
        while process.returncode is None and os.waitid(os.P_PID, process.pid, WAIT_FOR_END) is None:
            peak_kb = max(peak_kb, _peak_kb(process.pid))
            time.sleep(0.02)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - started
        output.seek(0)
        lines = output.read().decode().strip().splitlines()
    if process.returncode:
        raise SystemExit(f"{what} failed:\n" + "\n".join(lines))
    cpu_s = usage.ru_utime + usage.ru_stime
    return Measured(what, seconds, cpu_s, peak_kb / 1024, lines[0] if lines else "")


def measure_all(corpus: Path, scratch: Path) -> Iterator[Measured]:
    """Every case; in some of them, parts of a group are put out of sight."""
    me = ("-m", "tests.benchmarks.manifests", "--child")
    yield measure("open", *me, "open", str(corpus))
    yield measure("summary by DuckDB", *me, "summary by DuckDB", str(corpus))
    yield measure("openuni summary", "-m", "openuni", "summary", str(corpus))
    yield measure("openuni explain", *me, "explain", str(corpus))
    splits = ("--fraction", "validation=0.05", "--reassign")
    yield measure("openuni split", "-m", "openuni", "split", str(corpus), *splits)
    yield measure("openuni split, nothing new", "-m", "openuni", "split", str(corpus))
    yield measure("resume, nothing left", *me, "resume", str(corpus))
    for phase, group in (("filter", "filters/motion"), ("annotate", "annotations/supplied")):
        with out_of_sight(corpus / group, scratch):
            yield measure(f"resume, {phase}: a tenth left", *me, "resume", str(corpus))
    yield measure("first plan of encode", *me, "encode", str(corpus))
    cut = ("-m", "openuni", "select", str(corpus), "--keep", SELECT, "--out", str(scratch / "cut"))
    yield measure("select by DuckDB", *me, "select by DuckDB", str(corpus))
    yield measure("openuni select", *cut)


@contextmanager
def out_of_sight(group: Path, scratch: Path) -> Iterator[None]:
    """One part in ten of a group is elsewhere meanwhile."""
    hidden = sorted(group.glob("*.parquet"))[::SEVERAL]
    for part in hidden:
        part.rename(scratch / part.name)
    try:
        yield
    finally:
        for part in hidden:
            (scratch / part.name).rename(part)


def main() -> None:
    """Build, measure, print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--part-rows", type=int, default=20_000)
    parser.add_argument("--work", type=Path, help="build the corpus here, or use the one that is here, and keep it")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        name, folder, *numbers = given.child
        print(build(folder, *map(int, numbers)) if name == "build" else CHILDREN[name](folder))
        return
    if given.work:
        given.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=given.work) as scratch:
        corpus = (given.work or Path(scratch)) / "corpus"
        if not corpus.exists():
            sizes = (str(given.rows), str(given.part_rows))
            measure("build", "-m", "tests.benchmarks.manifests", "--child", "build", str(corpus), *sizes)
        goal = f"goal: under {GOAL_CPU_S:g} s of CPU and {GOAL_MB:,.0f} MB each"
        print(f"{given.rows:,} rows, parts of {given.part_rows:,}; {goal}")
        print(f"{'':<32}{'wall s':>7}{'CPU s':>7}{'peak MB':>9}{'DuckDB':>8}")
        by_name: dict[str, Measured] = {}
        for row in measure_all(corpus, Path(scratch)):
            by_name[row.what] = row
            verdict = "reached" if row.cpu_s < GOAL_CPU_S and row.peak_mb < GOAL_MB else "NOT REACHED"
            bare = by_name.get(f"{row.what.removeprefix('openuni ')} by DuckDB")
            ratio = f"{row.cpu_s / bare.cpu_s:>8.2f}" if bare else f"{'':>8}"
            figures = f"{row.seconds:>7.1f}{row.cpu_s:>7.1f}{row.peak_mb:>9,.0f}{ratio}"
            print(f"{row.what:<32}{figures}  {verdict:<12}{row.result}", flush=True)


if __name__ == "__main__":
    main()
