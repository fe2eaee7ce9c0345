"""DiffSynth-Studio's layout: metadata of videos and control videos for its UnifiedDataset."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from openuni.exchange.exporter import ExportClip, ExportContext, json_line, write_lines
from openuni.exchange.exporters._rendered import CLIPS, RGB, ClipFiles, write_csv

CONTROLS = ("control_video", "vace_video")  # names of control videos in its pipelines


@dataclass(frozen=True)
class DiffSynth(ClipFiles):
    """metadata.csv and .jsonl (video, prompt, one column per modality), and one CSV of control videos per modality."""

    origin: ClassVar[str] = "DiffSynth-Studio's UnifiedDataset"

    def streams(self, clip: ExportClip) -> dict[str, str]:
        """See `ClipFiles.streams`."""
        folders = {RGB: "video"} | {name: name for name in clip.maps}
        return {stream: f"{folder}/{clip.clip_id}.mp4" for stream, folder in folders.items()}

    def finish(self, clips: Iterable[ExportClip], folder: Path, contents: ExportContext) -> None:
        """metadata.csv, metadata.jsonl, metadata-MODALITY.csv and clips.jsonl."""
        rows, lines = [], []
        for clip in clips:
            streams = self.streams(clip)
            rows.append({"video": streams.pop(RGB), "prompt": clip.clip.caption or "", **streams})
            lines.append(self.describe(clip))
        write_csv(folder / "metadata.csv", ["video", "prompt", *contents.annotators], rows)
        write_lines(
            folder / "metadata.jsonl", (json_line({key: text for key, text in row.items() if text}) for row in rows)
        )
        for name in contents.annotators:
            controlled = [
                {"video": row["video"], "prompt": row["prompt"], **dict.fromkeys(CONTROLS, row[name])}
                for row in rows
                if name in row
            ]
            write_csv(folder / f"metadata-{name}.csv", ["video", "prompt", *CONTROLS], controlled)
        write_lines(folder / CLIPS, lines)
