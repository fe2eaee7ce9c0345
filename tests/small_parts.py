"""Corpora of many small parts, as short runs leave them, with payloads; and all that their readers see."""

import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import openuni
from openuni.annotators.dis import Dis
from openuni.console.progress import Reporter
from openuni.filters.motion import Motion
from openuni.manifests.contracts.schema import clip_schema, producer_schema
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.coverage import coverage, stored_sizes
from openuni.manifests.corpus.shards import TarShard
from openuni.manifests.storage.store import Store
from openuni.report.explain import explain

KEEP = "motion.speed_diag_per_s > 0.02"
MAPS = "annotations/dis"
GROUPS = ("clips", "filters/motion", MAPS)


def small_parts(folder: Path | str, parts: int = 4, clips: int = 2) -> Corpus:
    """A corpus of `parts` parts of `clips` clips in each of three groups, one of them with a shard for every part.

    The last clip of each part failed in the annotator, and has no payload.
    """
    corpus = Corpus.create(str(folder))
    for part in range(parts):
        add_part(corpus, [f"clip-{part}-{number}" for number in range(clips)])
    corpus.save_record(keep=KEEP, filters=["motion"], annotators=["dis"])
    return corpus


def copied_small_parts(folder: Path) -> Corpus:
    """A copy of that corpus, which a process makes once."""
    return Corpus.open(str(shutil.copytree(f"{_made().name}/corpus", folder)))


@cache
def _made() -> tempfile.TemporaryDirectory[str]:
    made = tempfile.TemporaryDirectory(prefix="openuni-small-parts-")
    small_parts(Path(made.name) / "corpus")
    return made


def add_part(corpus: Corpus, names: list[str]) -> None:
    """One part more in every group."""
    clip_writer = corpus.writer("clips", clip_schema(), "1")
    filter_writer = corpus.writer("filters/motion", producer_schema(Motion), "1")
    map_writer = corpus.writer(MAPS, producer_schema(Dis), "1", TarShard)
    for number, name in enumerate(names):
        clip = {field.name: None for field in clip_schema()} | {"clip_id": name, "source": f"/raw/{name}.mp4"}
        clip |= {"status": "ok", "caption": f"clip {name}", "time_base_num": 1, "time_base_den": 25, "start_pts": 0}
        clip |= {"end_pts": 6, "frame_count": 6, "fps": 25.0, "width_px": 64, "height_px": 48, "codec": "h264"}
        clip |= {"stream_index": 0, "pts_hash": "0" * 16}
        clip_writer.commit(clip)
        score = {"status": "ok", "version": "1", "ms": 1.0, "speed_diag_per_s": 0.01 * (1 + number % 3)}
        filter_writer.commit({"clip_id": name, "motion": score})
        row: dict[str, Any] = {"status": "ok", "version": "1", "ms": 1.0}
        if number + 1 < len(names):
            extent = map_writer.put(f"{name}.flow.mkv", name.encode() * 50)
            row["flow"] = extent | {"frames": 6, "height_px": 48, "width_px": 64, "pts_hash": "0"}
        else:
            row |= {"status": "failed", "error": "ClipError: on purpose"}
        map_writer.commit({"clip_id": name, "dis": row})
    for writer in (clip_writer, filter_writer, map_writer):
        writer.finish()


def rows_seen(corpus: Corpus) -> dict[str, Any]:
    """All rows, in order, and payloads, whose checksums are verified. No clip has two rows, and no shard is missing."""
    found: dict[str, Any] = {group: corpus.table(group).to_pylist() for group in corpus.groups()}
    for rows in found.values():
        assert len({row["clip_id"] for row in rows}) == len(rows)
    extents = [row["dis"]["flow"] for row in found.get(MAPS, ()) if row["dis"]["flow"]]
    payloads = [corpus.read(MAPS, *(one[key] for key in ("shard", "offset", "nbytes", "xxh3"))) for one in extents]
    assert [corpus.missing_shards(group) for group in corpus.groups()] == [[]] * len(corpus.groups())
    return found | {"payloads": payloads}


def seen(url: str) -> dict[str, Any]:
    """All that a reader who opens the corpus now sees."""
    corpus = Corpus.open(url)
    found = rows_seen(corpus)
    clip_ids = [row["clip_id"] for row in found["clips"]]
    return found | {
        "summary": str(corpus.summary()),
        "kept": corpus.kept_clip_ids(),
        "ids": [clip.clip_id for clip in corpus],
        "by index": corpus[len(corpus) - 1].clip,
        "coverage": coverage(corpus),
        "stored": stored_sizes(corpus),
        "explain": explain(corpus, clip_ids[0]),
        "row": corpus[clip_ids[0]].row("dis"),
    }


def part_names(corpus: Corpus) -> dict[str, list[str]]:
    """Group -> its visible parts."""
    return {group: corpus.parts(group) for group in corpus.groups()}


def compact_all(corpus: Corpus) -> None:
    openuni.compact(corpus, reporter=Reporter(quiet=True))


class Killed(BaseException):
    """Stands for the death of the process: nothing of ours catches it."""


def killed_at(number: int, patch: pytest.MonkeyPatch, work: Callable[[], object]) -> bool:
    """Whether the work dies before its `number`-th change of the store, counted from 1."""
    left = number

    def dying(method: Callable[..., object]) -> Callable[..., object]:
        def call(store: Store, name: str, *arguments: object) -> object:
            nonlocal left
            left -= not name.startswith(".lease")
            if left < 0 or (left == 0 and not name.startswith(".lease")):
                raise Killed
            return method(store, name, *arguments)

        return call

    with patch.context() as inner:
        for name in ("put", "put_file", "delete", "move"):
            inner.setattr(Store, name, dying(getattr(Store, name)))
        try:
            work()
        except Killed:
            return True
    return False
