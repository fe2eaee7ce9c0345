"""The phases of a run: what each one's worker reads, computes and writes."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple, TextIO

import numpy as np

from manifests import schema, video
from manifests.beside import beside, read_small
from manifests.clip import Clip, DecodedClip, clip_id
from manifests.corpus import Corpus
from manifests.errors import ClipError, OpenUniError, Unavailable
from manifests.modality import Modality
from manifests.operator import Annotator, Filter, Operator
from manifests.shards import TarShard
from manifests.writer import PartWriter
from openuni import cutting
from openuni.recipe import Ingest
from openuni.shot_detector import ShotDetector, Timeline, Transition
from openuni.worker import Outcome, Spec, Worker, describe

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
class ClipItem:
    """One clip and the operators that have not seen it."""

    clip: Clip
    todo: tuple[str, ...]

    @property
    def key(self) -> str:
        """What identifies the item in a run."""
        return self.clip.clip_id


class CorpusWorker(Worker):
    """A worker that writes to a corpus: it holds the corpus's worker lock and one writer per column group."""

    def __init__(self, url: str) -> None:
        self.corpus = Corpus.open(url)
        self.lock: TextIO = self.corpus.worker_lock()
        self.writers: dict[str, PartWriter] = {}

    def finish(self) -> None:
        """Seal all writers and release the lock."""
        for writer in self.writers.values():
            writer.finish()
        self.lock.close()


# ---------------------------------------------------------------------- ingest


@dataclass(frozen=True)
class IngestSpec(Spec):
    """Probe sources, find their shots and write `clips/`."""

    corpus_url: str
    options: Ingest
    detector: ShotDetector
    version: str

    def start(self, device: str) -> "IngestWorker":
        """See `Spec.start`."""
        return IngestWorker(self, device)


class Film(NamedTuple):
    """A source that was looked at."""

    info: video.VideoInfo
    whole: Clip  # all of its frames as one clip


class IngestWorker(CorpusWorker):
    """The rows of one source, written as one: its clips, or the reason why there is none."""

    def __init__(self, spec: IngestSpec, device: str) -> None:
        super().__init__(spec.corpus_url)
        self.options, self.detector = spec.options, spec.detector
        self.model = spec.detector.load(device)
        self.limits = video.Limits(
            max_pixels=spec.options.max_frame_px,
            max_duration_s=spec.options.max_duration_s,
            max_probe_s=spec.options.probe_timeout_s,
        )
        self.writers["clips"] = self.corpus.writer("clips", schema.clip_schema(), spec.version)

    def prepare(self, item: SourceItem) -> Film:
        """Look at the file without decoding it."""
        info = video.probe(item.source, self.limits)
        whole = video.clip_of(item.source, info, caption=self._caption(item.source))
        return Film(info, dataclasses.replace(whole, collection=self.options.collection or None))

    def compute(self, item: SourceItem, prepared: Film) -> list[Clip]:
        """Find the shots; of detectors that look at no frame, without decoding."""
        try:
            transitions = self._transitions(prepared, decoder_threads())
        except video.Undecodable:
            transitions = self._transitions(prepared, 1)  # slower, and only what harms a frame is an error
        shots = cutting.cut(transitions, self._timeline(prepared.info), self.options)
        return [self._clip(prepared, shot, share=self.options.share_captions or len(shots) == 1) for shot in shots]

    def store(self, item: SourceItem, computed: list[Clip]) -> Outcome:
        """Write the clips' rows: all of them or none, so that a source that has a row is done."""
        self.writers["clips"].commit(*(dataclasses.asdict(clip) | {"status": "ok", "error": None} for clip in computed))
        return Outcome(item.key, "ok")

    def fail(self, item: SourceItem, error: str) -> Outcome:
        """Write the row of a source that is no usable video."""
        row: dict[str, Any] = dict.fromkeys(Clip.__dataclass_fields__)
        row |= {"clip_id": clip_id(item.source, 0, 0, ""), "source": item.source, "status": "failed", "error": error}
        self.writers["clips"].commit(row)
        return Outcome(item.key, "failed", error)

    def _transitions(self, film: Film, threads: int) -> list[Transition]:
        size_px = self.detector.size_px(film.whole.height_px, film.whole.width_px)
        frames = video.frames_of(film.whole, limits=self.limits, size_px=size_px, threads=threads)
        with contextlib.closing(frames):
            return self.detector.transitions(self.model, frames, self._timeline(film.info))

    def _timeline(self, info: video.VideoInfo) -> Timeline:
        bounds = np.append(info.pts, info.end_pts)
        return Timeline(bounds, Fraction(info.time_base_num, info.time_base_den))

    def _clip(self, film: Film, shot: cutting.Shot, *, share: bool) -> Clip:
        whole = film.whole
        clip = video.clip_of(whole.source, film.info, shot.start, shot.stop, whole.caption if share else None)
        return dataclasses.replace(
            clip,
            collection=whole.collection,
            start_cut=shot.before.kind,
            start_cut_confidence=shot.before.confidence,
            end_cut=shot.after.kind,
            end_cut_confidence=shot.after.confidence,
        )

    def _caption(self, source: str) -> str | None:
        if not self.options.captions:
            return None
        text = read_small(beside(source, ".txt"), MAX_CAPTION_BYTES)
        return text.decode("utf-8", "replace").strip() or None if text is not None else None


