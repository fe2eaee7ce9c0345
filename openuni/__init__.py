"""OpenUni: build multi-modal video corpora from raw clips, and train unified video models on them.

    corpus = openuni.run("corpus.toml", "raw/*.mp4", out="corpus/")   # rerun to resume
    run = openuni.train("unityvideo_debug", corpus, out="run/")

Names are imported on first use, so `import openuni` is fast.
"""

import importlib
import logging
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openuni.api import (
        compact,
        export,
        from_pretrained,
        import_set,
        open_corpus,
        open_run,
        run,
        select,
        split,
        train,
        verify,
    )
    from openuni.config.recipe import CorpusRecipe
    from openuni.evaluation.annotators import evaluate_annotators
    from openuni.evaluation.runs import evaluate_run
    from openuni.manifests.contracts.decoded_clip import DecodedClip
    from openuni.manifests.corpus.corpus import Corpus
    from openuni.manifests.errors import OpenUniError
    from openuni.manifests.video.clip import Clip
    from openuni.training.run import Run

__version__ = "0.1.0"

_LAZY_IMPORTS = {
    "Clip": "openuni.manifests.video.clip",
    "Corpus": "openuni.manifests.corpus.corpus",
    "DecodedClip": "openuni.manifests.contracts.decoded_clip",
    "OpenUniError": "openuni.manifests.errors",
    "CorpusRecipe": "openuni.config.recipe",
    "Run": "openuni.training.run",
    "compact": "openuni.api",
    "evaluate_annotators": "openuni.evaluation.annotators",
    "evaluate_run": "openuni.evaluation.runs",
    "export": "openuni.api",
    "from_pretrained": "openuni.api",
    "import_set": "openuni.api",
    "open_corpus": "openuni.api",
    "open_run": "openuni.api",
    "run": "openuni.api",
    "select": "openuni.api",
    "split": "openuni.api",
    "train": "openuni.api",
    "training_estimate": "openuni.api",
    "verify": "openuni.api",
}

__all__ = [
    "Clip",
    "Corpus",
    "CorpusRecipe",
    "DecodedClip",
    "OpenUniError",
    "Run",
    "compact",
    "evaluate_annotators",
    "evaluate_run",
    "export",
    "from_pretrained",
    "import_set",
    "open_corpus",
    "open_run",
    "run",
    "select",
    "split",
    "train",
    "training_estimate",
    "verify",
]


_RENAMED = {"Recipe": "CorpusRecipe"}


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        warnings.warn(f"openuni.{name} is now openuni.{_RENAMED[name]}", DeprecationWarning, stacklevel=2)
        name = _RENAMED[name]
    if name not in _LAZY_IMPORTS:
        raise AttributeError(f"openuni has no {name!r}. It has: {', '.join(sorted(_LAZY_IMPORTS))}.")
    return getattr(importlib.import_module(_LAZY_IMPORTS[name]), name)


logging.getLogger("openuni").addHandler(logging.NullHandler())  # an application decides what is shown
