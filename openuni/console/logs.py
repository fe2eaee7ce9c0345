"""Logging: quiet by default, `-v` and `-vv` on the terminal, and records that worker processes hand to the driver."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from openuni.console.terminal import escape

FORMAT = "%(asctime)s %(levelname)-7s %(processName)s %(name)s: %(message)s"
LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)  # by how often -v was given

_console: logging.Handler | None = None


def openuni_logger() -> logging.Logger:
    """The logger above all of ours. It has no handlers of its own: an application that uses openuni adds them."""
    return logging.getLogger("openuni")


def show_logs(verbosity: int) -> None:
    """Write log records to stderr: warnings (0), also information (1), also debug messages (2 and more)."""
    global _console
    logger = openuni_logger()
    if _console is not None:
        logger.removeHandler(_console)
    level = LEVELS[min(verbosity, len(LEVELS) - 1)]
    _console = logging.StreamHandler(sys.stderr)
    _console.setFormatter(TerminalFormatter(FORMAT if verbosity else "%(message)s"))
    _console.setLevel(level)
    logger.addHandler(_console)
    logger.setLevel(level)
    logger.propagate = False


def verbosity() -> int:
    """How often -v was given, for processes that a command starts."""
    level = openuni_logger().getEffectiveLevel()
    return sum(level <= known for known in LEVELS[1:])


@contextmanager
def handler_at(handler: logging.Handler, level: int) -> Iterator[None]:
    """Within it, the handler gets all our records from `level` on; other handlers get what they got before."""
    logger = openuni_logger()
    before, propagated = logger.level, logger.propagate
    effective = logger.getEffectiveLevel()
    forward = _Forward(effective, logger) if propagated and level < effective else None
    if forward is not None:
        logger.propagate = False
        logger.addHandler(forward)
    handler.setLevel(level)
    logger.addHandler(handler)
    logger.setLevel(min(level, effective))
    try:
        yield
    finally:
        logger.removeHandler(handler)
        if forward is not None:
            logger.removeHandler(forward)
        logger.setLevel(before)
        logger.propagate = propagated


class TerminalFormatter(logging.Formatter):
    """Formats records for a terminal: control characters in names and messages are escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        return escape(super().format(record))


class _Forward(logging.Handler):
    """Passes records on to the handlers of the application, as before the level was lowered."""

    def __init__(self, level: int, logger: logging.Logger) -> None:
        super().__init__(level)
        self.parent = logger.parent

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler.emit`."""
        if self.parent is not None:
            self.parent.callHandlers(record)


class Line(NamedTuple):
    """A log record as it travels between processes."""

    logger: str
    level: int
    created_s: float  # seconds since the epoch
    process: str
    message: str

    def emit(self) -> None:
        """Log it in this process, as it was logged there."""
        record = logging.LogRecord(self.logger, self.level, "", 0, self.message, None, None)
        record.created, record.processName = self.created_s, self.process
        record.msecs = self.created_s % 1 * 1000
        logging.getLogger(self.logger).handle(record)


class Collector(logging.Handler):
    """Keeps the records of a worker process until the driver takes them."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self.process = process
        self.lines: list[Line] = []

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler.emit`."""
        self.lines.append(Line(record.name, record.levelno, record.created, self.process, record.getMessage()))

    def take(self) -> tuple[Line, ...]:
        """What was logged since the last call."""
        taken, self.lines = tuple(self.lines), []
        return taken
