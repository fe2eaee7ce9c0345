"""Whatever an object store does, a command works or says what is wrong; nothing is lost and nothing is there twice."""

import os
from collections import Counter
from typing import Any

import fsspec
import pytest

import openuni
from openuni.console.progress import Reporter
from openuni.manifests.corpus.corpus import Corpus
from openuni.pipeline.scope import RunScope
from tests.chaos.faulty_storage import KINDS, StorageFaults
from tests.raw_clips import contents_by_name, write_clips
from tests.s3_server import s3_bucket

QUIET = Reporter(quiet=True)
MAX_ATTEMPTS = 60
SEEDS = int(os.environ.get("OPENUNI_CHAOS_SEEDS", "1"))  # the long form: 6 or more
RECIPE = {
    "keep": "motion.speed_diag_per_s > 0.01",
    "work": {"short_side_px": 32},
    "filters": {"motion": {}, "luminance": {}},
    "annotators": {"dis": {"preset": "ultrafast"}},
    "encode": {"modalities": ["rgb", "flow"], "size_px": [32, 48], "frames": 5},
}


def faults_until_done(faults: StorageFaults, work: Any) -> list[BaseException]:
    """Repeat a command under faults until it succeeds. It may fail only by errors that end with exit code 2."""
    errors: list[BaseException] = []
    for _ in range(MAX_ATTEMPTS):
        faults.on = True
        try:
            work()
        except (openuni.OpenUniError, OSError) as error:
            assert str(error), repr(error)
            errors.append(error)
        else:
            return errors
        finally:
            faults.on = False
    raise AssertionError(f"not done after {MAX_ATTEMPTS} attempts: {Counter(map(repr, errors))}")


def rows(corpus: Corpus) -> dict[str, list[dict[str, Any]]]:
    """All rows and payloads. No clip has two rows."""
    found = contents_by_name(corpus)
    for group, listed in found.items():
        assert len({row["clip_id"] for row in listed}) == len(listed), group
    return found


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    write_clips(folder, 4)
    return folder


def build(bucket: str) -> None:
    """A run, and others for the clips of which a request failed: they are failed rows."""
    scope = RunScope()
    for _ in range(MAX_ATTEMPTS):
        corpus = openuni.run(RECIPE, f"{bucket}/raw", out=f"{bucket}/c", reporter=QUIET, scope=scope)
        if not corpus.summary().failed:
            return
        scope = RunScope(retry_failed=True)
    raise AssertionError(f"still failed: {corpus.summary()}")


def run_commands(bucket: str, faults: StorageFaults) -> list[BaseException]:
    errors = faults_until_done(faults, lambda: build(bucket))
    errors += faults_until_done(faults, lambda: openuni.split(f"{bucket}/c", {"test": 0.3}))
    keep = "luminance.mean > 0"
    errors += faults_until_done(faults, lambda: openuni.select(f"{bucket}/c", keep, out=f"{bucket}/s"))
    return errors


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_after_faults_of_the_store_a_corpus_equals_an_undisturbed_one(raw, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENUNI_SPOOL", str(tmp_path / "spool"))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")  # few retries of the client, so that more requests fail
    faults = StorageFaults(seed=0)
    with s3_bucket("storage-faults", faults) as bucket:
        fs, _ = fsspec.core.url_to_fs(bucket)
        fs.put(str(raw) + "/", "storage-faults/raw/", recursive=True)
        run_commands(bucket, StorageFaults(seed=0))
        expected = rows(openuni.open_corpus(f"{bucket}/c")), rows(openuni.open_corpus(f"{bucket}/s"))
        for seed in range(SEEDS):
            for folder in ("storage-faults/c", "storage-faults/s"):
                fs.rm(folder, recursive=True)
            faults.random.seed(seed)
            run_commands(bucket, faults)
            found = rows(openuni.open_corpus(f"{bucket}/c")), rows(openuni.open_corpus(f"{bucket}/s"))
            assert found == expected, (seed, faults.seen)
    assert sum(faults.seen.values()) >= 8 * SEEDS, faults.seen
    assert SEEDS < 6 or set(faults.seen) == set(KINDS)
