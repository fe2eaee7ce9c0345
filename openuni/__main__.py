"""`python -m openuni`: the command line without the console script."""

import os
import sys

if __name__ == "__main__":
    # as with the console script, nothing of the current folder is imported unless a recipe names an operator there
    if sys.path[0] in ("", os.getcwd()):  # noqa: PTH109  # what Python put there, by the same call
        del sys.path[0]

    from openuni.cli.main import main

    main()
