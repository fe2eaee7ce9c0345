"""Links in folders that may come from anybody: they stay inside, or lead to the blobs of a Hugging Face snapshot."""

import os
from functools import lru_cache
from pathlib import Path

REPOSITORIES = ("datasets--", "models--", "spaces--")  # how folders of the Hugging Face cache begin
FOLLOW_LINKS = "OPENUNI_FOLLOW_LINKS"  # environment variable: 1 follows links out of a corpus, for one's own


@lru_cache(maxsize=256)
def snapshot_blobs(folder: Path) -> Path | None:
    """The `blobs/` of the Hugging Face repository of which `folder` is (part of) a snapshot; None if it is none.

    The layout of its cache: `datasets--ORGANIZATION--NAME/snapshots/REVISION/...`. `folder`: with links resolved.
    """
    for revision in (folder, *folder.parents):
        repository = revision.parents[1] if revision.parent.name == "snapshots" else None
        if repository is not None and repository.name.startswith(REPOSITORIES):
            return repository / "blobs"
    return None


def outside_target(path: str, root: str) -> str | None:
    """Where a path in `root` (with links resolved) leads if that is outside; None if it stays inside."""
    real = os.path.realpath(path)
    if real == root or real.startswith(f"{root.rstrip('/')}/"):
        return None
    blobs = snapshot_blobs(Path(root))
    return None if blobs is not None and Path(real).parent == blobs else real
