"""The work of one phase in one process, and the loop that drives it: read ahead, compute, write behind."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from openuni.manifests.errors import OpenUniError


class ItemOutcome(NamedTuple):
    """What became of one item."""

    key: str
    status: str  # ok or failed
    error: str = ""
    decodes: int = 0  # how often video was opened to decode frames since the worker's last outcome
    vram_mb: Mapping[str, float] = {}  # per operator, the most GPU memory that it needed so far, 10^6 bytes


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


class Spec(ABC):
    """A picklable description of a phase, from which each process makes its worker."""

    @abstractmethod
    def start(self, device: str) -> Worker:
        """Load models and open writers."""


class WorkerLoop:
    """Drives a worker: items one by one, their neighbours read and written meanwhile, every error made a failed row."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prepare")
        self.writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        self.prefetched: tuple[Any, Future[Any]] | None = None
        self.pending_write: Future[ItemOutcome] | None = None

    def step(self, item: Any, next_item: Any | None) -> ItemOutcome | None:
        """Compute `item` and begin to write it; begin to prepare `next_item`.

        Returns what became of the item before this one, None when `settle` has said so already.
        """
        ready, self.prefetched = self.prefetched, None
        future = ready[1] if ready is not None and ready[0] == item else self.reader.submit(self.worker.prepare, item)
        try:
            prepared = future.result()
            if next_item is not None:
                self.prefetched = (next_item, self.reader.submit(self.worker.prepare, next_item))
            computed = self.worker.compute(item, prepared)
        except OpenUniError:
            raise  # the run cannot go on (a full disk, a missing part): not this clip's fault
        except Exception as error:  # with `_store` the place where a clip's error of any kind becomes a row
            return self.fail(item, format_error(error))
        settled = self.flush()  # one item at most waits to be written: what is computed takes memory
        self.pending_write = self.writer.submit(self._store, item, computed)
        return settled

    def fail(self, item: Any, error: str) -> ItemOutcome | None:
        """Begin to write the item's failure; returns what became of the item before."""
        settled = self.flush()
        self.pending_write = self.writer.submit(self.worker.fail, item, error)
        return settled

    def flush(self) -> ItemOutcome | None:
        """Wait until everything is written; returns what became of the last item, once."""
        behind, self.pending_write = self.pending_write, None
        return behind.result() if behind is not None else None

    def finish(self) -> None:
        """Seal and stop the threads; what is being written is written."""
        self.reader.shutdown(cancel_futures=True)
        self.writer.shutdown()
        self.worker.finish()

    def _store(self, item: Any, computed: Any) -> ItemOutcome:
        try:
            return self.worker.store(item, computed)
        except OpenUniError:
            raise
        except Exception as error:
            return self.worker.fail(item, format_error(error))


def format_error(error: BaseException) -> str:
    """`Type: first line` of an error, short enough for a column."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:500]
