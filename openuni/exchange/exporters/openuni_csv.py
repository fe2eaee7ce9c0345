"""UnityVideo's layout: one CSV with paths of aligned RGB videos, as read by its released loader."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from openuni.exchange.exporter import ExportClip, ExportContext, write_lines
from openuni.exchange.exporters._rendered import CLIPS, RGB, ClipFiles, write_csv


@dataclass(frozen=True)
class OpenUniCSV(ClipFiles):
    """A CSV with the columns video, prompt, depth, densepose, raft, segmentation, skeleton; gaps are empty cells."""

    names: ClassVar[Mapping[str, str]] = {
        "depth": "depth",
        "densepose": "densepose",
        "flow": "raft",
        "segmentation": "segmentation",
        "skeleton": "skeleton",
    }
    origin: ClassVar[str] = "UnityVideo's released data loader"

    def streams(self, clip: ExportClip) -> dict[str, str]:
        """See `ClipFiles.streams`."""
        folders = {RGB: "video"} | {name: self.names[name] for name in clip.maps}
        return {stream: f"{folder}/{clip.clip_id}.mp4" for stream, folder in folders.items()}

    def finish(self, clips: Iterable[ExportClip], folder: Path, contents: ExportContext) -> None:
        """metadata.csv, one CSV per modality with the rows that have it, and clips.jsonl."""
        columns = ["video", "prompt", *self.names.values()]
        rows, lines = [], []
        for clip in clips:
            streams = self.streams(clip)
            cells = {"video": streams.pop(RGB), "prompt": clip.clip.caption or ""}
            rows.append(cells | {self.names[name]: file for name, file in streams.items()})
            lines.append(self.describe(clip))
        write_csv(folder / "metadata.csv", columns, rows)
        for name in contents.annotators:
            column = self.names[name]
            write_csv(folder / f"metadata-{column}.csv", columns, [row for row in rows if column in row])
        write_lines(folder / CLIPS, lines)
