"""The log of a run and its failures, in `runs/` beside the ledger: what `openuni explain` reads tracebacks from."""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from openuni.console.logs import FORMAT, handler_at
from openuni.manifests.corpus.column_groups import ColumnGroups
from openuni.manifests.corpus.layout import RUNS, run_failures, run_log
from openuni.manifests.errors import DamagedFile
from openuni.manifests.storage.checksums import parse_record, record_bytes
from openuni.pipeline.failures import Failure, ItemFailed
from openuni.pipeline.worker import ItemOutcome

logger = logging.getLogger(__name__)


class RunLog:
    """Collects the failures and measurements of a run; its log lines come from the logger `openuni`."""

    def __init__(self, failures: IO[Any]) -> None:
        self._failures = failures
        self.psnr_db: dict[str, dict[str, float]] = {}  # by latent family and clip: of decoded latents

    def outcome(self, outcome: ItemOutcome, phase: str, *, raise_errors: bool = False) -> None:
        """Keep the failures of an item; `raise_errors`: raise `ItemFailed` for the first of them."""
        failures = outcome.failures
        if outcome.status == "failed" and not failures:
            failures = (Failure(outcome.key, "", outcome.error, ""),)  # its worker died
        for failure in failures:
            self.failure(failure, phase)
        if failures and raise_errors:
            raise ItemFailed(failures[0]) from failures[0].exception

    def failure(self, failure: Failure, phase: str) -> None:
        """Keep the traceback of a failed item."""
        where = failure.operator or phase
        logger.info("%s: %s failed: %s\n%s", where, failure.key, failure.error, failure.traceback)
        record = {"key": failure.key, "operator": where, "error": failure.error, "traceback": failure.traceback}
        self._failures.write(record_bytes(record, indent=None).decode() + "\n")
        self._failures.flush()


class _File(logging.StreamHandler[IO[Any]]):
    """A full disk ends the run where rows are written, not where lines are."""

    def handleError(self, record: logging.LogRecord) -> None:  # the name that logging knows
        """See `logging.Handler.handleError`."""


@contextmanager
def open_run_log(corpus: ColumnGroups, name: str) -> Iterator[RunLog]:
    """Write `runs/NAME.log` and, where items fail, `runs/NAME.failures.jsonl` of the run inside the context.

    Lines appear as they are logged where the corpus is a local folder, at the end of the run on an object store.
    """
    log, failures = _opened(corpus, run_log(name)), _opened(corpus, run_failures(name))
    handler = _File(log)
    handler.setFormatter(logging.Formatter(FORMAT))
    try:
        with handler_at(handler, logging.INFO):
            yield RunLog(failures)
    finally:
        for path, file in ((run_log(name), log), (run_failures(name), failures)):
            _close(corpus, path, file)


def failures_of(corpus: ColumnGroups, keys: set[str]) -> list[dict[str, str]]:
    """The failures of an item over all runs, the newest of each operator first. `keys`: its clip_id, its source."""
    found: dict[str, dict[str, str]] = {}
    for name in reversed(corpus.store.names(RUNS, ".failures.jsonl")):
        for number, line in reversed(list(enumerate(corpus.store.read(name).splitlines(), 1))):
            try:
                record = parse_record(line, f"{corpus.store.location(name)} line {number}")
            except DamagedFile as error:
                logger.warning("skipped: %s", error)  # or cut short by a kill
                continue
            if record.get("key") in keys:
                found.setdefault(str(record.get("operator")), {key: str(value) for key, value in record.items()})
    return list(found.values())


def _opened(corpus: ColumnGroups, path: str) -> IO[Any]:
    if not corpus.store.is_local:
        return io.StringIO()
    local = corpus.store.local(path)
    local.parent.mkdir(parents=True, exist_ok=True)
    return local.open("w", encoding="utf-8", errors="backslashreplace")


def _close(corpus: ColumnGroups, path: str, file: IO[Any]) -> None:
    if isinstance(file, io.StringIO):
        if file.getvalue():
            corpus.store.put(path, file.getvalue().encode("utf-8", "backslashreplace"))
        return
    file.close()
    local = corpus.store.local(path)
    if local.is_file() and not local.stat().st_size:
        local.unlink()
