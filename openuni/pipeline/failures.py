"""Failures of items: the row keeps `Type: first line`, the run's log and its failure file keep the traceback."""

import traceback
from typing import NamedTuple

from openuni.console.terminal import one_line
from openuni.manifests.errors import ClipError, OpenUniError

MAX_ERROR_CHARS = 500
MAX_TRACEBACK_CHARS = 4000
MAX_FOREIGN_FRAMES = 3  # of other packages, at the inner end
# drives every item, tells nothing of one
MACHINERY = (
    *("openuni/pipeline/worker.py", "manifests/video/decoder/process.py"),
    *("concurrent/futures/thread.py", "concurrent/futures/_base.py"),
)


class Failure(NamedTuple):
    """Why an operator or phase failed for an item."""

    key: str  # clip_id, or the source that was ingested
    operator: str  # empty where it is the phase itself
    error: str  # as in the row: `Type: first line`
    traceback: str
    exception: BaseException | None = None  # only within the process where it was raised


class ItemFailed(Exception):
    """`raise_errors` was asked for, and an item failed; its cause is the exception, where it was raised here."""

    def __init__(self, failure: Failure) -> None:
        where = f" in {failure.operator}" if failure.operator else ""
        super().__init__(f"{failure.key} failed{where}: {failure.error}\n{failure.traceback}")
        self.failure = failure


def format_error(error: BaseException) -> str:
    """`Type: message` of an error, on one line and short enough for a column.

    Our own messages are whole: the names in them may contain line ends. Of others, the first line.
    """
    message = str(error).strip()
    if isinstance(error, ClipError | OpenUniError):
        message = one_line(message)
    lines = message.splitlines()
    text = f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
    if len(text) <= MAX_ERROR_CHARS:
        return text
    half = MAX_ERROR_CHARS // 2  # long names come first, and the reason after them
    return f"{text[: half - 3]}...{text[-half:]}"


def trimmed_traceback(error: BaseException) -> str:
    """The traceback without the frames that drive every item, and with the last frames of other packages alone.

    At most `MAX_TRACEBACK_CHARS` characters, cut in the middle.
    """
    parts: list[str] = []
    chain: BaseException | None = error
    while chain is not None and len(parts) < 3:
        frames = [
            frame for frame in traceback.extract_tb(chain.__traceback__) if not frame.filename.endswith(MACHINERY)
        ]
        kept, foreign = [], 0
        for frame in reversed(frames):
            foreign = foreign + 1 if "-packages" in frame.filename else 0
            if foreign <= MAX_FOREIGN_FRAMES:
                kept.append(frame)
        lines = ["Traceback (most recent call last):\n", *traceback.format_list(kept[::-1])]
        parts.append("".join([*lines, *traceback.format_exception_only(chain)]))
        chain = chain.__cause__
    text = "\nThe above exception was the direct cause of the following exception:\n\n".join(reversed(parts))
    if len(text) > MAX_TRACEBACK_CHARS:
        half = MAX_TRACEBACK_CHARS // 2
        text = f"{text[:half]}\n  ...\n{text[-half:]}"
    return text


def failure_of(key: str, operator: str, error: BaseException) -> Failure:
    """The failure that an exception is."""
    return Failure(key, operator, format_error(error), trimmed_traceback(error), error)
