"""A Hugging Face dataset: Parquet files with embedded videos, and a dataset card."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
from annotated_types import Gt

from openuni.exchange.exporter import ExportBatch, ExportClip, ExportContext, ExportFailure, finite, json_line
from openuni.exchange.exporters._card import card
from openuni.exchange.exporters._rendered import RGB, Rendered
from openuni.manifests.contracts.options import Formerly
from openuni.manifests.errors import ClipError, OpenUniError

VIDEO = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])  # how `datasets` embeds a file
ROW_GROUP_BYTES = 64 * 10**6  # readers hold one row group in memory
SPLIT_KEYWORDS = ("all",)  # reserved split names of `datasets`
STORED = "_stored"  # suffix of the columns with the stored bytes of maps


@dataclass(frozen=True)
class HuggingFace(Rendered):
    """Parquet files for `datasets.load_dataset` with videos, captions and scores, and the dataset card."""

    shard_mb: Annotated[float, "target size of a Parquet file, MB", Gt(0)] = 500.0
    include_raw_maps: Annotated[bool, "add the stored bytes of maps as columns MODALITY_stored", Formerly("stored")] = (
        False
    )
    title: Annotated[str, "title of the dataset card"] = "OpenUni export"
    clips_licence: Annotated[str, "licence of the clips in the Hub's spelling, such as cc-by-4.0"] = "unknown"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", self.clips_licence):
            raise OpenUniError(
                f'clips_licence = "{self.clips_licence}": must be a licence name of the Hub, such as cc-by-4.0 or other'
            )

    def group_key(self, clip: ExportClip) -> str:
        """The clip's split, in a spelling that `datasets` accepts."""
        name = re.sub(r"\W", "_", clip.clip.split or "train")
        return f"{name}_" if name in SPLIT_KEYWORDS else name

    def batch_bytes(self) -> int:
        """See `Exporter.batch_bytes`."""
        return int(self.shard_mb * 1e6) or 1

    def estimate(self, clip: ExportClip) -> int:
        """The estimated size of the videos plus the size of the stored maps."""
        raw_nbytes = sum(found.row["nbytes"] for found in clip.maps.values()) if self.include_raw_maps else 0
        return self.guess_nbytes(clip) + raw_nbytes

    def files(self, batch: ExportBatch) -> list[str]:
        """See `Exporter.files`."""
        return [f"data/{batch.group_key}-{batch.number:05}-of-{batch.total:05}.parquet"]

    def write(self, batch: ExportBatch, folder: Path, contents: ExportContext) -> list[ExportFailure]:
        """See `Exporter.write`: one Parquet file, written in row groups."""
        schema = self.schema(contents)
        path = folder / self.files(batch)[0]
        path.parent.mkdir(parents=True)
        failures: list[ExportFailure] = []
        rows: list[dict[str, Any]] = []
        held = 0
        with pq.ParquetWriter(path, schema, write_page_checksum=True) as writer:
            for clip in batch.clips:
                try:
                    rows.append(self._row(clip, folder))
                except ClipError as error:
                    failures.append(ExportFailure(clip.clip_id, clip.clip.source, str(error)))
                    continue
                held += _nbytes(rows[-1])
                if held > ROW_GROUP_BYTES:
                    writer.write_table(pa.Table.from_pylist(rows, schema))
                    rows, held = [], 0
            writer.write_table(pa.Table.from_pylist(rows, schema))
        return failures

    def finish(self, clips: Iterable[ExportClip], folder: Path, contents: ExportContext) -> None:
        """README.md."""
        text = card(clips, contents, title=self.title, licence=self.clips_licence, split_of=self.group_key)
        (folder / "README.md").write_text(text, encoding="utf-8", newline="\n")

    def schema(self, contents: ExportContext) -> pa.Schema:
        """The columns, with the `datasets` features in the metadata, which mark structs as videos."""
        videos = ["video", *contents.annotators]
        fields = [pa.field("clip_id", pa.string()), *(pa.field(name, VIDEO) for name in videos)]
        texts, numbers = ("caption", "collection", "origin", "modalities"), ("frames", "height_px", "width_px")
        fields += [pa.field(name, pa.string()) for name in texts]
        fields += [pa.field("fps", pa.float64()), *(pa.field(name, pa.int64()) for name in numbers)]
        if self.include_raw_maps:
            fields += [pa.field(name + STORED, pa.binary()) for name in contents.annotators]
        if contents.scores:
            fields.append(pa.field("scores", pa.struct([pa.field(*scores) for scores in contents.scores.items()])))
        features = {field.name: _feature(field.type) for field in fields}
        return pa.schema(fields, {"huggingface": json.dumps({"info": {"features": features}})})

    def _row(self, clip: ExportClip, folder: Path) -> dict[str, Any]:
        height_px, width_px = self.size_px(clip)
        row: dict[str, Any] = {"clip_id": clip.clip_id, "video": self._video(clip, RGB, folder)}
        for name in clip.maps:
            row[name] = self._video(clip, name, folder)
            if self.include_raw_maps:
                row[name + STORED] = clip.payload(name)
        facts = clip.clip
        row |= {"caption": facts.caption, "collection": facts.collection, "origin": facts.origin}
        row |= {"fps": facts.fps, "frames": facts.frame_count, "height_px": height_px, "width_px": width_px}
        row["modalities"] = json_line(clip.record()["modalities"])
        row["scores"] = finite(clip.scores)
        return row

    def _video(self, clip: ExportClip, stream: str, folder: Path) -> dict[str, Any]:
        draft = folder / f"{clip.clip_id}.{stream}.mp4"
        self.write_stream(clip, stream, draft)
        data = draft.read_bytes()
        draft.unlink()
        return {"bytes": data, "path": draft.name}


def _nbytes(row: Mapping[str, Any]) -> int:
    """Size of the videos and maps in a row."""
    cells = [cell.get("bytes") if isinstance(cell, dict) else cell for cell in row.values()]
    return sum(len(cell) for cell in cells if isinstance(cell, bytes))


def _feature(kind: pa.DataType) -> dict[str, Any]:
    """The `datasets` feature of a column type."""
    if kind == VIDEO:
        return {"_type": "Video"}
    if pa.types.is_struct(kind):
        return {field.name: _feature(field.type) for field in kind}
    return {"dtype": {"double": "float64"}.get(str(kind), str(kind)), "_type": "Value"}
