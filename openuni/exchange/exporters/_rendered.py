"""Base of formats with rendered videos: a clip and its maps become mp4 files of one size, length and rate."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Interval

from openuni.exchange.csv_cells import csv_line
from openuni.exchange.exporter import ExportBatch, ExportClip, ExportContext, Exporter, ExportFailure, json_line
from openuni.manifests.contracts.modality import Modality, picture_levels
from openuni.manifests.errors import ClipError, OpenUniError
from openuni.manifests.video.encode import write_video
from openuni.manifests.video.reader import iter_frames, working_size

RGB = "rgb"  # stream name of the clip's own pixels
CLIPS = "clips.jsonl"
PIXELS_AT_ONCE = 2**22  # rendered at once: rendering takes about a hundred bytes per pixel
BITS_PER_PIXEL = 0.15  # of our H.264, to estimate the size of a video


@dataclass(frozen=True)
class Rendered(Exporter):
    """Base class of formats whose modalities are rendered as videos."""

    crf: Annotated[int, "x264 constant rate factor (CRF) of all videos", Interval(ge=0, le=51)] = 18
    pixels: Annotated[
        Literal["yuv444p", "yuv420p"],
        "pixel format of the modality videos: yuv444p keeps colours sharp, yuv420p plays in every browser",
    ] = "yuv444p"
    short_side_px: Annotated[
        int, "short side to which videos are scaled down, pixels; 0 keeps the clip's size", Ge(0)
    ] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.short_side_px == 1:
            raise OpenUniError(f"short_side_px = {self.short_side_px}: must be 0 (the clip's size) or at least 2")

    def size_px(self, clip: ExportClip) -> tuple[int, int]:
        """Height and width of all videos of a clip. Even, as 4:2:0 requires: an odd last row or column is cropped."""
        height_px, width_px = working_size(clip.clip, self.short_side_px)
        return height_px - height_px % 2, width_px - width_px % 2

    def write_stream(self, clip: ExportClip, stream: str, path: Path) -> None:
        """Write the clip's pixels (`RGB`) or one of its modalities as an mp4 to `path`. Raises `ClipError`."""
        height_px, width_px = self.size_px(clip)
        if not height_px or not width_px:
            raise ClipError(f"{clip.clip.width_px} x {clip.clip.height_px} px is too small for H.264")
        frames = iter_frames(clip.clip, self.short_side_px) if stream == RGB else self._rendering(clip, stream)
        cropped = (frame[:height_px, :width_px] for frame in frames)
        write_video(
            path, cropped, clip.clip.fps, self.crf, pixels="yuv420p" if stream == RGB else self.pixels, threads=1
        )

    def _rendering(self, clip: ExportClip, modality: str) -> Iterator[np.ndarray]:
        """uint8 [H, W, 3] per frame, at the size of the clip's pixels before they are cropped to even sides."""
        size_px = working_size(clip.clip, self.short_side_px)
        for block in clip.blocks(modality, frames_at_once(*size_px)):
            yield from rendering(block, *size_px)

    def guess_nbytes(self, clip: ExportClip) -> int:
        """Estimated total size of the clip's videos in bytes."""
        height_px, width_px = working_size(clip.clip, self.short_side_px)
        return int(height_px * width_px * clip.clip.frame_count * BITS_PER_PIXEL / 8) * (1 + len(clip.maps))


def frames_at_once(height_px: int, width_px: int) -> int:
    """Number of frames of this size that are rendered at a time."""
    return max(1, PIXELS_AT_ONCE // (height_px * width_px))


def rendering(signal: Modality, height_px: int, width_px: int) -> Iterator[np.ndarray]:
    """uint8 [height_px, width_px, 3] per frame of a map, a few frames at a time."""
    count = frames_at_once(height_px, width_px)
    for start in range(0, len(signal.array), count):
        part = signal.take(start, start + count)
        if part.size_px != (height_px, width_px):
            part = part.resize(height_px, width_px)
        for image in part.to_rgb():
            yield picture_levels(signal.name, image)


@dataclass(frozen=True)
class ClipFiles(Rendered):
    """Base class of formats with separate files for every clip."""

    @abstractmethod
    def streams(self, clip: ExportClip) -> dict[str, str]:
        """The clip's videos: `RGB` or modality -> file name, relative to the export."""

    def texts(self, clip: ExportClip, out: Path) -> dict[str, str]:
        """The clip's text files: name, relative to the export -> content. `out`: the output directory."""
        return {}

    def files(self, batch: ExportBatch) -> list[str]:
        """See `Exporter.files`."""
        clip = batch.clips[0]
        return [*self.streams(clip).values(), *self.texts(clip, Path())]

    def write(self, batch: ExportBatch, folder: Path, contents: ExportContext) -> list[ExportFailure]:
        """See `Exporter.write`: all files of one clip, or none."""
        clip = batch.clips[0]
        for name in self.files(batch):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            for stream, name in self.streams(clip).items():
                self.write_stream(clip, stream, folder / name)
        except ClipError as error:
            for name in self.streams(clip).values():
                (folder / name).unlink(missing_ok=True)
            return [ExportFailure(clip.clip_id, clip.clip.source, str(error))]
        for name, text in self.texts(clip, contents.out).items():
            (folder / name).write_text(text, encoding="utf-8", newline="\n")
        return []

    def describe(self, clip: ExportClip) -> str:
        """The clip's line in clips.jsonl."""
        record = clip.record()
        record["height_px"], record["width_px"] = self.size_px(clip)
        streams = self.streams(clip)
        record["modalities"] = {
            name: {"file": streams[name], **facts} for name, facts in record["modalities"].items() if name in streams
        }
        return json_line(record)


def write_csv(path: Path, columns: Iterable[str], rows: Iterable[Mapping[str, str]]) -> None:
    """Write a CSV in UTF-8 with `\n` line ends (see `csv_line`); cells that a row lacks are empty."""
    names = list(columns)
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(csv_line(names))
        file.writelines(csv_line(row.get(name, "") for name in names) for row in rows)
