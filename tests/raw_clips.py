"""Small real videos for pipeline tests, and operators' favourite way to compare what two runs made of them."""

from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.video.encode import write_video
from tests.moving_pictures import panned, texture

TIMINGS = {"ms"}
PLACES = {"shard", "offset"}


def write_clips(folder: Path, count: int, frames: int = 6, height_px: int = 48, width_px: int = 64) -> list[Path]:
    """Textures that pan at a speed of their own; every fifth clip stands still. `NAME.txt` has the caption."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        step = 0 if number % 5 == 4 else 1 + number % 3
        pictures = panned([(step * index, 0) for index in range(frames)], height_px, width_px)
        path = folder / f"clip-{number:03}.mp4"
        write_video(path, np.roll(pictures, number * 7, axis=2), 25.0)
        path.with_suffix(".txt").write_text(f"texture {number} pans by {step} px")
        paths.append(path)
    return paths


def write_still(path: Path, frames: int = 6) -> Path:
    """One texture that does not move."""
    write_video(path, np.repeat(texture(48, 64)[None], frames, axis=0), 25.0)
    return path


def contents(corpus: Corpus) -> dict[str, list[dict[str, Any]]]:
    """Every row of every group, sorted, without timings and places; each payload is read and its checksum proved."""
    found = {}
    for group in corpus.groups():
        rows = sorted(corpus.table(group).to_pylist(), key=lambda row: row["clip_id"])
        found[group] = [_plain(row, corpus, group) for row in rows]
    return found


def _plain(value: Any, corpus: Corpus, group: str) -> Any:
    if not isinstance(value, dict):
        return value
    if value.get("shard"):
        corpus.read(group, *(value[key] for key in ("shard", "offset", "nbytes", "xxh3")))
    kept = {key: item for key, item in value.items() if key not in TIMINGS | PLACES}
    return {key: _plain(item, corpus, group) for key, item in kept.items()}


def contents_by_name(corpus: Corpus) -> dict[str, list[dict[str, Any]]]:
    """The same, with file names in place of sources and of the ids that depend on them."""
    names = {clip.clip_id: PurePosixPath(clip.clip.source).name for clip in corpus}
    found = {}
    for group, rows in contents(corpus).items():
        plain = [row | {"clip_id": names[row["clip_id"]], "source": None} for row in rows]
        found[group] = sorted(plain, key=lambda row: row["clip_id"])
    return found
