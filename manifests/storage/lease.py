"""The lease of a corpus on shared storage: one run writes at a time, whichever machine it runs on.

A lease is a chain of small objects `.lease/NNNNNNNN.json`. A run becomes the owner by creating the next number, which
the store does for one caller only (`If-None-Match` on S3, `O_EXCL` on disks); the newest number is the owner's. The
owner rewrites its object every `BEAT_S` seconds as a sign of life. An object that has not changed for `LEASE_S` seconds
of the watcher's own clock belongs to a dead run and may be succeeded; clocks of different machines are never compared.
A run that was succeeded, for example after its machine was suspended, notices before its next write and stops.

Stores that create an object although it exists are recognized: there a new owner waits `SETTLE_S` seconds, and reads
its object again. Whoever wrote it last is the owner.
"""

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from openuni.manifests.corpus.layout import LEASE
from openuni.manifests.errors import OpenUniError
from openuni.manifests.storage.store import Store

BEAT_S = 10.0
LEASE_S = 60.0
SETTLE_S = 3.0

logger = logging.getLogger(__name__)
_active: set[str] = set()  # owners in this process


class LeaseLost(OpenUniError):
    """Another run has taken over the corpus while this one was not heard of."""


@dataclass(frozen=True)
class LeaseRecord:
    """The content of a lease object."""

    owner: str  # unique to one acquisition
    host: str
    pid: int
    machine: str  # identifies the machine since it was started, and its process numbers
    since: str  # UTC time of the owner's clock, for people
    beats: int = 0
    released: bool = False


class Lease:
    """The lease of one corpus.

    `lease_s`: time without a sign of life after which an owner counts as dead; `beat_s`: interval of the signs of life;
    `settle_s`: wait for other writers, where the store has no exclusive creation.
    """

    def __init__(self, store: Store, lease_s: float, beat_s: float, settle_s: float) -> None:
        self.store, self.lease_s, self.beat_s, self.settle_s = store, lease_s, beat_s, settle_s
        self.number = 0
        self.record: LeaseRecord | None = None
        self.stop = threading.Event()
        self.lost = ""
        self.thread: threading.Thread | None = None

    def acquire(self) -> None:
        """Become the owner. Raises `OpenUniError` if another run shows a sign of life.

        Waits up to `lease_s` seconds to see whether the run that holds the lease is alive.
        """
        since = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
        mine = LeaseRecord(uuid4().hex, socket.gethostname(), os.getpid(), _machine(), since)
        _active.add(mine.owner)  # before others can see it
        try:
            number = self._succeed(mine)
        except BaseException:
            _active.discard(mine.owner)
            raise
        self.number, self.record = number, mine
        self.thread = threading.Thread(target=self._keep_alive, name="lease", daemon=True)
        self.thread.start()
        try:
            for older in range(max(1, number - 2), number):
                self.store.delete(_name(older))
        except Exception as error:  # noqa: BLE001  # of any library; older numbers do no harm
            logger.warning("former leases of %s were not deleted: %s", self.store.url, error)

    def release(self) -> None:
        """Give the lease back, so that the next run need not wait. Raises nothing: it ends by itself otherwise."""
        self.stop.set()
        if self.thread is not None:
            self.thread.join(timeout=self.beat_s)  # a store that does not answer must not keep the run from ending
        if self.record is None:
            return
        _active.discard(self.record.owner)
        try:
            if not self._taken():
                self._write(released=True)
        except Exception as error:  # noqa: BLE001  # of any library
            logger.warning(
                "the lease of %s was not released and ends in %.0f s: %s", self.store.url, self.lease_s, error
            )

    def check(self) -> None:
        """Raise `LeaseLost` if another run has taken over."""
        if not self.lost and not self._taken():
            return
        raise LeaseLost(
            f"another run has taken over the corpus {self.store.url}: this one showed no sign of life for more than "
            f"{self.lease_s:.0f} s{self.lost}. Finished items that were uploaded are kept. Run the same command again "
            "when the other run has ended."
        )

    def _succeed(self, mine: LeaseRecord) -> int:
        """The number of the object that was created."""
        while True:
            number, current = newest_lease(self.store)
            if current is not None and not current.released and not _is_dead_here(current):
                self._watch(number, current)
            if self._create(number + 1, mine):
                return number + 1

    def _watch(self, number: int, seen: LeaseRecord) -> None:
        """Return once the owner counts as dead, has released the lease, or was succeeded."""
        logger.info("%s is held by %s, process %d; looking for a sign of life", self.store.url, seen.host, seen.pid)
        deadline = time.monotonic() + self.lease_s
        while time.monotonic() < deadline:
            time.sleep(min(1.0, self.beat_s / 4))
            latest, current = newest_lease(self.store)
            if latest != number or current is None or current.released:
                return
            if current != seen:
                raise OpenUniError(
                    f"the corpus {self.store.url} is in use by another run (host {current.host}, process "
                    f"{current.pid}, since {current.since} UTC). Wait for it to finish, or stop it."
                )
        logger.warning(
            "the run on %s, process %d, has shown no sign of life for %.0f s; taking over %s",
            *(seen.host, seen.pid, self.lease_s, self.store.url),
        )

    def _create(self, number: int, record: LeaseRecord) -> bool:
        path, data = self.store.path(_name(number)), _encode(record)
        if self.store.is_local:
            self.store.local(LEASE).mkdir(parents=True, exist_ok=True)
        try:
            self.store.fs.pipe_file(path, data, mode="create")
        except FileExistsError:  # ours if the answer to an earlier attempt was lost
            return _read(self.store, number) == record
        try:  # the store knows exclusive creation only if it refuses this
            self.store.fs.pipe_file(path, data, mode="create")
        except FileExistsError:
            return True
        time.sleep(self.settle_s)
        return _read(self.store, number) == record

    def _keep_alive(self) -> None:
        heard = time.monotonic()
        while not self.stop.wait(self.beat_s):
            try:
                if self._taken():
                    return
                self._write()
                heard = time.monotonic()
            except Exception as error:  # noqa: BLE001  # of any library; the next beat may get through
                logger.warning("no sign of life could be written to %s: %s", self.store.url, error)
                if time.monotonic() - heard > self.lease_s:
                    self.lost = f" because its store did not answer ({type(error).__name__})"
                    return

    def _taken(self) -> bool:
        """Whether the lease is another's: a later number, or another owner where stores do not create exclusively."""
        current = _read(self.store, self.number)
        if self.store.exists(_name(self.number + 1)) or current is None or self.record is None:
            return True
        return current.owner != self.record.owner

    def _write(self, released: bool = False) -> None:
        assert self.record is not None
        changes = asdict(self.record) | {"beats": self.record.beats + 1, "released": released}
        self.record = LeaseRecord(**changes)
        self.store.put(_name(self.number), _encode(self.record))


