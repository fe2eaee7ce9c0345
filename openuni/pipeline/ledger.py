"""The ledger of each run, in `runs/`: what was asked, what happened, and what became of every clip."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import openuni
from openuni.console.progress import Reporter
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.layout import run_record
from openuni.manifests.corpus.outcomes import Summary
from openuni.pipeline.run_log import RunLog, open_run_log

logger = logging.getLogger(__name__)


@contextmanager
def run_ledger(corpus: Corpus, reporter: Reporter, request: Mapping[str, Any]) -> Iterator[RunLog]:
    """Write the ledger and the log of the run inside the context, however it ends. `request`: JSON-able facts of it."""
    started = datetime.now(UTC)
    summary, text = None, None
    name = f"{started:%Y%m%dT%H%M%S.%f}-{uuid4().hex[:6]}"  # sorts by time
    try:
        with open_run_log(corpus, name) as log:
            logger.info("run %s of openuni %s started on %s", name, openuni.__version__, corpus.store.url)
            yield log
            summary = corpus.summary()
            logger.info("run %s finished: %s", name, str(summary).splitlines()[0])
    except BaseException as error:
        text = f"{type(error).__name__}: {error}"
        raise
    finally:
        record = {
            "started": started.isoformat(timespec="seconds"),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            **request,
            "phases": [phase.as_record() for phase in reporter.phases],
            "summary": summary_record(summary) if summary else None,
            "error": text,
        }
        corpus.write_json(run_record(name), record)


def summary_record(summary: Summary) -> dict[str, Any]:
    """A summary as JSON-able tables."""
    record = summary._asdict()
    record["dropped"] = [drop._asdict() for drop in summary.dropped]
    record["failed"] = [failure._asdict() for failure in summary.failed]
    record["unavailable"] = [absence._asdict() for absence in summary.unavailable]
    del record["not_done"]
    if summary.not_done:  # a complete run has the record that it always had
        record["not_done"] = [count._asdict() for count in summary.not_done]
    return record
