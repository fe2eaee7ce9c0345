"""User-facing errors. Each states what was given, what is allowed and what to do next."""

import difflib
from collections.abc import Iterable


class OpenUniError(Exception):
    """Invalid input or a missing requirement. The command line prints the message, no traceback, and exits with 2."""


class DamagedFile(OpenUniError):
    """A file of a corpus or training run is damaged.

    `where`: its path or URL; `reason`: what is wrong with it; `remedy`: what to do, by default `openuni verify`.
    """

    def __init__(self, where: str, reason: str, remedy: str = "") -> None:
        remedy = remedy or (
            "Restore it, or see what depends on it with: openuni verify FOLDER (for a corpus, --repair sets damaged "
            "files aside, so that the next run recomputes them)."
        )
        super().__init__(f"{where} is damaged: {reason}. {remedy}")
        self.where, self.reason, self.remedy = where, reason, remedy

    def __reduce__(self) -> tuple[type["DamagedFile"], tuple[str, str, str]]:  # errors of Ray workers are pickled
        return DamagedFile, (self.where, self.reason, self.remedy)


class ClipError(Exception):
    """A clip cannot be processed. Its row gets status `failed`; the run continues."""


class Unavailable(ClipError):
    """An operator has no input for a clip. Its row gets status `unavailable`, which is not a failure."""


class MissingRequirement(OpenUniError):
    """A checkpoint or package that a run requires is not installed; the message names the command that installs it."""


class QuietError(OpenUniError):
    """An error that another process prints. `code`: the exit code, that of the other process."""

    def __init__(self, message: str, code: int = 2) -> None:
        super().__init__(message)
        self.code = code


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return ` Did you mean "x"?` if a known name is close to the given one, else an empty string."""
    close = difflib.get_close_matches(given, list(known), n=1, cutoff=0.6)
    return f' Did you mean "{close[0]}"?' if close else ""


def unknown_name(what: str, given: str, known: Iterable[str]) -> str:
    """Return the message for an unknown name: the given name, the closest known name and all known names."""
    known = sorted(known)
    return f'{what} "{given}" is not known.{did_you_mean(given, known)} Known: {", ".join(known) or "none"}.'
