"""The lease: one owner at a time on every kind of store, dead owners are succeeded, and succeeded ones cannot write."""

import errno
import fcntl
import json
import os
import threading
import time
from dataclasses import asdict
from uuid import uuid4

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from openuni.manifests.errors import OpenUniError
from openuni.manifests.storage import lease as lease_module
from openuni.manifests.storage.lease import Lease, LeaseLost, LeaseRecord, newest_lease, worker_fence
from openuni.manifests.storage.lock import lock, worker_lock
from openuni.manifests.storage.store import Store
from tests.s3_server import s3_bucket

QUICK = {"lease_s": 0.3, "beat_s": 0.1, "settle_s": 0.5}
PATIENT = QUICK | {"lease_s": 60.0}  # no owner counts as dead because the machine is busy with other work


class Overwriting(MemoryFileSystem):
    """A store that knows no exclusive creation: it overwrites."""

    protocol = "overwriting"
    store: dict = {}  # noqa: RUF012

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        super().pipe_file(path, value, mode="overwrite")


fsspec.register_implementation("overwriting", Overwriting, clobber=True)


@pytest.fixture(scope="module")
def s3():
    with s3_bucket("lease-test") as url:
        yield url


@pytest.fixture(params=["local", "memory", "s3", "overwriting"])
def url(request, tmp_path):
    if request.param == "local":
        return str(tmp_path / "corpus")
    if request.param == "s3":
        return f"{request.getfixturevalue('s3')}/{uuid4().hex}"
    return f"{request.param}://{uuid4().hex}"


def orphan(store: Store, number: int = 1, **changes: object) -> LeaseRecord:
    """A lease whose owner is gone; it was on another machine unless `machine` says otherwise."""
    record = asdict(LeaseRecord("gone", "elsewhere", 1, "another boot", "2026-01-01 00:00:00")) | changes
    if store.is_local:
        store.local(".lease").mkdir(parents=True, exist_ok=True)
    store.fs.pipe_file(store.path(f".lease/{number:08}.json"), json.dumps(record).encode())
    return LeaseRecord(**record)


