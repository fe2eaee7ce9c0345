"""The command line: flags say where and how much, the recipe says what.

Exit codes: 0 done, 1 some clips failed, 2 wrong input or a missing part, 3 a fault of openuni itself, 130 stopped by
Ctrl-C.
"""

import os
import shlex
import sys
import traceback

from openuni.cli import components, corpora, models, parity, synthetic
from openuni.cli.app import Interrupted, app
from openuni.manifests.errors import OpenUniError

__all__ = ["app", "components", "corpora", "main", "models", "parity", "synthetic"]

RESUMABLE_COMMANDS = frozenset(
    {"run", "import", "export", "train", "world", "demo"}
)  # what goes on where it was stopped


def main() -> None:
    """The console script."""
    # waiting threads sleep instead of spinning: on a machine that does anything else, spinning makes training on the
    # CPU twenty times slower; set before torch is loaded
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except Interrupted:
        print(f"openuni: stopped. {_resume_hint(sys.argv[1:])}", file=sys.stderr)
        sys.exit(130)
    except OpenUniError as error:
        print(f"openuni: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a file that cannot be read or written where the user said
        print(f"openuni: {type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(2)
    except Exception:  # 1 would read as "some clips failed"
        traceback.print_exc()
        print("openuni: this is a fault of openuni; please report it with the lines above.", file=sys.stderr)
        sys.exit(3)


def _resume_hint(arguments: list[str]) -> str:
    """What to do after Ctrl-C."""
    again = shlex.join(["openuni", *arguments])
    if arguments[0] in RESUMABLE_COMMANDS or arguments[:2] == ["checkpoints", "get"]:
        return f"What is finished is kept. Go on with: {again}"
    return f"Begin again with: {again}"


if __name__ == "__main__":
    main()
