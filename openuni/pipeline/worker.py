"""The work of one phase in one process, and the loop that drives it: read ahead, compute, write behind."""

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
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
    decode_fallbacks: int = 0  # of `decodes`, those that the CPU did because NVDEC could not
    psnr_db: float | None = None  # of a clip whose latents were decoded to measure it


class Worker(ABC):
    """The work of one phase in one process. Made by a `Spec` inside the process that uses it."""

    def working_on(self, *keys: str) -> AbstractContextManager[Any]:
        """Context in which a thread of the worker's own works on the items of these keys; the loop replaces it."""
        return nullcontext()

    @abstractmethod
    def prepare(self, item: Any) -> Any:
        """Read what the item needs (decode its frames). Runs in a thread, ahead of time."""

    @abstractmethod
    def compute(self, item: Any, prepared: Any) -> Any:
        """The work itself; writes nothing."""

    @abstractmethod
    def store(self, item: Any, computed: Any) -> ItemOutcome | None:
        """Write the item's rows. Runs in a thread, while the next item is computed.

        None: a part of the item waits for `compute_batch`, and is stored with a further call.
        """

    @abstractmethod
    def fail(self, item: Any, error: str) -> ItemOutcome:
        """Write rows that say why the item failed. Runs in the same thread."""

    @abstractmethod
    def finish(self) -> None:
        """Seal what was written; nothing more comes."""

    def operator_seconds(self, computed: Any, compute_s: float) -> Mapping[str, float]:
        """Seconds by operator of what `compute` returned; default: none. `compute_s`: of the whole computation."""
        return {}

    def may_wait(self, waiting: Sequence[tuple[Any, Any]]) -> bool:
        """Whether these may wait to be stored while further items are computed; one always may. Default: one.

        `waiting`: the items and what `compute` returned of them, which takes memory.
        """
        return False

    def waiting(self) -> Sequence[Any]:
        """The items of which a part waits to be computed together with that of others. Default: none."""
        return ()

    def is_batch_full(self) -> bool:
        """Whether as many items wait as can be computed together."""
        return False

    def compute_batch(self) -> Sequence[tuple[Any, Any]]:
        """The rest of the work on the items that wait: each with what `store` takes. Then none waits."""
        raise NotImplementedError

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


class _Write(NamedTuple):
    """What is being written, or waits for it."""

    parts: Sequence[tuple[Any, Any]]  # items and results; none for a failure
    future: Future[list[ItemOutcome]]


class WorkerLoop:
    """Drives a worker: prefetches the next item, writes the previous one, and turns every error into a failed row.

    Work that a worker does on several items together is done when enough of them wait, when nothing is known to follow,
    and before anything is flushed.
    """

    def __init__(self, worker: Worker, working_on: Callable[..., AbstractContextManager[Any]] | None = None) -> None:
        """`working_on`: context in which a thread works on the items of these keys."""
        self.worker, self.working_on = worker, working_on or (lambda *keys: nullcontext())
        worker.working_on = self.working_on  # type: ignore[method-assign]
        self.reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prepare")
        self.writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        self.prefetched: tuple[Any, Future[Any], ItemClock] | None = None
        self.pending_writes: deque[_Write] = deque()  # in order; the writer has begun with the first one
        self.is_broken = False  # a write ended the run: those that follow would be on top of what it left
        self.clocks: dict[str, ItemClock] = {}  # of the items that are not completed, by key
        self.free_since = time.perf_counter()  # when the last computation ended

    def step(self, item: Any, next_item: Any | None) -> list[ItemOutcome]:
        """Compute `item` and start to write it; start to prepare `next_item`.

        Returns the outcomes of the items that were completed since the last call: those of items before this one.
        """
        ready, self.prefetched = self.prefetched, None
        _, future, clock = ready if ready is not None and ready[0] == item else self._prefetch(item)
        self.clocks[key_of(item)] = clock
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
            outcomes = self.fail(item, format_error(error))
        else:
            outcomes = self._make_room(item, computed)  # results take memory
            self._write([(item, computed)])
        if next_item is None or self.worker.is_batch_full():
            outcomes += self._compute_batch()
        return outcomes

    def fail(self, item: Any, error: str) -> list[ItemOutcome]:
        """Start to write the item's failure; returns the outcomes of items before."""
        outcomes = self._written()
        self.pending_writes.append(_Write((), self.writer.submit(lambda: [self._store_failure(item, error)])))
        return outcomes

    def flush(self) -> list[ItemOutcome]:
        """Compute what waits, and wait until everything is written; returns the outcomes that are left, once."""
        return self._compute_batch() + self._written()

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

    def _compute_batch(self) -> list[ItemOutcome]:
        """Compute the items that wait together, and start to write them; returns the outcomes of items before."""
        waiting = self.worker.waiting()
        if not waiting:
            return []
        started = time.perf_counter()
        with self.working_on(*map(key_of, waiting)):
            computed = self.worker.compute_batch()
        self.free_since = time.perf_counter()
        share_s = (self.free_since - started) / len(computed)
        for item, results in computed:
            self.clocks[key_of(item)].add_batch(share_s, self.worker.operator_seconds(results, share_s))
        outcomes = self._written()
        self._write(computed)
        return outcomes

    def _write(self, parts: Sequence[tuple[Any, Any]]) -> None:
        self.pending_writes.append(_Write(parts, self.writer.submit(self._store, parts)))

    def _make_room(self, item: Any, computed: Any) -> list[ItemOutcome]:
        """Wait until this result may wait to be written beside others; returns the outcomes of those written."""
        outcomes: list[ItemOutcome] = []
        while self.pending_writes:
            waiting = [part for write in self.pending_writes for part in write.parts]
            if not self.pending_writes[0].future.done() and self.worker.may_wait([*waiting, (item, computed)]):
                break
            outcomes += self._take_written()
        return outcomes

    def _written(self) -> list[ItemOutcome]:
        """Wait until everything that was computed is written; returns the outcomes, once."""
        outcomes: list[ItemOutcome] = []
        while self.pending_writes:
            outcomes += self._take_written()
        return outcomes

    def _take_written(self) -> list[ItemOutcome]:
        done = self.pending_writes.popleft().future.result()
        return [one._replace(failures=one.failures + self.worker.take_failures(one.key)) for one in done]

    def _store(self, parts: Sequence[tuple[Any, Any]]) -> list[ItemOutcome]:
        if self.is_broken:
            return []
        try:
            outcomes = [self._store_one(item, computed) for item, computed in parts]
        except BaseException:
            self.is_broken = True
            raise
        return [outcome for outcome in outcomes if outcome is not None]

    def _store_one(self, item: Any, computed: Any) -> ItemOutcome | None:
        try:
            with self.clocks[key_of(item)].storing(), self.working_on(key_of(item)):
                outcome = self.worker.store(item, computed)
        except OpenUniError:
            raise
        except Exception as error:
            self.worker.note_failure(key_of(item), "", error)
            return self._store_failure(item, format_error(error))
        return outcome if outcome is None else self._completed(item, outcome)

    def _store_failure(self, item: Any, error: str) -> ItemOutcome:
        with self.clocks.setdefault(key_of(item), ItemClock()).storing():
            outcome = self.worker.fail(item, error)
        return self._completed(item, outcome)

    def _completed(self, item: Any, outcome: ItemOutcome) -> ItemOutcome:
        return outcome._replace(usage=self.clocks.pop(key_of(item)).usage())


def key_of(item: Any) -> str:
    """What identifies an item in a run."""
    return str(getattr(item, "key", item))
