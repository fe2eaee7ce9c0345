"""As a pytest plugin (`-p tests.blocked_modules`): the modules named in OPENUNI_BLOCKED_MODULES cannot be imported."""

import os
import sys
from types import ModuleType
from typing import Any

BLOCKED = frozenset(os.environ.get("OPENUNI_BLOCKED_MODULES", "").split())


class Blocker:
    """A finder that comes first."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> None:
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r} (blocked)", name=name)


if BLOCKED & sys.modules.keys():
    raise RuntimeError(f"imported already: {', '.join(sorted(BLOCKED & sys.modules.keys()))}")
sys.meta_path.insert(0, Blocker())  # type: ignore[arg-type]
