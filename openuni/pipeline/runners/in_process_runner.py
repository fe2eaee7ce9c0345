"""Running phases in this process: for debugging, small corpora, and machines without Ray."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from openuni.manifests.graceful_shutdown import graceful_shutdown
from openuni.pipeline.runners.crash_marks import CrashMarks
from openuni.pipeline.runners.gpu_usage import gpu_sampler
from openuni.pipeline.runners.resources import Pool, Resources, Runner
from openuni.pipeline.worker import ItemOutcome, WorkerLoop, key_of


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
        marks = CrashMarks.of(pool.spec)
        loop = WorkerLoop(pool.spec.start(self.device), marks.working_on)

        def done(outcomes: Iterable[ItemOutcome]) -> None:
            for outcome in outcomes:
                marks.finished(outcome.key)
                pool.report(outcome._replace(usage=outcome.usage._replace(gpus=gpu_shares())))

        try:
            source = iter(pool.items)
            with (
                graceful_shutdown("the current clip") as interrupted,
                marks.watching(),
                gpu_sampler(self.device) as gpu_shares,
            ):
                item = next(source, None)
                while item is not None and not interrupted.is_set():
                    following = next(source, None)
                    for outcomes in _steps(loop, marks, item, following):
                        done(outcomes)
                    item = following
                done(loop.flush())
            if interrupted.is_set():
                raise KeyboardInterrupt
            marks.completed()
        finally:
            loop.finish()


def _steps(loop: WorkerLoop, marks: CrashMarks, item: Any, following: Any | None) -> Iterator[list[ItemOutcome]]:
    """Process an item. One with which the process died before runs alone, or fails."""
    if not marks.is_known(key_of(item)):
        is_prefetched = following is not None and not marks.is_known(key_of(following))
        yield loop.step(item, following if is_prefetched else None)
        return
    yield loop.flush()
    death = marks.take_death(key_of(item))
    if death is not None:
        loop.worker.note_death(key_of(item), death.error, death.traceback)
        yield loop.fail(item, death.error)
    else:
        yield loop.step(item, None)
    yield loop.flush()
