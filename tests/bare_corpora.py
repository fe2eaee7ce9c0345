"""Corpora of bare rows, for what needs manifests alone: no pixels, no payloads."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from openuni.annotators.supplied import Supplied
from openuni.manifests.contracts.schema import clip_schema, producer_schema
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.video.clip import Clip

EXTENT = {"shard": "part.tar", "offset": 0, "nbytes": 0, "xxh3": 0, "frames": 1, "height_px": 2, "width_px": 2}
# what a row of every accepted clip has
NUMBERS: dict[str, Any] = {"stream_index": 0, "start_pts": 0, "end_pts": 1, "time_base_num": 1, "time_base_den": 25}
NUMBERS |= {"frame_count": 1, "fps": 25.0, "width_px": 2, "height_px": 2, "codec": "h264", "pts_hash": "0" * 16}


def bare_corpus(folder: Path, clips: Iterable[dict[str, Any]]) -> Corpus:
    """One part more in the corpus at `folder`. A clip is its fields that matter; `has`: the modalities it has.

    `status` other than "ok" makes a clip that ingest refused.
    """
    corpus = Corpus.create(str(folder))
    clip_writer = corpus.writer("clips", clip_schema(), "1")
    map_writer = corpus.writer("annotations/supplied", producer_schema(Supplied), "1")
    for given in clips:
        has, status = given.get("has"), given.get("status", "ok")
        fields = {name: given.get(name, NUMBERS.get(name)) for name in Clip.__dataclass_fields__}
        clip_writer.commit(fields | {"source": given.get("source", given["clip_id"]), "status": status, "error": None})
        if has is not None:
            row: dict[str, Any] = {"status": "ok", "version": "1"} | {name: EXTENT for name in has}
            map_writer.commit({"clip_id": given["clip_id"], "supplied": row})
    clip_writer.finish()
    map_writer.finish()
    return Corpus.open(str(folder))


def splits_of(corpus: Corpus) -> dict[str, str | None]:
    """clip_id -> split of all clips, refused ones too."""
    rows = corpus.table("clips", ["clip_id", "split"]).to_pylist()
    return {row["clip_id"]: row["split"] for row in rows}
