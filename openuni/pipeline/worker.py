"""The work of one phase in one process, and the loop that drives it: read ahead, compute, write behind."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

from openuni.console.usage import ItemUsage
from openuni.manifests.errors import OpenUniError
from openuni.pipeline.failures import Failure, failure_of, format_error
from openuni.pipeline.item_clock import ItemClock


class ItemOutcome(NamedTuple):
    """What became of one item."""

    key: str
    status: str  # ok or failed
    error: str = ""
    decodes: int = 0  # how often video was opened to decode frames since the worker's last outcome
    vram_mb: Mapping[str, float] = {}  # per operator, the most GPU memory that it needed so far, 10^6 bytes
    failures: tuple[Failure, ...] = ()  # with their tracebacks; empty where the worker died
    usage: ItemUsage = ItemUsage()  # where it was processed, and how long its stages took


class Worker(ABC):
    """The work of one phase in one process. Made by a `Spec` inside the process that uses it."""

    @abstractmethod
    def prepare(self, item: Any) -> Any:
        """Read what the item needs (decode its frames). Runs in a thread, ahead of time."""

    @abstractmethod
    def compute(self, item: Any, prepared: Any) -> Any:
        """The work itself; writes nothing."""

    @abstractmethod
    def store(self, item: Any, computed: Any) -> ItemOutcome:
        """Write the item's rows. Runs in a thread, while the next item is computed."""

    @abstractmethod
    def fail(self, item: Any, error: str) -> ItemOutcome:
        """Write rows that say why the item failed. Runs in the same thread."""

    @abstractmethod
    def finish(self) -> None:
        """Seal what was written; nothing more comes."""

    def operator_seconds(self, computed: Any, compute_s: float) -> Mapping[str, float]:
        """Seconds by operator of what `compute` returned; default: none. `compute_s`: of the whole computation."""
        return {}

    def note_failure(self, key: str, operator: str, error: BaseException) -> None:
        """Keep the traceback of a failure that becomes a row. `operator`: empty for the phase itself."""
        self._noted().setdefault(key, []).append(failure_of(key, operator, error))

    def note_death(self, key: str, error: str, traceback: str) -> None:
        """Keep what is known of a crash of the process that worked on an item, for the row that `fail` writes."""
        self._noted().setdefault(key, []).append(Failure(key, "", error, traceback))

    def take_failures(self, key: str) -> tuple[Failure, ...]:
        """The failures noted for an item, once."""
        return tuple(self._noted().pop(key, ()))

    def _noted(self) -> dict[str, list[Failure]]:
        noted: dict[str, list[Failure]] = self.__dict__.setdefault("_failures", {})
        return noted


class Spec(ABC):
    """A picklable description of a phase, from which each process makes its worker."""

    @abstractmethod
    def start(self, device: str) -> Worker:
        """Load models and open writers."""

    def operator_versions(self) -> Mapping[str, str]:
        """Versions of the operators or codecs that run in the phase; default: none."""
        return {}


class WorkerLoop:
    """Drives a worker: prefetches the next item, writes the previous one, and turns every error into a failed row."""

    def __init__(self, worker: Worker, working_on: Callable[[str], AbstractContextManager[Any]] | None = None) -> None:
        """`working_on`: context in which a thread works on the item of this key."""
        self.worker, self.working_on = worker, working_on or nullcontext
        self.reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prepare")
        self.writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        self.prefetched: tuple[Any, Future[Any], ItemClock] | None = None
        self.pending_write: Future[ItemOutcome] | None = None
        self.free_since = time.perf_counter()  # when the last computation ended

    def step(self, item: Any, next_item: Any | None) -> ItemOutcome | None:
        """Compute `item` and start to write it; start to prepare `next_item`.

        Returns the outcome of the item before this one; None if `flush` has returned it already.
        """
        ready, self.prefetched = self.prefetched, None
        _, future, clock = ready if ready is not None and ready[0] == item else self._prefetch(item)
        try:
            prepared = future.result()
            if next_item is not None:
                self.prefetched = self._prefetch(next_item)
            try:
                with clock.computing(self.free_since), self.working_on(key_of(item)):
                    computed = self.worker.compute(item, prepared)
            finally:
                self.free_since = time.perf_counter()
            clock.operators_s = self.worker.operator_seconds(computed, clock.compute_s)
        except OpenUniError:
            raise  # the run cannot go on (a full disk, a missing part): not this clip's fault
        except Exception as error:  # with `_store` the place where a clip's error of any kind becomes a row
            self.worker.note_failure(key_of(item), "", error)
            return self.fail(item, format_error(error), clock)
        outcome = self.flush()  # at most one item waits to be written: results take memory
        self.pending_write = self.writer.submit(self._store, item, computed, clock)
        return outcome

    def fail(self, item: Any, error: str, clock: ItemClock | None = None) -> ItemOutcome | None:
        """Start to write the item's failure; returns the outcome of the item before."""
        outcome = self.flush()
        self.pending_write = self.writer.submit(self._store_failure, item, error, clock or ItemClock())
        return outcome

    def flush(self) -> ItemOutcome | None:
        """Wait until everything is written; returns the outcome of the last item, once."""
        pending, self.pending_write = self.pending_write, None
        if pending is None:
            return None
        outcome = pending.result()
        return outcome._replace(failures=outcome.failures + self.worker.take_failures(outcome.key))

    def finish(self) -> None:
        """Seal and stop the threads; what is being written is written."""
        self.reader.shutdown(cancel_futures=True)
        self.writer.shutdown()
        self.worker.finish()

    def _prefetch(self, item: Any) -> tuple[Any, Future[Any], ItemClock]:
        clock = ItemClock()
        return item, self.reader.submit(self._prepare, item, clock), clock

    def _prepare(self, item: Any, clock: ItemClock) -> Any:
        with clock.preparing(), self.working_on(key_of(item)):
            return self.worker.prepare(item)

    def _store(self, item: Any, computed: Any, clock: ItemClock) -> ItemOutcome:
        try:
            with clock.storing(), self.working_on(key_of(item)):
                outcome = self.worker.store(item, computed)
        except OpenUniError:
            raise
        except Exception as error:
            self.worker.note_failure(key_of(item), "", error)
            outcome = self.worker.fail(item, format_error(error))
        return outcome._replace(usage=clock.usage())

    def _store_failure(self, item: Any, error: str, clock: ItemClock) -> ItemOutcome:
        with clock.storing():
            outcome = self.worker.fail(item, error)
        return outcome._replace(usage=clock.usage())


def key_of(item: Any) -> str:
    """What identifies an item in a run."""
    return str(getattr(item, "key", item))
