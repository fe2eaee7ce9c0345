"""The ledger of each run, in `runs/`: what was asked, what happened, and what became of every clip."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import openuni
from openuni.console.progress import Reporter
from openuni.console.terminal import one_line
from openuni.console.usage import PhaseUsage, nodes_record, slowest_items, slowest_operators
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.layout import run_record
from openuni.manifests.corpus.outcomes import Summary
from openuni.pipeline.run_log import RunLog, open_run_log

MIN_NAMED_S = 10.0  # a run that took less is over before anyone asks what was slow

logger = logging.getLogger(__name__)


@contextmanager
def run_ledger(corpus: Corpus, reporter: Reporter, request: Mapping[str, Any]) -> Iterator[RunLog]:
    """Write the ledger and the log of the run inside the context, however it ends. `request`: JSON-able facts of it."""
    started = datetime.now(UTC)
    summary, text = None, None
    psnr_db: dict[str, dict[str, float]] = {}
    name = f"{started:%Y%m%dT%H%M%S.%f}-{uuid4().hex[:6]}"  # sorts by time
    try:
        with open_run_log(corpus, name) as log:
            logger.info("run %s of openuni %s started on %s", name, openuni.__version__, corpus.store.url)
            psnr_db = log.psnr_db
            yield log
            _name_slowest(reporter, name)
            summary = corpus.summary()
            logger.info("run %s finished: %s", name, str(summary).splitlines()[0])
    except BaseException as error:
        text = f"{type(error).__name__}: {error}"
        raise
    finally:
        usages = [phase.usage for phase in reporter.phases if phase.usage.nodes]
        record = {
            "started": started.isoformat(timespec="seconds"),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            **request,
            "phases": [phase.as_record() for phase in reporter.phases],
            **(usage_record(usages) if usages else {}),
            **({"psnr_db": psnr_db} if psnr_db else {}),
            "summary": summary_record(summary) if summary else None,
            "error": text,
        }
        corpus.write_json(run_record(name), record)


def usage_record(usages: Sequence[PhaseUsage]) -> dict[str, Any]:
    """What a run cost: by node, by operator, and the items that took longest."""
    return {
        "nodes": nodes_record(usages),
        "slowest_operators": [
            {"operator": name, "items": one.items, "seconds_per_item": round(one.seconds_per_item, 4)}
            for name, one in slowest_operators(usages)
        ],
        "slowest_items": [item._asdict() | {"seconds": round(item.seconds, 3)} for item in slowest_items(usages)],
    }


def _name_slowest(reporter: Reporter, run: str) -> None:
    """Log which operators and items took longest; in a run that took a while, name the first of each on the screen.

    `run`: its name.
    """
    usages = [phase.usage for phase in reporter.phases]
    operators = [(name, one) for name, one in slowest_operators(usages) if one.seconds_per_item]
    items = slowest_items(usages)
    for name, one in operators:
        logger.info("%s took %.3g s per item (%d items)", name, one.seconds_per_item, one.items)
    for item in items:
        logger.info("%s took %.3g s in %s on %s", item.key, item.seconds, item.phase, item.host)
    if operators and items and sum(phase.seconds for phase in reporter.phases) >= MIN_NAMED_S:
        (name, one), item = operators[0], items[0]
        text = f"slowest: {name}, {one.seconds_per_item:.3g} s per item; {one_line(item.key)}, {item.seconds:.3g} s"
        reporter.print_line(f"{text}. More in {run_record(run)}")


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
