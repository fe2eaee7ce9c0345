"""Running phases in this process: for debugging, small corpora, and machines without Ray."""

from collections.abc import Callable, Iterable
from typing import Any

from openuni.manifests.graceful_shutdown import graceful_shutdown
from openuni.pipeline.runners.resources import Runner
from openuni.pipeline.worker import ItemOutcome, Spec, WorkerLoop


class InProcessRunner(Runner):
    """Everything in this process: for debugging, small corpora, and machines without Ray."""

    def __init__(self, device: str) -> None:
        self.device = device

    def run(
        self,
        spec: Spec,
        items: Iterable[Any],
        report: Callable[[ItemOutcome], None],
        on_death: Callable[[list[Any]], list[Any]],
    ) -> None:
        """See `Runner.run`."""
        loop = WorkerLoop(spec.start(self.device))
        try:
            source = iter(items)
            with graceful_shutdown("the current clip") as interrupted:
                item = next(source, None)
                while item is not None and not interrupted.is_set():
                    next_item = next(source, None)
                    outcome = loop.step(item, next_item)
                    if outcome is not None:
                        report(outcome)
                    item = next_item
                outcome = loop.flush()
                if outcome is not None:
                    report(outcome)
            if interrupted.is_set():
                raise KeyboardInterrupt
        finally:
            loop.finish()
