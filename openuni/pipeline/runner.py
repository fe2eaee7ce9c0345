"""Opening the runner for the resources of a run."""

from collections.abc import Iterator
from contextlib import contextmanager

from openuni.pipeline.in_process_runner import InProcessRunner
from openuni.pipeline.ray_runner import RayRunner
from openuni.pipeline.resources import Resources, Runner


@contextmanager
def open_runner(resources: Resources) -> Iterator[Runner]:
    """The runner for these resources; its processes end with the context."""
    if resources.workers == 0:
        yield InProcessRunner("cuda" if resources.gpus else "cpu")
        return
    runner = RayRunner(resources)
    try:
        yield runner
    finally:
        runner.close()
