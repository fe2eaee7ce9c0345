"""Ctrl-C between items: what is in hand ends whole."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def graceful_shutdown(current_item: str) -> Iterator[threading.Event]:
    """Within it, a first Ctrl-C only sets the event and says so; a second stops at once.

    `current_item`: what is finished first, for the message. An exception out of nowhere would be lost, or damage what
    is read, inside libraries that call back into Python, such as decoders.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.getsignal(signal.SIGINT)

    def on_interrupt(number: int, frame: Any) -> None:
        event.set()
        signal.signal(signal.SIGINT, before)
        os.write(2, f"\nstopping when {current_item} is done; Ctrl-C again stops at once\n".encode())

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)
