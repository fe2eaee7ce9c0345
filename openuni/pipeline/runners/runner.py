"""Opening the runner for the resources of a run."""

from collections.abc import Iterator
from contextlib import contextmanager

from openuni.pipeline.runners.in_process_runner import InProcessRunner
from openuni.pipeline.runners.ray_runner import RayRunner
from openuni.pipeline.runners.resources import Resources, Runner


@contextmanager
def open_runner(resources: Resources) -> Iterator[Runner]:
    """The runner for these resources; its processes end with the context."""
    if resources.workers == 0:
        yield InProcessRunner(resources)
        return
    runner = RayRunner(resources)
    try:
        yield runner
    finally:
        runner.close()
