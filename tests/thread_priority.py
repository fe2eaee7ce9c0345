"""What encoding AV1 does to the thread that calls it, and how it is undone."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ordinary_priority() -> Iterator[None]:
    """Undo what the AV1 encoder does: run as root, it gives the thread that calls it real-time priority, for good.

    All that this thread starts afterwards inherits it, and threads that wait by spinning then starve all others.
    """
    try:
        yield
    finally:
        if hasattr(os, "sched_setscheduler") and os.sched_getscheduler(0) != os.SCHED_OTHER:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
