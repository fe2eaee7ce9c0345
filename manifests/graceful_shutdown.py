"""Graceful shutdown: on Ctrl-C, finish the current item."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def graceful_shutdown(current_item: str) -> Iterator[threading.Event]:
    """Context in which the first Ctrl-C sets the yielded event and the second one interrupts immediately.

    `current_item`: noun phrase for the message, such as "the current clip". An asynchronous KeyboardInterrupt could be
    swallowed, or leave inconsistent state, inside libraries that call back into Python, such as video decoders.
    Outside the main thread the event is never set.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    previous_handler = signal.getsignal(signal.SIGINT)

    def on_interrupt(number: int, frame: Any) -> None:
        event.set()
        signal.signal(signal.SIGINT, previous_handler)
        os.write(2, f"\nstopping after {current_item}; press Ctrl-C again to stop immediately\n".encode())

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, previous_handler)