# ---------------------------------------------------------------------- filters and annotators


@dataclass(frozen=True)
class OperatorSpec(Spec):
    """Run filters or annotators over clips: one decode serves all of them."""

    corpus_url: str
    operators: Mapping[str, Operator]
    versions: Mapping[str, str]
    short_side_px: int

    def start(self, device: str) -> "OperatorWorker":
        """See `Spec.start`."""
        kinds = {operator.kind for operator in self.operators.values()}
        return (FilterWorker if kinds == {"filter"} else AnnotatorWorker)(self, device)


class Result(NamedTuple):
    """What one operator gave for one clip: a value, or the error instead."""

    value: Any
    error: str | None
    ms: float | None
    status: str = "ok"


class OperatorWorker(CorpusWorker):
    """Holds the models of all operators of a phase."""

    def __init__(self, spec: OperatorSpec, device: str) -> None:
        super().__init__(spec.corpus_url)
        self.spec = spec
        self.operators = dict(spec.operators)
        self.models = {name: operator.load(device) for name, operator in self.operators.items()}
        for name, operator in self.operators.items():
            folder = "filters" if operator.kind == "filter" else "annotations"
            shard_type = TarShard if schema.modality_fields(type(operator)) else None
            self.writers[name] = self.corpus.writer(
                f"{folder}/{name}", schema.producer_schema(type(operator)), spec.versions[name], shard_type
            )

    def compute(self, item: ClipItem, prepared: Any) -> dict[str, Result]:
        """Run every operator that has not seen the clip."""
        return {name: self._run_one(name, prepared) for name in item.todo}

    def store(self, item: ClipItem, computed: dict[str, Result]) -> Outcome:
        """Write every operator's row; each has a fate of its own."""
        errors = []
        for name in item.todo:
            error = self._store_one(name, item, computed.pop(name))
            if error:
                errors.append(f"{name}: {error}")
        return Outcome(item.key, "failed" if errors else "ok", "; ".join(errors))

    def fail(self, item: ClipItem, error: str) -> Outcome:
        """The clip could not be decoded, or killed its workers: that is every operator's outcome."""
        for name in item.todo:
            self._commit(name, item, self._outcome(name, "failed", error, None))
        return Outcome(item.key, "failed", error)

    def view(self, name: str, prepared: Any) -> DecodedClip:
        """What the named operator sees of what was decoded."""
        raise NotImplementedError

    def field(self, name: str, value: Any, item: ClipItem) -> Any:
        """A result's field as the row holds it."""
        return schema.plain(value)

    def _run_one(self, name: str, prepared: Any) -> Result:
        started = time.perf_counter()
        try:
            value = self._value(name, self.view(name, prepared))
        except OpenUniError:
            raise  # a missing part: no clip's fault
        except Unavailable as error:
            return Result(None, describe(error), None, "unavailable")
        except Exception as error:  # an operator may fail in any way; the others still get their turn
            return Result(None, describe(error), None, "failed")
        return Result(value, None, (time.perf_counter() - started) * 1000)

    def _store_one(self, name: str, item: ClipItem, result: Result) -> str | None:
        """Write one row; returns the reason where it is a failure."""
        fields: dict[str, Any] = {}
        _, text, ms, status = result
        if status == "ok":
            try:
                fields = {key: self.field(name, value, item) for key, value in result.value._asdict().items()}
            except OpenUniError:
                raise  # a full disk: no clip's fault
            except Exception as error:  # what it gave cannot be stored
                self.writers[name].rollback()
                fields, text, ms, status = {}, describe(error), None, "failed"
        self._commit(name, item, self._outcome(name, status, text, ms) | fields)
        return text if status == "failed" else None

    def _value(self, name: str, clip: DecodedClip) -> Any:
        operator = self.operators[name]
        try:
            result = operator.run(self.models[name], clip)
        except RuntimeError as error:
            smaller = halved(operator)
            if type(error).__name__ != "OutOfMemoryError" or smaller is None:
                raise
            self.operators[name] = smaller  # the GPU will not grow: stay with the smaller batch
            result = smaller.run(self.models[name], clip)
        if not isinstance(result, operator.result_type()):
            raise ClipError(f"returned {type(result).__name__}, declared {operator.result_type().__name__}")
        return result

    def _outcome(self, name: str, status: str, error: str | None, ms: float | None) -> dict[str, Any]:
        return {"status": status, "error": error, "version": self.spec.versions[name], "ms": ms}

    def _commit(self, name: str, item: ClipItem, row: dict[str, Any]) -> None:
        self.writers[name].commit({"clip_id": item.clip.clip_id, name: row})


