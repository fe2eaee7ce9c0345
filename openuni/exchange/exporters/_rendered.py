"""What the formats of rendered videos share: how a clip and its maps become mp4s of one size, length and rate."""

import csv
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Interval

from openuni.exchange.exporter import ExportBatch, ExportClip, ExportContext, Exporter, ExportFailure, json_line
from openuni.manifests.contracts.modality import Modality
from openuni.manifests.errors import ClipError, OpenUniError
from openuni.manifests.video.encode import write_video
from openuni.manifests.video.reader import iter_frames, working_size

RGB = "rgb"  # the clip's own pixels, among the streams
CLIPS = "clips.jsonl"
PIXELS_AT_ONCE = 2**22  # rendered together: colours take about a hundred bytes a pixel on their way
BITS_PER_PIXEL = 0.15  # of H.264 as we write it, to guess how large a video will be


@dataclass(frozen=True)
class Rendered(Exporter):
    """Base of formats whose modalities are videos to look at."""

    crf: Annotated[int, "x264's constant rate factor of every video", Interval(ge=0, le=51)] = 18
    pixels: Annotated[
        Literal["yuv444p", "yuv420p"], "of the modalities: yuv444p keeps colours sharp, yuv420p plays in every browser"
    ] = "yuv444p"
    short_side_px: Annotated[int, "videos are scaled down to this short side, pixels; 0: the clip's size", Ge(0)] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.short_side_px < 0 or self.short_side_px == 1:
            raise OpenUniError(f"short_side_px = {self.short_side_px}: give 0 (the clip's size), or 2 or more")

    def size_px(self, clip: ExportClip) -> tuple[int, int]:
        """Height and width of all of the clip's videos: even, as 4:2:0 needs; a last odd row or column is left out."""
        height_px, width_px = working_size(clip.clip, self.short_side_px)
        return height_px - height_px % 2, width_px - width_px % 2

    def write_stream(self, clip: ExportClip, stream: str, path: Path) -> None:
        """The clip's pixels (`RGB`) or one of its modalities as an mp4 at `path`. Raises `ClipError`."""
        height_px, width_px = self.size_px(clip)
        if not height_px or not width_px:
            raise ClipError(f"a video of {clip.clip.width_px}x{clip.clip.height_px} is too small for H.264")
        frames = iter_frames(clip.clip, self.short_side_px) if stream == RGB else self._rendering(clip, stream)
        cut = (frame[:height_px, :width_px] for frame in frames)
        write_video(path, cut, clip.clip.fps, self.crf, pixels="yuv420p" if stream == RGB else self.pixels, threads=1)

    def _rendering(self, clip: ExportClip, modality: str) -> Iterator[np.ndarray]:
        """uint8 [H, W, 3] of each frame, at the size of the clip's pixels before they are cut to even sides."""
        return rendering(clip.signal(modality), *working_size(clip.clip, self.short_side_px))

    def guess_nbytes(self, clip: ExportClip) -> int:
        """About how large the clip's videos will be together."""
        height_px, width_px = working_size(clip.clip, self.short_side_px)
        return int(height_px * width_px * clip.clip.frame_count * BITS_PER_PIXEL / 8) * (1 + len(clip.maps))


def rendering(signal: Modality, height_px: int, width_px: int) -> Iterator[np.ndarray]:
    """uint8 [height_px, width_px, 3] of each frame of a signal, a few at a time."""
    count = max(1, PIXELS_AT_ONCE // (height_px * width_px))
    for start in range(0, len(signal.array), count):
        part = signal.take(start, start + count)
        if part.size_px != (height_px, width_px):
            part = part.resize(height_px, width_px)
        for image in part.to_rgb():
            yield np.rint(image * np.float32(255)).astype(np.uint8)


@dataclass(frozen=True)
class ClipFiles(Rendered):
    """Base of formats with files of its own for every clip."""

    @abstractmethod
    def streams(self, clip: ExportClip) -> dict[str, str]:
        """The clip's videos: `RGB` or a modality -> the file's name, relative to the export."""

    def texts(self, clip: ExportClip, out: Path) -> dict[str, str]:
        """The clip's text files: name, relative to the export -> content. `out`: the export's folder."""
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
    """A CSV in UTF-8 with plain line ends; cells that a row does not have are empty."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(columns), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
