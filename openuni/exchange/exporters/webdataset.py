"""Lossless WebDataset shards: the clip, its metadata, and its stored maps byte for byte."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from annotated_types import Gt, Interval

from openuni.annotators.supplied import FORMAT
from openuni.exchange.exporter import ExportBatch, ExportClip, ExportContext, Exporter, ExportFailure, json_line
from openuni.manifests.contracts.modality import find_modality
from openuni.manifests.corpus.shards import TarShard
from openuni.manifests.errors import ClipError
from openuni.manifests.video.encode import PixelFormat, write_video
from openuni.manifests.video.passthrough import suffix_of
from openuni.manifests.video.probe import matching_mp4_bytes
from openuni.manifests.video.reader import iter_frames

BITS_PER_PIXEL = {"encoded": 0.15, "lossless": 8.0}  # of H.264, to estimate the size of a video
EVEN = 2  # sides of a 4:2:0 video are multiples of this


@dataclass(frozen=True)
class WebDataset(Exporter):
    """Tar shards with CLIP.mp4, CLIP.txt, CLIP.json and CLIP.MODALITY.mkv as stored; unpacked, the supplied layout."""

    shard_mb: Annotated[float, "target shard size, MB; a clip is never split across shards", Gt(0)] = 1000.0
    lossless: Annotated[bool, "encode videos that cannot be copied as lossless RGB H.264 instead of 4:2:0"] = False
    crf: Annotated[int, "x264 constant rate factor (CRF) of re-encoded videos", Interval(ge=0, le=51)] = 16

    stores_rgb: ClassVar[bool] = True
    origin: ClassVar[str] = "WebDataset's naming of files in tars"

    def batch_bytes(self) -> int:
        """See `Exporter.batch_bytes`."""
        return int(self.shard_mb * 1e6) or 1

    def estimate(self, clip: ExportClip) -> int:
        """The size of the stored maps plus the estimated size of the video."""
        pixels = clip.clip.width_px * clip.clip.height_px * clip.clip.frame_count
        bits = BITS_PER_PIXEL["lossless" if self.lossless else "encoded"]
        return int(pixels * bits / 8) + sum(found.row["nbytes"] for found in clip.maps.values())

    def files(self, batch: ExportBatch) -> list[str]:
        """See `Exporter.files`."""
        return [f"shard-{batch.number:06}.tar"]

    def write(self, batch: ExportBatch, folder: Path, contents: ExportContext) -> list[ExportFailure]:
        """See `Exporter.write`: one shard. A clip is read completely before any of it is added."""
        failures = []
        shard = TarShard(folder / self.files(batch)[0])
        for clip in batch.clips:
            try:
                members = self._members(clip, folder)
            except ClipError as error:
                failures.append(ExportFailure(clip.clip_id, clip.clip.source, str(error)))
                continue
            for name, data in members.items():
                shard.put(name, data)
        shard.close(finish=True)
        if not shard.entries:
            shard.path.unlink()  # no empty shards
        return failures

    def finish(self, clips: Iterable[ExportClip], folder: Path, contents: ExportContext) -> None:
        """Nothing: shards need no index."""

    def _members(self, clip: ExportClip, folder: Path) -> dict[str, bytes]:
        """Names and contents of the clip's files, in shard order."""
        key = clip.clip_id
        video, coding = self._video(clip, folder)
        stored = {name: clip.payload(name) for name in clip.maps}
        maps = {name: f"{key}.{name}.{suffix_of(data, find_modality(name).suffix)}" for name, data in stored.items()}
        record = clip.record() | {"format": FORMAT, "video": coding}
        record["modalities"] = {name: {"file": maps[name], **facts} for name, facts in record["modalities"].items()}
        members = {f"{key}.mp4": video}
        if clip.clip.caption is not None:
            members[f"{key}.txt"] = f"{clip.clip.caption}\n".encode()
        members[f"{key}.json"] = f"{json_line(record)}\n".encode()
        return members | {file: stored[name] for name, file in maps.items()}

    def _video(self, clip: ExportClip, folder: Path) -> tuple[bytes, str]:
        """The clip's mp4, and how it was produced: copied, encoded or lossless."""
        copied = matching_mp4_bytes(clip.clip)
        if copied is not None:
            return copied, "copied"
        draft = folder / f"{clip.clip_id}.mp4"
        odd = clip.clip.width_px % EVEN or clip.clip.height_px % EVEN
        crf = 0 if self.lossless else self.crf
        # odd sizes would lose a row or column in 4:2:0
        pixels: PixelFormat = "rgb" if self.lossless else "yuv444p" if odd else "yuv420p"
        write_video(draft, iter_frames(clip.clip), clip.clip.fps, crf, pixels=pixels, threads=1)
        data = draft.read_bytes()
        draft.unlink()
        return data, "lossless" if self.lossless else "encoded"
