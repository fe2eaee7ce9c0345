"""What reading commands say while an operator's first part is open: during its first run, and after a kill there.

An operator's folder then holds `.open/` alone. The tests leave a part open with the writer that workers use.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import openuni
from openuni.annotators.dis import Dis
from openuni.console.progress import Reporter
from openuni.filters.luminance import Luminance
from openuni.manifests.contracts.schema import LATENT_SCHEMA, producer_schema
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.layout import annotation_group, filter_group, latent_group
from openuni.manifests.corpus.shards import SafetensorsShard, TarShard
from openuni.pipeline.scope import RunScope
from tests.command_line import cli
from tests.raw_clips import contents, write_clips
from tests.tiny_corpus import MEASURED_RECIPE


@pytest.fixture
def ingested(tmp_path: Path) -> Corpus:
    """Two clips and a file that is not a video; no operator has run. corpus.json is that of the whole recipe."""
    write_clips(tmp_path / "raw", 2)
    (tmp_path / "raw" / "prose.mp4").write_text("no video")
    scope = RunScope(only=("ingest",))
    return openuni.run(
        MEASURED_RECIPE, tmp_path / "raw", out=tmp_path / "corpus", scope=scope, reporter=Reporter(quiet=True)
    )


def leave_open(corpus: Corpus, kind: str) -> None:
    """One finished clip of the operator in a part that is not sealed, as a kill leaves it."""
    operator, group, shard = (
        (Luminance, filter_group("luminance"), None) if kind == "filter" else (Dis, annotation_group("dis"), TarShard)
    )
    writer = corpus.writer(group, producer_schema(operator), "1", shard)
    if shard is not None:
        writer.put(f"{corpus[0].clip_id}.flow.mkv", b"bytes")
    row = dict.fromkeys(producer_schema(operator).field(operator.name()).type.names) | {"status": "ok"}
    writer.commit({"clip_id": corpus[0].clip_id, operator.name(): row})


@pytest.fixture(params=["no folder", "open part", "empty folder", "superseded"])
def state(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param


def begin(corpus: Corpus, kind: str, state: str) -> None:
    group = filter_group("luminance") if kind == "filter" else annotation_group("dis")
    if state == "open part":
        leave_open(corpus, kind)
    elif state == "empty folder":
        corpus.store.local(group).mkdir(parents=True)
    elif state == "superseded":  # the recipe changed, and the run was killed before it had new rows
        openuni.run(MEASURED_RECIPE, out=corpus.store.url, reporter=Reporter(quiet=True))
        corpus.activate_version(group, "another")


def test_a_first_filter_is_not_done_yet(ingested: Corpus, state: str, tmp_path: Path) -> None:
    begin(ingested, "filter", state)
    place = ingested.store.url
    done = cli("summary", place, "--scores")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("3 clips = 0 ok + 0 dropped + 1 failed + 2 pending")
    assert "  luminance is not done yet for 2 of 3 clips" in done.stdout
    record = json.loads(cli("summary", place, "--json").stdout)
    assert {"operator": "luminance", "clips": 2} in record["not_done"]

    explained = cli("explain", place, "clip-000.mp4")
    assert explained.returncode == 0, explained.stderr
    assert "filter luminance: not done yet" in explained.stdout
    assert "not done yet" in explained.stdout.partition("\nkeep\n")[2].splitlines()[0]

    for command in (
        ("select", place, "--keep", "luminance.mean > 0.1", "--out", tmp_path / "selected"),
        ("export", place, "--format", "webdataset", "--out", tmp_path / "exported"),
    ):
        done = cli(*command)
        assert done.returncode == 2 and "keep reads luminance, which has no results" in done.stderr, done.stderr
    done = cli("select", place, "--keep", "width_px > 1", "--out", tmp_path / "selected")
    assert done.returncode == 0, done.stderr  # a rule that does not read it
    assert cli("split", place).returncode == 0
    with pytest.raises(openuni.OpenUniError, match="luminance has no result for clip"):
        ingested[0].row("luminance")


def test_a_first_annotator_is_not_done_yet(ingested: Corpus, state: str, tmp_path: Path) -> None:
    openuni.run(
        MEASURED_RECIPE,
        out=ingested.store.url,
        scope=RunScope(only=("luminance",)),
        reporter=Reporter(quiet=True),
    )
    begin(ingested, "annotator", state)
    place = ingested.store.url
    done = cli("summary", place, "--scores")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("3 clips = 0 ok + 0 dropped + 1 failed + 2 pending")
    assert "  dis is not done yet for 2 of 3 clips" in done.stdout and "luminance is not" not in done.stdout
    explained = cli("explain", place, "clip-000.mp4")
    assert explained.returncode == 0, explained.stderr
    assert "annotator dis: not done yet" in explained.stdout and "  passes " in explained.stdout
    for command in (
        ("select", place, "--keep", "luminance.mean > 0", "--out", tmp_path / "selected"),
        ("export", place, "--format", "webdataset", "--out", tmp_path / "exported"),
        ("split", place),
    ):
        done = cli(*command)
        assert done.returncode == 0, done.stderr
    done = cli("export", place, "--format", "webdataset", "--out", tmp_path / "flow", "--modalities", "flow")
    assert done.returncode == 2 and "no clip of" in done.stderr
    done = cli("select", place, "--keep", "has.flow", "--out", tmp_path / "with-flow")
    assert done.returncode == 2 and "flow" in done.stderr
    assert "Traceback" not in done.stderr


def test_after_reading_a_killed_run_resumes_to_the_same_corpus(ingested: Corpus, tmp_path: Path) -> None:
    leave_open(ingested, "filter")
    assert cli("summary", ingested.store.url).returncode == 0
    quiet = Reporter(quiet=True)
    resumed = openuni.run(MEASURED_RECIPE, tmp_path / "raw", out=ingested.store.url, reporter=quiet)
    whole = openuni.run(MEASURED_RECIPE, tmp_path / "raw", out=tmp_path / "whole", reporter=quiet)
    assert contents(resumed) == contents(whole)
    assert resumed.summary().not_done == []


def test_training_during_the_first_encode_says_what_is_missing(ingested: Corpus, tmp_path: Path) -> None:
    encode = {"encode": {"modalities": ["rgb"], "size_px": [32, 48], "frames": 5}}
    corpus = openuni.run(
        MEASURED_RECIPE | encode, tmp_path / "raw", out=tmp_path / "whole", reporter=Reporter(quiet=True)
    )
    (family,) = corpus.families()
    group = latent_group(family, "rgb")
    for part in corpus.parts(group):
        corpus.store.delete(part)
    corpus.writer(group, LATENT_SCHEMA, "1", SafetensorsShard).commit({"clip_id": corpus[0].clip_id, "status": "ok"})
    done = cli("train", "unityvideo_debug", "--corpus", corpus.store.url, "--out", tmp_path / "run")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert cli("summary", corpus.store.url).returncode == 0
