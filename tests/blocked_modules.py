"""As a pytest plugin (`-p tests.blocked_modules`): modules named in OPENUNI_BLOCKED_MODULES are as not installed."""

import os
import sys
from typing import Any

BLOCKED = frozenset(os.environ.get("OPENUNI_BLOCKED_MODULES", "").split())


class Without:
    """A finder that does not find them: imports fail, and `importlib.util.find_spec` gives None."""

    def __init__(self, finder: Any) -> None:
        self.finder = finder

    def find_spec(self, name: str, *rest: Any) -> Any:
        return None if name.partition(".")[0] in BLOCKED else self.finder.find_spec(name, *rest)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.finder, name)


if BLOCKED & sys.modules.keys():
    raise RuntimeError(f"imported already: {', '.join(sorted(BLOCKED & sys.modules.keys()))}")
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
