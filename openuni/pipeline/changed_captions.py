"""Caption files that were edited after ingest: a source that has a row is not ingested again, and keeps its caption."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from openuni.config.recipe import IngestOptions
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.sidecars import is_url, sidecar_path
from openuni.manifests.errors import ClipError
from openuni.pipeline.ingest_phase import caption_of

RUN_STARTED = "%Y%m%dT%H%M%S.%f"  # how names of `runs/` begin


def changed_captions_note(corpus: Corpus, sources: Sequence[str], options: IngestOptions) -> str:
    """A line for the user if caption files of these sources differ from the captions in the corpus, else empty.

    Only local files that changed since the corpus's first run are read; URLs are not checked, since each would take a
    request. A file that was removed is not a change.
    """
    if not options.captions or not corpus.parts("clips"):
        return ""
    since_s = _first_run_s(corpus)
    changed = [
        path for source, caption in _ingested(corpus, sources, options) if (path := _changed(source, caption, since_s))
    ]
    if not changed:
        return ""
    return (
        f"{len(changed):,} caption files changed after ingest, such as {changed[0]}: the corpus keeps the former "
        "captions, and the scores and text embeddings computed from them. Use a new --out to ingest these sources again"
    )


def _ingested(corpus: Corpus, sources: Sequence[str], options: IngestOptions) -> list[tuple[str, str | None]]:
    """Local sources with the caption that their clips have from a file, or would have if there were one."""
    table = corpus.table("clips", ["source", "caption", "status"])
    wanted = pc.and_(
        pc.equal(table.column("status"), "ok"),
        pc.is_in(table.column("source"), value_set=pa.array(sources, pa.string())),
    )
    captions: dict[str, list[str | None]] = {}
    for source, caption in zip(
        *(table.filter(wanted).column(name).to_pylist() for name in ("source", "caption")), strict=True
    ):
        if not is_url(source):
            captions.setdefault(source, []).append(caption)
    return [
        (source, found[0]) for source, found in captions.items() if len(found) == 1 or options.copy_caption_to_clips
    ]


def _changed(source: str, caption: str | None, since_s: float) -> str | None:
    """The caption file of a source if it says something else than the corpus."""
    path = sidecar_path(source, ".txt")
    try:
        status = Path(path or source).stat()
        if path is None or max(status.st_mtime, status.st_ctime) < since_s:
            return None
        return None if caption_of(source) == caption else path
    except FileNotFoundError:
        return None
    except (ClipError, OSError):  # can no longer be read
        return path


def _first_run_s(corpus: Corpus) -> float:
    """When the corpus's first run started, seconds since the epoch; 0 if unknown."""
    names = corpus.store.names("runs", ".json")
    started = names[0].rpartition("/")[2].partition("-")[0] if names else ""
    try:
        return datetime.strptime(started, RUN_STARTED).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return 0.0
