"""Annotating and encoding begin while filters still run, and give what they give in sequence."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import openuni
from openuni.config.recipe import CorpusRecipe
from openuni.console.progress import Reporter
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.writer import PartWriter
from openuni.manifests.errors import OpenUniError
from openuni.pipeline.phases import ClipItem
from openuni.pipeline.pipeline import Pipeline
from openuni.pipeline.planning import overlap
from openuni.pipeline.planning.overlap import Following, following_work, is_row_wise
from openuni.pipeline.planning.planner import Planner
from openuni.pipeline.runners.capacity import Capacity, Node, Shape
from openuni.pipeline.runners.in_process_runner import InProcessRunner
from openuni.pipeline.runners.pool_sizes import overlapping_pools
from openuni.pipeline.runners.resources import LATER, PoolSize, Resources
from openuni.pipeline.scope import RunScope
from tests.raw_clips import contents, write_clips

RECIPE = """
keep = '''{keep}'''
[work]
short_side_px = 24
[filters.motion]
[filters.luminance]
[annotators."tests.operators.on_gpu"]
{encode}
"""
ENCODE = '[encode]\nmodalities = ["rgb", "segmentation"]\nsize_px = [16, 16]\nframes = 5\n'
KEEP = "motion.speed_diag_per_s > 0.01"
NODE = Capacity((Node("a", 16.0, 2.0),))


def recipe_of(folder: Path, keep: str = KEEP, encode: str = "") -> Path:
    path = folder / "corpus.toml"
    path.write_text(RECIPE.format(keep=keep, encode=encode))
    return path


def run(recipe: Path, raw: Path, out: Path, scope: RunScope = RunScope(), resources: Resources | None = None) -> Corpus:
    reporter = Reporter(quiet=True)
    return openuni.run(recipe, raw, out=out, resources=resources or Resources(), reporter=reporter, scope=scope)


def drawn(items: Following) -> list[ClipItem]:
    """What the plan in progress gives."""
    found: list[Any] = []
    items.due = 0.0
    while (item := next(items)) is not LATER or items.planning is not None:
        found += [] if item is LATER else [item]
        time.sleep(0.001)
    return found


class OnNode(InProcessRunner):
    """A runner that knows of a node."""

    def capacity(self) -> Capacity | None:
        return NODE


# ---------------------------------------------------------------------- whether phases may overlap


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        ("", True),
        ("motion.speed_diag_per_s > 0.01 and luminance.mean > 0.1", True),
        ("frame_count > 2 or coalesce(luminance.mean, 0) between 0 and 1", True),
        ("motion.speed_diag_per_s > 1.5 * abs(luminance.mean)", True),
        ("motion.speed_diag_per_s > avg(motion.speed_diag_per_s)", False),
        ("luminance.mean > max(luminance.mean) / 2", False),
        ("rank() over (order by luminance.mean) < 10", False),
        ("row_number() over () < 10", False),
        ("has.depth", False),
        ("split = 'train'", False),
        ("duplicates.is_representative", False),
        ("sharpness.mean > 1", False),  # of no filter of the recipe
    ],
)
def test_only_a_keep_that_decides_clip_by_clip_overlaps(keep, expected):
    recipe = CorpusRecipe(
        keep=keep, filters=CorpusRecipe.parse({"filters": {"motion": {}, "luminance": {}}}).filters, annotators={}
    )
    assert is_row_wise(recipe) is expected


def test_what_follows_filters_on_the_cpu(tmp_path):
    """GPU annotators; else encoding with a GPU; nothing without a node that has one, or without `overlap`."""
    write_clips(tmp_path / "raw", 1)
    recipe_file = recipe_of(tmp_path, encode=ENCODE)
    corpus = run(recipe_file, tmp_path / "raw", tmp_path / "out", RunScope(only=("ingest",)))
    text = recipe_file.read_text()

    def named(text: str, kind: str = "filter", scope: RunScope = RunScope(), gpus: float | None = None) -> str | None:
        recipe_file.write_text(text)
        planner = Planner(CorpusRecipe.load(recipe_file), corpus, scope)
        work = following_work(
            kind, planner, OnNode(Resources(None, gpus, "a")), dict, pa.table({"clip_id": corpus.clip_list.ids})
        )
        return work and work.name

    assert named(text) == "tests.operators.on_gpu"
    assert named(text, gpus=0.0) is None
    assert named(text.replace("24", "24\noverlap = false")) is None
    assert named(text, scope=RunScope(only=("motion",))) is None  # luminance may have no rows
    assert named(text.replace(KEEP, "split = 'train'")) is None
    # the codecs of the tests use no GPU
    assert named(text.replace("tests.operators.on_gpu", "dis")) is None
    assert named(text, kind="annotator") is None


def test_sizes_of_pools_that_overlap():
    everything = Resources(None, None, "a")
    assert overlapping_pools(everything, NODE) == (PoolSize(2, Shape(2.0, 1.0)), PoolSize(12, Shape()))
    assert overlapping_pools(Resources(3, None, "a"), NODE) == (PoolSize(2, Shape(2.0, 1.0)), PoolSize(1, Shape()))
    assert overlapping_pools(Resources(2, None, "a"), NODE) is None
    assert overlapping_pools(everything, Capacity((Node("small", 1.0, 1.0),))) is None


# ---------------------------------------------------------------------- what is planned, and when


def test_clips_are_planned_once_all_filters_have_sealed_their_rows(tmp_path):
    write_clips(tmp_path / "raw", 10)
    recipe_file, raw, out = recipe_of(tmp_path), tmp_path / "raw", tmp_path / "out"
    corpus = run(recipe_file, raw, out, RunScope(only=("ingest",)))
    planner = Planner(CorpusRecipe.load(recipe_file), corpus, RunScope())
    planner.activate("annotator")
    work = planner.operators_work("annotator", ["tests.operators.on_gpu"])
    clips = corpus.clip_list
    table = pa.table({"clip_id": clips.ids, "row": clips.rows})
    counts: list[int] = []
    with Following(planner, work, table, False, counts.append) as items:
        assert drawn(items) == []  # no filter has rows
        run(recipe_file, raw, out, RunScope(limit=5, only=("motion",)))
        assert drawn(items) == []  # luminance has none
        run(recipe_file, raw, out, RunScope(limit=5, only=("luminance",)))
        first = drawn(items)
        assert len(first) == 4  # the fifth clip stands still
        assert drawn(items) == []  # no new parts
        run(recipe_file, raw, out, RunScope(only=("motion", "luminance")))
        second = drawn(items)
    kept = planner.kept_clips(table).column("clip_id").to_pylist()
    assert sorted(item.key for item in first + second) == sorted(kept)
    assert sum(counts) == len(kept) == 8
    assert sorted(items.planned_ids().to_pylist()) == sorted(kept)


def test_streams_are_encoded_once_their_maps_are_sealed(tmp_path):
    write_clips(tmp_path / "raw", 4)
    recipe_file, raw, out = recipe_of(tmp_path, "", ENCODE), tmp_path / "raw", tmp_path / "out"
    corpus = run(recipe_file, raw, out, RunScope(only=("ingest",)))
    planner = Planner(CorpusRecipe.load(recipe_file), corpus, RunScope())
    planner.activate("annotator")
    planner.activate_streams()
    clips = corpus.clip_list
    table = pa.table({"clip_id": clips.ids, "row": clips.rows})
    with Following(planner, planner.encode_work(clips.ids), table, True) as items:
        assert [item.todo for item in drawn(items)] == [("rgb", "text")] * 4
        run(recipe_file, raw, out, RunScope(limit=3, only=("tests.operators.on_gpu",)))
        assert [item.todo for item in drawn(items)] == [("segmentation",)] * 3
        assert drawn(items) == []


def test_what_was_annotated_early_must_be_kept_in_the_end(tmp_path):
    write_clips(tmp_path / "raw", 5)
    recipe = recipe_of(tmp_path)
    corpus = run(recipe, tmp_path / "raw", tmp_path / "out", RunScope(only=("ingest", "motion", "luminance")))
    pipeline = Pipeline(CorpusRecipe.load(recipe), corpus, InProcessRunner(), Reporter(quiet=True))
    clips = pa.table({"clip_id": corpus.clip_list.ids, "row": corpus.clip_list.rows})
    kept = pipeline._kept_clips(clips).column("clip_id")
    assert len(kept) == 4
    for early in (pa.chunked_array([], pa.string()), kept):
        pipeline.followed = early
        assert pipeline._kept_clips(clips).column("clip_id").equals(kept)
    pipeline.followed = clips.column("clip_id")  # also the clip that stands still
    with pytest.raises(OpenUniError, match="clips were annotated that keep drops"):
        pipeline._kept_clips(clips)


def test_parts_are_sealed_after_a_time_that_doubles(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("openuni.manifests.corpus.writer.time.monotonic", lambda: now[0])
    corpus = Corpus.create(str(tmp_path / "corpus"))
    writer: PartWriter = corpus.writer("filters/made", pa.schema([("clip_id", pa.string())]), "1")
    writer.seal_after_s = 300.0
    sealed = []
    for minute in range(60):
        now[0] = minute * 60.0
        writer.commit({"clip_id": f"{minute:032x}"})
        sealed.append(len(corpus.store.names("filters/made", ".parquet")))
    assert [sealed.index(count) for count in (1, 2, 3)] == [5, 16, 37]
    writer.finish()


# ---------------------------------------------------------------------- on a cluster


@pytest.fixture
def gpu_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a node with one GPU, which only Ray counts."""
    from ray.cluster_utils import Cluster

    with chdir(tmp_path_factory.mktemp("ray")):  # as in conftest
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "num_gpus": 1})
    yield cluster.address
    cluster.shutdown()


