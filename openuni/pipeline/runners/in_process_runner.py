"""Running phases in this process: for debugging, small corpora, and machines without Ray."""

from collections.abc import Sequence

from openuni.manifests.graceful_shutdown import graceful_shutdown
from openuni.pipeline.runners.resources import Pool, Resources, Runner
from openuni.pipeline.worker import WorkerLoop


class InProcessRunner(Runner):
    """Everything in this process: for debugging, small corpora, and machines without Ray."""

    def __init__(self, resources: Resources | None = None) -> None:
        self.resources = resources or Resources()
        self.device = "cuda" if self.resources.gpus else "cpu"

    def run_pools(self, pools: Sequence[Pool]) -> None:
        """See `Runner.run_pools`; one after the other."""
        for pool in pools:
            self._run(pool)

    def _run(self, pool: Pool) -> None:
        loop = WorkerLoop(pool.spec.start(self.device))
        try:
            source = iter(pool.items)
            with graceful_shutdown("the current clip") as interrupted:
                item = next(source, None)
                while item is not None and not interrupted.is_set():
                    next_item = next(source, None)
                    outcome = loop.step(item, next_item)
                    if outcome is not None:
                        pool.report(outcome)
                    item = next_item
                outcome = loop.flush()
                if outcome is not None:
                    pool.report(outcome)
            if interrupted.is_set():
                raise KeyboardInterrupt
        finally:
            loop.finish()
