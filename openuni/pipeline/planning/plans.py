"""Plans of phases: which clips have no row yet, and the items that workers are given for them."""

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from openuni.config.captions import CaptionColumn, captions
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.errors import OpenUniError
from openuni.manifests.video.clip import Clip
from openuni.pipeline.phases import ClipItem
from openuni.pipeline.planning.map_sources import MapSource, extents

T = TypeVar("T")
R = TypeVar("R")
WINDOW_ROWS = 50_000  # clips whose stored maps are looked up at a time: a plan of millions stays columnar
INTERNAL_ERROR_HINT = "Internal error: rerun the command; if it persists, report it with the log of this run in runs/."


def missing(corpus: Corpus, group: str, wanted: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Which of the clips wanted have no row in the group, booleans; raises when one has several."""
    if isinstance(wanted, pa.ChunkedArray):
        wanted = wanted.combine_chunks()
    found = corpus.table(group, ["clip_id"]).column("clip_id")
    places = pc.index_in(found, value_set=wanted).drop_null()
    rows = np.bincount(places.to_numpy(), minlength=len(wanted))
    if (rows > 1).any():
        raise OpenUniError(
            f"{group}: {(rows > 1).sum()} of {len(wanted)} clips have more than one row. {INTERNAL_ERROR_HINT}"
        )
    return pa.array(rows == 0)


def clip_items(
    corpus: Corpus,
    clips: pa.Table,
    todo: Mapping[str, pa.Array],
    sources: Collection[MapSource],
    texts: CaptionColumn | None = None,
) -> tuple[Iterator[ClipItem], int]:
    """The clips for which anything is left to do, with the places of the stored maps that this starts from.

    `clips`: `clip_id` and `row` in `clips/`. `todo`: by operator or stream, booleans per clip. `texts`: where the
    clips' captions are taken from instead of their own rows.
    """
    plan = _plan(clips, todo)

    def look_up(window: pa.Table) -> tuple[dict[MapSource, pa.Array], pa.Array]:
        ids = window.column("clip_id").combine_chunks()
        return extents(corpus, sources, ids), captions(corpus, texts, ids) if texts else pa.array([])

    def items() -> Iterator[ClipItem]:
        windows = [plan.slice(start, WINDOW_ROWS) for start in range(0, len(plan), WINDOW_ROWS)]
        for window, (stored, said) in zip(windows, _ahead(look_up, windows), strict=True):
            for position, (clip, names) in enumerate(_rows(corpus, window, list(todo))):
                if texts:
                    clip = dataclasses.replace(clip, caption=said[position].as_py())
                places = {source: found[position].as_py() for source, found in stored.items()}
                yield ClipItem(clip, names, places)

    return items(), len(plan)


def _ahead(call: Callable[[T], R], arguments: Sequence[T]) -> Iterator[R]:
    """The results of the calls, each but the first computed in a thread while the one before is in use: no worker
    waits until a million places have been looked at.
    """
    if not arguments:
        return
    with ThreadPoolExecutor(1, thread_name_prefix="plan") as thread:
        result = call(arguments[0])
        for argument in arguments[1:]:
            following = thread.submit(call, argument)
            yield result
            result = following.result()
        yield result


def _rows(corpus: Corpus, plan: pa.Table, names: Sequence[str]) -> Iterator[tuple[Clip, tuple[str, ...]]]:
    """Each clip of a plan, and which of the names it is planned for."""
    start = 0
    for table in corpus.clip_list.tables(plan.column("row").to_numpy()):
        todo = plan.slice(start, len(table)).to_pylist()
        start += len(table)
        for row, planned in zip(table.to_pylist(), todo, strict=True):
            yield corpus.clip_list.clip_of_row(row), tuple(name for name in names if planned[f"todo:{name}"])


def _plan(clips: pa.Table, todo: Mapping[str, pa.Array]) -> pa.Table:
    """The clips for which anything is left to do, with a column `todo:NAME` for each operator."""
    plan, anything = clips, None
    for name, mask in todo.items():
        plan = plan.append_column(f"todo:{name}", mask)
        anything = mask if anything is None else pc.or_(anything, mask)
    return plan.filter(anything) if anything is not None else plan.slice(0, 0)
