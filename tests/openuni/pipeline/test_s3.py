"""Sources and corpus on an object store: the same rows and payloads as on a disk, resumed the same way."""

import time
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

import openuni
from openuni.console.progress import Reporter
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.storage import lease
from openuni.manifests.storage.lease import Lease, LeaseLost
from openuni.manifests.storage.lock import lock
from openuni.manifests.storage.store import Store
from openuni.pipeline.runners.resources import Resources
from openuni.pipeline.sources import find_sources
from tests.raw_clips import contents_by_name, write_clips
from tests.s3_server import s3_bucket

BUCKET = "s3://openuni-test"
RECIPE = {
    "keep": "motion.speed_diag_per_s > 0.01 and luminance.mean > 0.05",
    "work": {"short_side_px": 32},
    "filters": {"motion": {}, "luminance": {}},
    "annotators": {"dis": {"preset": "ultrafast"}},
    "encode": {"modalities": ["rgb", "flow"], "size_px": [32, 48], "frames": 5},
}


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    with s3_bucket("openuni-test") as url, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENUNI_SPOOL", str(tmp_path_factory.mktemp("spool")))
        yield url


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    write_clips(folder, 3)
    return folder


@pytest.fixture(scope="module")
def remote(bucket, raw):
    """The corpus made on the store from sources on the store, by a Ray worker."""
    fs, root = fsspec.core.url_to_fs(f"{bucket}/raw")
    fs.put(str(raw) + "/", root + "/", recursive=True)
    return run(f"{bucket}/raw", f"{bucket}/corpus", workers=1)


@pytest.fixture(scope="module")
def rows(remote):
    return contents_by_name(remote)


def run(sources: str | Path, out: str | Path, workers: int = 0) -> Corpus:
    return openuni.run(RECIPE, sources, out=out, resources=Resources(workers), reporter=Reporter(quiet=True))


def objects(url: str) -> dict[str, Any]:
    """Name -> time of writing of every object that holds rows or payloads."""
    fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    found = {name.removeprefix(root): entry["LastModified"] for name, entry in fs.find(root, detail=True).items()}
    return {name: time for name, time in found.items() if "part-" in name}


def test_the_corpus_equals_that_of_a_local_run(remote, rows, raw, tmp_path):
    assert remote.summary().ok == 3
    assert remote[0].clip.source.startswith("s3://openuni-test/raw/")
    assert contents_by_name(run(raw, tmp_path / "corpus")) == rows
    assert {"clips", "filters/motion", "filters/luminance", "annotations/dis"} < set(rows)
    assert sum(group.startswith("latents/") for group in rows) == 2 and sum(map(len, rows.values())) == 7 * 3


def test_it_opens_by_its_url_and_gives_arrays(remote):
    corpus = Corpus.open(f"{BUCKET}/corpus")
    clip = corpus[0]
    assert clip.rgb.shape == (6, 48, 64, 3) and clip.rgb.dtype == np.uint8
    assert clip.flow.shape == (6, 32, 43, 2)
    # textures pan to the right by 1 px of 64, at a working size of two thirds
    assert abs(np.median(clip.flow[:-1, 8:-8, 8:-8, 0]) - 0.67) < 0.1
    assert clip.caption == "texture 0 pans by 1 px"


def test_a_second_run_writes_nothing_and_a_lost_group_alone_is_made_again(remote, rows):
    url = f"{BUCKET}/corpus"
    before = objects(url)
    run(f"{BUCKET}/raw", url)
    assert objects(url) == before
    fs, root = fsspec.core.url_to_fs(f"{url}/filters/luminance")
    fs.rm(root, recursive=True)
    resumed = run(f"{BUCKET}/raw", url)
    after = objects(url)
    changed = {name.rpartition("/")[0] for name in set(before.items()) ^ set(after.items()) for name in name[:1]}
    assert changed == {"/filters/luminance"}
    assert contents_by_name(resumed) == rows


