"""The errors a user can mend: each says what was given, what is allowed and what to do next."""

import difflib
from collections.abc import Iterable


class OpenUniError(Exception):
    """Wrong input or a missing part. The command line prints the text without a traceback and exits with 2."""


class ClipError(Exception):
    """One clip cannot be processed. It becomes a row with status `failed`; the run goes on."""


class Unavailable(ClipError):
    """This clip cannot have what was asked for, and nothing went wrong: a row with status `unavailable`, no failure."""


class MissingRequirement(OpenUniError):
    """Something a run needs is not on this machine (a checkpoint, a package); the text names the command for it."""


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """` Did you mean "x"?` when a known name is close to the given one, else an empty text."""
    close = difflib.get_close_matches(given, list(known), n=1, cutoff=0.6)
    return f' Did you mean "{close[0]}"?' if close else ""


def unknown_name(what: str, given: str, known: Iterable[str]) -> str:
    """One sentence for a name that is not known: what was given, the nearest known one, all known ones."""
    known = sorted(known)
    return f'{what} "{given}" is not known.{did_you_mean(given, known)} Known: {", ".join(known) or "none"}.'