CLUSTER_RECIPE = """
keep = "motion.speed_diag_per_s > 0.01"
[work]
short_side_px = 24
[filters.motion]
[filters."tests.operators.slow"]
log = "{log}"
[annotators.dis]
[annotators."tests.operators.on_gpu"]
log = "{log}"
[encode]
modalities = ["rgb", "segmentation"]
size_px = [16, 16]
frames = 5
"""


def cluster_recipe(folder: Path, seconds: float) -> Path:
    path = folder / "corpus.toml"
    path.write_text(CLUSTER_RECIPE.format(log=folder / "log"))
    (folder / "log.seconds").write_text(str(seconds))
    (folder / "log").write_text("")
    return path


def lines(folder: Path) -> tuple[list[int], list[int]]:
    """Numbers of the lines of filters and of annotators in the log, in the order of time."""
    found = (folder / "log").read_text().splitlines()
    of_filter = [number for number, line in enumerate(found) if line.startswith("filter")]
    return of_filter, [number for number, line in enumerate(found) if not line.startswith("filter")]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_annotating_begins_while_filters_run_and_changes_nothing(tmp_path, gpu_node, monkeypatch):
    monkeypatch.setattr(overlap, "FIRST_SEAL_S", 0.5)
    monkeypatch.setattr(overlap, "MIN_REST_S", 0.2)
    write_clips(tmp_path / "raw", 40)
    alone = run(cluster_recipe(tmp_path, 0.0), tmp_path / "raw", tmp_path / "alone")
    recipe, out = cluster_recipe(tmp_path, 0.7), tmp_path / "out"
    corpus = run(recipe, tmp_path / "raw", out, resources=Resources(None, None, gpu_node))
    of_filter, of_annotator = lines(tmp_path)
    assert len(of_filter) == 40 and len(of_annotator) == 32  # nothing twice
    assert min(of_annotator) < max(of_filter)  # the first annotation before the last filter row
    assert contents(corpus) == contents(alone)
    *_, ledger = corpus.runs()
    names = [phase["phase"] for phase in ledger["phases"]]
    both = "dis + tests.operators.on_gpu"  # the node has no core for a pool of its own beside the GPU worker
    assert names == ["ingest", "motion + tests.operators.slow", both, both, "encode"]
    first, second = (phase for phase in ledger["phases"] if phase["phase"] == both)
    assert first["planned"] == first["ok"] > 0
    assert first["ok"] + second["ok"] == 32


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_driver_that_dies_while_phases_overlap_is_resumed(tmp_path, gpu_node):
    write_clips(tmp_path / "raw", 40)
    alone = run(cluster_recipe(tmp_path, 0.0), tmp_path / "raw", tmp_path / "alone")
    recipe, out = cluster_recipe(tmp_path, 0.7), tmp_path / "out"
    code = f"""
import openuni
from openuni.pipeline.planning import overlap
from openuni.pipeline.runners.resources import Resources
overlap.FIRST_SEAL_S, overlap.MIN_REST_S = 0.5, 0.2
openuni.run({str(recipe)!r}, {str(tmp_path / "raw")!r}, out={str(out)!r}, resources=Resources(None, None, {gpu_node!r}))
"""
    driver = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 200
    while not lines(tmp_path)[1] and time.monotonic() < deadline and driver.poll() is None:
        time.sleep(0.05)
    driver.send_signal(signal.SIGKILL)
    _, error = driver.communicate()
    assert lines(tmp_path)[1], error.decode()
    assert len(lines(tmp_path)[0]) < 40
    resumed = run(cluster_recipe(tmp_path, 0.0), tmp_path / "raw", out)
    assert contents(resumed) == contents(alone)