def test_changed_options_set_the_old_version_aside_and_going_back_restores_it(remote, rows):
    url = f"{BUCKET}/corpus"
    other = RECIPE | {"filters": {"motion": {"preset": "medium"}, "luminance": {}}}
    openuni.run(other, f"{BUCKET}/raw", out=url, reporter=Reporter(quiet=True))
    before = objects(url)
    assert sum("/superseded/" in name for name in before) == 1
    restored = run(f"{BUCKET}/raw", url)
    assert contents_by_name(restored) == rows
    assert len(objects(url)) == len(before)  # moved, not computed again


def test_select_copies_what_passes(remote):
    chosen = openuni.select(remote, "motion.speed_diag_per_s > 0.4", out=f"{BUCKET}/cut")
    assert 0 < len(chosen) < 3
    assert len(chosen[0].flow) == 6


def test_a_run_on_another_machine_waits_for_the_lease_and_goes_on_when_its_owner_is_lost(remote, tmp_path, monkeypatch):
    """Another machine has another spool, so file locks do not meet: the lease on the store does."""
    monkeypatch.setattr(lease, "BEAT_S", 0.2)
    monkeypatch.setattr(lease, "LEASE_S", 1.0)
    lost = Store(f"{BUCKET}/corpus")
    with lock(lost):
        monkeypatch.setenv("OPENUNI_SPOOL", str(tmp_path / "other"))
        with pytest.raises(openuni.OpenUniError, match=r"in use by another run \(host .*Wait for it"):
            run(f"{BUCKET}/raw", f"{BUCKET}/corpus")
        monkeypatch.setattr(Lease, "_keep_alive", lambda self: None)
    silent = Lease(Store(f"{BUCKET}/corpus"), 1.0, 0.2, 0.1)  # of a machine that is lost
    silent.acquire()
    monkeypatch.setattr(lease, "_is_dead_here", lambda record: False)
    started = time.monotonic()
    assert run(f"{BUCKET}/raw", f"{BUCKET}/corpus").summary().ok == 3
    assert time.monotonic() - started > 1.0
    with pytest.raises(LeaseLost):
        silent.check()


def test_verify_finds_and_repairs_damage_on_the_store(remote, bucket):
    chosen = openuni.select(remote, "motion.speed_diag_per_s > 0", out=f"{bucket}/checked")
    report = openuni.verify(chosen, reporter=Reporter(quiet=True))
    assert report.is_sound and report.payloads > 0
    store = chosen.store
    for name, place in ((chosen.parts("filters/motion")[0], -100), (store.names("annotations/dis", ".tar")[0], 700)):
        data = bytearray(store.read(name))
        data[place] ^= 1
        store.put(name, bytes(data))
    with pytest.raises(openuni.OpenUniError, match=r"s3://.*/filters/motion/part-.*\.parquet is damaged"):
        chosen.table("filters/motion")
    report = openuni.verify(chosen, repair=True, reporter=Reporter(quiet=True))
    assert len(report.damage) == 2 and report.is_sound
    assert openuni.verify(chosen, reporter=Reporter(quiet=True)).damage == ()
    assert len(store.folders("damaged")) == 1 and chosen.parts("filters/motion") == []


def test_objects_with_the_characters_of_patterns(bucket, raw):
    fs, root = fsspec.core.url_to_fs(f"{bucket}/odd")
    for name in ("br[1].mp4", "set[2]/what?.mp4"):
        fs.pipe_file(f"{root}/{name}", b"x")
    for given in ("odd/br[1].mp4", "odd/set[2]/what?.mp4"):
        assert find_sources(f"{bucket}/{given}") == [f"{bucket}/{given}"]
    assert find_sources(f"{bucket}/odd/set[2]/*.mp4") == [f"{bucket}/odd/set[2]/what?.mp4"]
    assert len(find_sources(f"{bucket}/odd/")) == 2