def newest_lease(store: Store) -> tuple[int, LeaseRecord | None]:
    """The newest number and its record; 0 and None before the first lease."""
    numbers = [int(stem) for name in store.names(LEASE, ".json") if (stem := name[len(LEASE) + 1 : -5]).isdecimal()]
    number = max(numbers, default=0)
    return number, _read(store, number) if number else None


def worker_fence(store: Store) -> None:
    """Make the writes of a worker's store fail once the lease under which it was started has been succeeded."""
    number, _ = newest_lease(store)
    if number:

        def check() -> None:
            # the successor deletes the number before its own
            if store.exists(_name(number + 1)) or not store.exists(_name(number)):
                raise LeaseLost(f"another run has taken over the corpus {store.url}; this worker stops")

        store.fence = check


@contextmanager
def held_lease(store: Store) -> Iterator[None]:
    """Hold the lease; writes of `store` fail with `LeaseLost` once another run has taken over."""
    lease = Lease(store, LEASE_S, BEAT_S, SETTLE_S)
    lease.acquire()
    store.fence = lease.check
    try:
        yield
    finally:
        store.fence = None
        lease.release()


def _name(number: int) -> str:
    return f"{LEASE}/{number:08}.json"


def _encode(record: LeaseRecord) -> bytes:
    return json.dumps(asdict(record)).encode()


def _read(store: Store, number: int) -> LeaseRecord | None:
    """The record of a number; None if it is gone. A damaged one is a dead owner's: nobody rewrites it."""
    try:
        data = store.read(_name(number))
    except FileNotFoundError:
        return None
    try:
        return LeaseRecord(**json.loads(data))
    except (ValueError, TypeError, RecursionError):
        return LeaseRecord("damaged", "unknown", 0, "", "unknown")


def _machine() -> str:
    """Empty where it cannot be known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _is_dead_here(record: LeaseRecord) -> bool:
    """Whether the owner is gone from this machine: then nobody need wait for a sign of life."""
    if not record.machine or record.machine != _machine():
        return False
    if record.pid == os.getpid():
        return record.owner not in _active
    try:
        os.kill(record.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False
