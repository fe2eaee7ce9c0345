"""Ending a child process with its parent."""

import fcntl
import os
import select
import signal


def end_with_parent(lifeline: int, *, group: bool = False) -> None:
    """Let the kernel end this process when the other end of a pipe is closed, even while native code hangs.

    `group`: with all processes of its group, such as those that it has started.
    """
    if hasattr(fcntl, "F_SETSIG"):
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp() if group else os.getpid())
        fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC | os.O_NONBLOCK)
    if select.select([lifeline], [], [], 0)[0]:  # it is gone already
        os._exit(0)
