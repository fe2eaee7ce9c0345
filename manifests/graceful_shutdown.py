"""Graceful shutdown: on Ctrl-C and, if asked for, other signals, finish the current item."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


class Terminated(KeyboardInterrupt):
    """A signal other than Ctrl-C asked the process to end. `number`: that of the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(f"terminated by {signal.Signals(number).name}")
        self.number = number


class ShutdownEvent(threading.Event):
    """Set by the first signal. `number`: that of the signal."""

    number = signal.SIGINT.value

    def interrupt(self) -> KeyboardInterrupt:
        """The exception to raise once the current item is finished."""
        return KeyboardInterrupt() if self.number == signal.SIGINT else Terminated(self.number)


@contextmanager
def graceful_shutdown(
    current_item: str, others: Sequence[signal.Signals] = (), event: ShutdownEvent | None = None
) -> Iterator[ShutdownEvent]:
    """Context in which the first Ctrl-C sets the yielded event and the second one interrupts immediately.

    `current_item`: noun phrase for the message, such as "the current clip". `others`: signals that set the event, too,
    and do nothing more: a closed terminal or a scheduler may send several. Those that the process ignores, as SIGHUP
    under nohup, stay ignored. An asynchronous KeyboardInterrupt could be
    swallowed, or leave inconsistent state, inside libraries that call back into Python, such as video decoders.
    Outside the main thread signals do not set the event; `event`: one that the caller may set by itself.
    """
    event = event or ShutdownEvent()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    handled = [number for number in others if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, *handled)}

    def on_signal(number: int, frame: Any) -> None:
        if event.is_set():
            return
        event.number = number
        event.set()
        signal.signal(signal.SIGINT, previous[signal.SIGINT])
        with contextlib.suppress(OSError):  # after SIGHUP the terminal is gone
            os.write(2, f"\nstopping after {current_item}; press Ctrl-C again to stop immediately\n".encode())

    for number in previous:
        signal.signal(number, on_signal)
    try:
        yield event
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
