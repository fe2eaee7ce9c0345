"""OpenUni: build multi-modal video corpora from raw clips, and train unified video models on them.

    corpus = openuni.run("corpus.toml", "raw/*.mp4", out="corpus/")   # run again to resume
    run = openuni.train("unityvideo_debug", corpus, out="run/")

Names load on first use, so that `import openuni` is instant.
"""

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from manifests.clip import Clip, DecodedClip
    from manifests.corpus import Corpus
    from manifests.errors import OpenUniError
    from openuni.api import export, import_set, open_corpus, open_run, run, select, split, train
    from openuni.recipe import Recipe
    from train.run import Run

__version__ = "0.1.0"

_HOMES = {
    "Clip": "manifests.clip",
    "Corpus": "manifests.corpus",
    "DecodedClip": "manifests.clip",
    "OpenUniError": "manifests.errors",
    "Recipe": "openuni.recipe",
    "Run": "train.run",
    "export": "openuni.api",
    "import_set": "openuni.api",
    "open_corpus": "openuni.api",
    "open_run": "openuni.api",
    "run": "openuni.api",
    "select": "openuni.api",
    "split": "openuni.api",
    "train": "openuni.api",
}

__all__ = [
    "Clip",
    "Corpus",
    "DecodedClip",
    "OpenUniError",
    "Recipe",
    "Run",
    "export",
    "import_set",
    "open_corpus",
    "open_run",
    "run",
    "select",
    "split",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"openuni has no {name!r}. It has: {', '.join(sorted(_HOMES))}.")
    return getattr(importlib.import_module(_HOMES[name]), name)


def _refuse_shadows() -> None:
    """A user's own train.py beside the script would be imported in place of ours, with baffling errors."""
    home = Path(__file__).resolve().parent.parent
    for package in ("manifests", "annotators", "filters", "train"):
        spec = importlib.util.find_spec(package)
        found = Path(spec.origin).resolve() if spec and spec.origin else None
        if found is None or found.parent.parent != home:
            raise ImportError(
                f'openuni: "{package}" is found at {found or "no place"}, which hides the one that belongs to openuni '
                f"({home / package}). Rename that file or folder, or run from another folder."
            )


_refuse_shadows()