class FilterWorker(OperatorWorker):
    """One sparse decode of the union of all filters' samples."""

    def prepare(self, item: ClipItem) -> tuple[DecodedClip, dict[str, np.ndarray]]:
        """Decode the frames any of the filters wants; remember which are whose."""
        wanted: dict[str, np.ndarray] = {}

        def choose(times_s: np.ndarray) -> np.ndarray:
            wanted.update({name: self._sample(name, times_s) for name in item.todo})
            return np.unique(np.concatenate(list(wanted.values())))

        vectors = any(getattr(self.operators[name], "wants_vectors", False) for name in item.todo)
        decoded = video.decode(item.clip, choose, self.spec.short_side_px, threads=decoder_threads(), vectors=vectors)
        union = np.unique(np.concatenate(list(wanted.values())))
        return decoded, {name: np.searchsorted(union, indices) for name, indices in wanted.items()}

    def view(self, name: str, prepared: tuple[DecodedClip, dict[str, np.ndarray]]) -> DecodedClip:
        """See `OperatorWorker.view`."""
        decoded, positions = prepared
        return decoded.take(positions[name])

    def _sample(self, name: str, times_s: np.ndarray) -> np.ndarray:
        operator = self.operators[name]
        assert isinstance(operator, Filter)
        return operator.sample(times_s)


class AnnotatorWorker(OperatorWorker):
    """All frames, decoded once, for all annotators."""

    def prepare(self, item: ClipItem) -> DecodedClip:
        """Decode every frame at the working size."""
        return video.decode(item.clip, None, self.spec.short_side_px, threads=decoder_threads())

    def view(self, name: str, prepared: DecodedClip) -> DecodedClip:
        """See `OperatorWorker.view`."""
        assert isinstance(self.operators[name], Annotator)
        return prepared

    def field(self, name: str, value: Any, item: ClipItem) -> Any:
        """Modalities go to the shard, and their extent and constants into the row."""
        if not isinstance(value, Modality):
            return schema.plain(value)
        frames, (height_px, width_px) = len(value.array), value.size_px
        if frames != item.clip.frame_count:
            raise ClipError(f"{value.name} has {frames} frames, the clip has {item.clip.frame_count}")
        payload = value.encode(item.clip.fps)
        extent = self.writers[name].put(f"{item.clip.clip_id}.{value.name}.{payload.suffix}", payload.data)
        size = {"frames": frames, "height_px": height_px, "width_px": width_px, "pts_hash": item.clip.pts_hash}
        return extent | size | schema.plain(payload.constants)


def decoder_threads() -> int:
    """Threads of a worker's decoder: its share of the cores, which the runner states; all of them without a runner."""
    return int(os.environ.get("OPENUNI_THREADS", "0"))


def halved(operator: Operator) -> Operator | None:
    """The operator with half its frames per batch, or None when it has no smaller one."""
    batch = getattr(operator, "frames_per_batch", 1)
    return dataclasses.replace(operator, frames_per_batch=batch // 2) if batch > 1 else None  # type: ignore[call-arg]
