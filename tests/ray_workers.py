"""Ray workers for tests: a Ray of their own each time, since tests in two processes at once disturb a shared one."""

from openuni.pipeline.runners.resources import Resources


def ray_workers(count: int) -> Resources:
    """`count` Ray workers; 0: in this process."""
    return Resources(count)
