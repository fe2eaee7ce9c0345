"""The command line: flags say where and how much, the recipe says what.

Exit codes: 0 success, 1 some clips failed, 2 wrong input or a missing requirement, 3 internal error, 130 stopped by
Ctrl-C, 143 by SIGTERM, 129 by SIGHUP.
"""

import contextlib
import os
import shlex
import sys
import traceback

from openuni.cli import components, corpora, evaluation, integrity, models, parity, synthetic
from openuni.cli.app import Interrupted, app, is_first_rank
from openuni.console.logs import verbosity
from openuni.console.terminal import print_text
from openuni.manifests.errors import OpenUniError, QuietError
from openuni.manifests.storage.remote_errors import is_remote_error, store_error
from openuni.pipeline.failures import ItemFailed, format_error

__all__ = ["app", "components", "corpora", "evaluation", "integrity", "main", "models", "parity", "synthetic"]

RESUMABLE_COMMANDS = frozenset({"run", "import", "export", "train", "world", "demo"})


def main() -> None:
    """The console script."""
    # waiting threads sleep instead of spinning: on a machine that does anything else, spinning makes training on the
    # CPU twenty times slower; set before torch is loaded
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except Interrupted as interrupted:
        with contextlib.suppress(OSError):  # after SIGHUP the terminal is gone
            if is_first_rank():
                print_text(f"openuni: stopped. {resume_hint(sys.argv[1:])}", error=True)
        sys.exit(128 + interrupted.number)
    except ItemFailed as failed:  # --raise-errors
        print_text(f"openuni: {failed}", error=True)
        sys.exit(1)
    except QuietError as error:  # another rank of a training prints it
        sys.exit(error.code)
    except OpenUniError as error:
        if verbosity() and error.__cause__ is not None:
            print_text("".join(traceback.format_exception(error)), end="", error=True)
        print_text(f"openuni: {error}", error=True)
        sys.exit(2)
    except Exception as error:
        sys.exit(_report(error))


def _report(error: Exception) -> int:
    """Print what happened; return the exit code."""
    from openuni.manifests.corpus.writer import is_disk_full

    if is_disk_full(error):  # safetensors has an error class of its own
        print_text(
            f"openuni: no space left on the disk: {error}. Everything finished is kept. Free some space, then rerun "
            "the same command.",
            error=True,
        )
        return 2
    if is_remote_error(error):
        print_text(f"openuni: {store_error(error)}", error=True)
        return 2
    if isinstance(error, MemoryError):  # of Arrow too: a part may expand to any size
        print_text(
            f"openuni: out of memory: {error}. Finished items are kept. Use fewer --workers, or check a corpus that is "
            "not your own with: openuni verify",
            error=True,
        )
        return 2
    if isinstance(error, OSError):  # a file that cannot be read or written where the user said
        print_text(f"openuni: {type(error).__name__}: {error}", error=True)
        return 2
    print_text("".join(traceback.format_exception(error)), end="", error=True)  # 1 would read as "some clips failed"
    print_text(
        f"openuni: internal error: {format_error(error)}. Please report it with the traceback above and, for a "
        "command that writes a corpus, its newest runs/*.log.",
        error=True,
    )
    return 3


def resume_hint(arguments: list[str]) -> str:
    """What to do after Ctrl-C."""
    again = shlex.join(["openuni", *arguments])
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        return "Finished steps are kept. Resume with the same command."
    command = [text for text in arguments if not text.startswith("-")][:2]  # -v stands before the command
    if not RESUMABLE_COMMANDS.isdisjoint(command[:1]) or command == ["checkpoints", "get"]:
        return f"Finished items are kept. Resume with: {again}"
    return f"Start again with: {again}"


if __name__ == "__main__":
    main()
