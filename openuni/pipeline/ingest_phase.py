"""The ingest phase: sources are probed and cut into clips."""

import contextlib
import dataclasses
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from openuni.config.recipe import IngestOptions
from openuni.manifests.contracts import schema
from openuni.manifests.corpus.sidecars import read_bounded, sidecar_path
from openuni.manifests.text_files import decode_text
from openuni.manifests.video.clip import Clip, clip_id
from openuni.manifests.video.container import Limits
from openuni.manifests.video.probe import VideoInfo, make_clip, probe
from openuni.manifests.video.reader import iter_frames
from openuni.manifests.video.video_errors import CorruptVideo
from openuni.pipeline import shot_splitting
from openuni.pipeline.phases import CorpusWorker, decoder_threads
from openuni.pipeline.worker import ItemOutcome, Spec
from openuni.shots.shot_detector import ShotDetector, Timeline, Transition

MAX_CAPTION_BYTES = 64 * 1024


@dataclass(frozen=True)
class SourceItem:
    """One source to ingest."""

    source: str

    @property
    def key(self) -> str:
        """What identifies the item in a run."""
        return self.source


@dataclass(frozen=True)
class IngestSpec(Spec):
    """Probe sources, find their shots and write `clips/`."""

    corpus_url: str
    options: IngestOptions
    detector: ShotDetector
    version: str
    limits: Limits = field(default_factory=Limits)  # of decoding, for what `options` do not limit

    def start(self, device: str) -> "IngestWorker":
        """See `Spec.start`."""
        return IngestWorker(self, device)


class ProbedSource(NamedTuple):
    """A source that was looked at."""

    info: VideoInfo
    whole: Clip  # all of its frames as one clip


class IngestWorker(CorpusWorker):
    """The rows of one source, written as one: its clips, or the reason why there is none."""

    def __init__(self, spec: IngestSpec, device: str) -> None:
        super().__init__(spec.corpus_url)
        self.options, self.detector = spec.options, spec.detector
        self.model = spec.detector.load(device)
        self.limits = dataclasses.replace(
            spec.limits,
            max_pixels=spec.options.max_frame_px,
            max_duration_s=spec.options.max_duration_s,
            max_probe_s=spec.options.probe_timeout_s,
        )
        self.writers["clips"] = self.corpus.writer("clips", schema.clip_schema(), spec.version)

    def prepare(self, item: SourceItem) -> ProbedSource:
        """Look at the file without decoding it."""
        info = probe(item.source, self.limits)
        whole = make_clip(item.source, info, caption=caption_of(item.source) if self.options.captions else None)
        return ProbedSource(info, dataclasses.replace(whole, collection=self.options.collection or None))

    def compute(self, item: SourceItem, prepared: ProbedSource) -> list[Clip]:
        """Find the shots; of detectors that look at no frame, without decoding."""
        try:
            transitions = self._transitions(prepared, decoder_threads())
        except CorruptVideo:
            transitions = self._transitions(prepared, 1)  # slower, and only what harms a frame is an error
        shots = shot_splitting.split_into_clips(transitions, self._timeline(prepared.info), self.options)
        return [
            self._clip(prepared, shot, share=self.options.copy_caption_to_clips or len(shots) == 1) for shot in shots
        ]

    def operator_seconds(self, computed: list[Clip], compute_s: float) -> dict[str, float]:
        """See `Worker.operator_seconds`; of the shot detector."""
        return {f"shots.{self.detector.name()}": compute_s}

    def store(self, item: SourceItem, computed: list[Clip]) -> ItemOutcome:
        """Write the clips' rows: all of them or none, so that a source that has a row is done."""
        kind = pa.struct(list(schema.clip_schema()))
        rows = (schema.stored(dataclasses.asdict(clip), kind, "clips") for clip in computed)
        self.writers["clips"].commit(*(row | {"status": "ok", "error": None} for row in rows))
        return ItemOutcome(item.key, "ok")

    def fail(self, item: SourceItem, error: str) -> ItemOutcome:
        """Write the row of a source that is no usable video."""
        row: dict[str, Any] = dict.fromkeys(Clip.__dataclass_fields__)
        row |= {"clip_id": clip_id(item.source, 0, 0, ""), "source": item.source, "status": "failed", "error": error}
        self.writers["clips"].commit(row)
        return ItemOutcome(item.key, "failed", error)

    def _transitions(self, film: ProbedSource, threads: int) -> list[Transition]:
        size_px = self.detector.size_px(film.whole.height_px, film.whole.width_px)
        frames = iter_frames(film.whole, limits=self.limits, size_px=size_px, threads=threads)
        with contextlib.closing(frames):
            return self.detector.transitions(self.model, frames, self._timeline(film.info))

    def _timeline(self, info: VideoInfo) -> Timeline:
        bounds = np.append(info.pts, info.end_pts)
        return Timeline(bounds, Fraction(info.time_base_num, info.time_base_den))

    def _clip(self, film: ProbedSource, shot: shot_splitting.Shot, *, share: bool) -> Clip:
        whole = film.whole
        clip = make_clip(whole.source, film.info, shot.start, shot.stop, whole.caption if share else None)
        return dataclasses.replace(
            clip,
            collection=whole.collection,
            start_cut=shot.before.kind,
            start_cut_confidence=shot.before.confidence,
            end_cut=shot.after.kind,
            end_cut_confidence=shot.after.confidence,
        )


def caption_of(source: str) -> str | None:
    """The text of the caption file beside a video; None if there is none, or it is empty. Raises `ClipError`."""
    path = sidecar_path(source, ".txt")
    data = read_bounded(path, MAX_CAPTION_BYTES) if path else None
    return decode_text(data, str(path)).strip() or None if data is not None else None
