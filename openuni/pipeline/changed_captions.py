"""Caption files that were edited after ingest: a source that has a row is not ingested again, and keeps its caption.

`openuni run` says so; with `--update-captions` it reads them again.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from openuni.config.recipe import CorpusRecipe, IngestOptions
from openuni.manifests.contracts.operator import Filter, find_operator
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.layout import CLIPS, SUPERSEDED, TEXT, filter_group, in_folder, operator_of, superseded
from openuni.manifests.corpus.sidecars import is_url, sidecar_path
from openuni.manifests.errors import ClipError, OpenUniError
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
        "captions, and the scores and text embeddings computed from them. Read the files again with --update-captions"
    )


def update_captions(corpus: Corpus, sources: Sequence[str], recipe: CorpusRecipe) -> int:
    """Read the changed caption files of these sources again; returns their number. The caller holds the corpus's lock.

    Deletes the rows that were computed from the former captions, of earlier versions too, so that the run that follows
    recomputes them: text embeddings, and scores of filters that read captions (`Filter.reads_caption`). Maps stay:
    those that `openuni.unified` estimated with a caption as its prompt too. Raises `OpenUniError` for a caption file
    that cannot be read; nothing is changed then.
    """
    if not sources:
        raise OpenUniError("--update-captions requires sources. Pass the videos or folders whose captions changed.")
    if not recipe.ingest.captions or not corpus.parts(CLIPS):
        return 0
    corpus.recover()  # rows in open parts would be sealed after the deletion
    since_s = _first_run_s(corpus)
    captions: dict[str, str | None] = {}
    for source, caption in _ingested(corpus, sources, recipe.ingest):
        if path := _changed(source, caption, since_s):
            try:
                captions[source] = caption_of(source)
            except (ClipError, OSError) as error:
                raise OpenUniError(f"--update-captions: {path} cannot be read: {error}") from error
    if not captions:
        return 0
    changed = pa.array(list(captions), pa.string())
    table = corpus.table(CLIPS, ["clip_id", "source"])
    ids = table.filter(pc.is_in(table.column("source"), value_set=changed)).column("clip_id").combine_chunks()
    for folder in _computed_from_captions(corpus, recipe):
        corpus.delete_rows(folder, lambda rows: pc.is_in(rows.column("clip_id"), value_set=ids))
    corpus.rewrite(CLIPS, lambda rows: _with_captions(rows, captions))  # last: a killed update is repeated
    corpus.refresh()
    return len(captions)


def _computed_from_captions(corpus: Corpus, recipe: CorpusRecipe) -> Iterator[str]:
    """Folders with rows that were, or may have been, computed from the clips' own captions."""
    for group in corpus.group_folders():
        is_text = group.startswith(f"{TEXT}/")
        if not is_text and not _reads_captions(group, recipe):
            continue
        # embeddings of an annotator's texts stay; those of an earlier version may be of either
        if not (is_text and recipe.encode is not None and recipe.encode.caption):
            yield group
        for version in corpus.store.folders(in_folder(group, SUPERSEDED)):
            yield superseded(group, version)


def _reads_captions(group: str, recipe: CorpusRecipe) -> bool:
    """Whether a group holds the scores of a filter that reads captions."""
    name = operator_of(group)
    if name is None or group != filter_group(name):
        return False
    try:
        kind = type(recipe.filters[name]) if name in recipe.filters else find_operator("filter", name)
    except OpenUniError:  # of a package that is not installed, or a deduplicator
        return False
    return issubclass(kind, Filter) and kind.reads_caption


def _with_captions(rows: pa.Table, captions: Mapping[str, str | None]) -> pa.Table:
    """Rows of `clips/` with these captions (source -> text) for accepted clips."""
    columns = zip(*(rows.column(name).to_pylist() for name in ("source", "status", "caption")), strict=True)
    texts = [captions.get(source, text) if status == "ok" else text for source, status, text in columns]
    place = rows.schema.get_field_index("caption")
    return rows.set_column(place, rows.schema.field(place), pa.array(texts, rows.schema.field(place).type))


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