def test_one_of_many_gets_it(url):
    results: list[object] = []

    def take() -> None:
        one = Lease(Store(url), **PATIENT)
        try:
            one.acquire()
            results.append(one)
        except OpenUniError as error:
            results.append(error)

    threads = [threading.Thread(target=take) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (owner,) = [one for one in results if isinstance(one, Lease)]
    assert len(results) == 5
    assert all("is in use by another run (host " in str(error) for error in results if error is not owner)
    owner.check()
    owner.release()


def test_a_dead_owner_is_succeeded_and_not_before_its_time(url):
    store = Store(url)
    orphan(store)
    started = time.monotonic()
    successor = Lease(store, **QUICK)
    successor.acquire()
    assert time.monotonic() - started >= QUICK["lease_s"]
    assert newest_lease(store)[0] == 2 and not store.exists(".lease/00000001.json")
    successor.release()


def test_a_living_owner_is_not(url):
    owner = Lease(Store(url), **PATIENT)
    owner.acquire()
    time.sleep(0.3)
    with pytest.raises(OpenUniError, match=f"process {os.getpid()}, since 20"):
        Lease(Store(url), **PATIENT).acquire()
    owner.check()
    owner.release()


def test_a_released_lease_and_that_of_a_dead_process_of_this_machine_are_taken_at_once(url):
    store = Store(url)
    first = Lease(store, 60.0, 10.0, 0.1)
    first.acquire()
    first.release()
    started = time.monotonic()
    second = Lease(store, 60.0, 10.0, 0.1)
    second.acquire()
    second.release()
    assert newest_lease(store)[0] == 2
    orphan(store, 3, machine=lease_module._machine(), pid=2**22 + 1)  # above the largest process number
    third = Lease(store, 60.0, 10.0, 0.1)
    third.acquire()
    third.release()
    orphan(store, 5, machine=lease_module._machine(), pid=os.getpid())  # could not be released by this process
    fourth = Lease(store, 60.0, 10.0, 0.1)
    fourth.acquire()
    fourth.release()
    assert newest_lease(store)[0] == 6 and time.monotonic() - started < 10


@pytest.mark.parametrize("takeovers", [1, 2, 3])
def test_who_was_succeeded_cannot_write(url, takeovers):
    suspended, worker = Store(url), Store(url)
    owner = Lease(suspended, lease_s=1.0, beat_s=3600.0, settle_s=0.1)  # no sign of life, as of a suspended machine
    owner.acquire()
    suspended.fence = owner.check
    worker_fence(worker)
    for store in (suspended, worker):
        store.put("clips/before.parquet", b"1")
    for _ in range(takeovers):
        successor = Lease(Store(url), lease_s=0.3, beat_s=0.4, settle_s=0.1)
        successor.acquire()
        successor.stop.set()  # before its first sign of life
    for store in (suspended, worker):
        for write in (
            lambda store=store: store.put("clips/late.parquet", b"2"),
            lambda store=store: store.delete("clips/before.parquet"),
            lambda store=store: store.move("clips/before.parquet", "clips/moved.parquet"),
        ):
            with pytest.raises(LeaseLost, match="another run has taken over"):
                write()
    assert Store(url).names("clips", ".parquet") == ["clips/before.parquet"]
    owner.release()  # leaves the successor's alone
    assert not newest_lease(Store(url))[1].released


@pytest.mark.parametrize("data", [b"{", b"[" * 100_000, b"[]"], ids=["cut", "nested", "list"])
def test_a_damaged_lease_is_succeeded(url, data):
    store = Store(url)
    orphan(store)
    store.fs.pipe_file(store.path(".lease/00000001.json"), data)
    successor = Lease(store, **QUICK)
    successor.acquire()
    successor.release()
    assert newest_lease(store)[0] == 2


def test_an_owner_whose_store_is_silent_stops(monkeypatch):
    store = Store(f"memory://{uuid4().hex}")
    owner = Lease(store, lease_s=0.3, beat_s=0.1, settle_s=0.1)
    owner.acquire()

    def silent(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", silent)
    owner.thread.join(timeout=5)
    monkeypatch.undo()
    with pytest.raises(LeaseLost, match=r"did not answer \(ConnectionError\)"):
        owner.check()


def test_what_a_run_raises_is_not_hidden_by_a_lease_that_cannot_be_released(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENUNI_SPOOL", str(tmp_path / "spool"))
    store = Store(f"memory://{uuid4().hex}")

    def silent(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    with pytest.raises(ZeroDivisionError), lock(store):
        monkeypatch.setattr(MemoryFileSystem, "pipe_file", silent)
        raise ZeroDivisionError
    monkeypatch.undo()
    assert newest_lease(store)[0] == 1 and not newest_lease(store)[1].released
    monkeypatch.setenv("OPENUNI_SPOOL", str(tmp_path / "spool"))
    with lock(store):  # at once: the owner is known to be gone
        assert newest_lease(store)[0] == 2


def test_remote_corpora_and_file_systems_without_locks_use_it(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENUNI_SPOOL", str(tmp_path / "spool"))
    remote, local = Store(f"memory://{uuid4().hex}"), Store(str(tmp_path / "corpus"))
    with lock(remote):
        worker_lock(remote).close()
        assert remote.fence is not None and not newest_lease(remote)[1].released
    assert remote.fence is None and newest_lease(remote)[1].released
    with lock(local):
        assert local.fence is None and newest_lease(local) == (0, None)
    monkeypatch.setenv("OPENUNI_LOCK", "lease")
    with lock(local):
        assert local.fence is not None
    monkeypatch.setenv("OPENUNI_LOCK", "none")
    with pytest.raises(OpenUniError, match=r'OPENUNI_LOCK = "none"\. Allowed: lease'), lock(local):
        pass
    monkeypatch.delenv("OPENUNI_LOCK")

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with lock(local):
        worker_lock(local).close()
        assert local.fence is not None
