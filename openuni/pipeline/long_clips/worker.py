"""How a worker of operators computes a long clip: passes of windows, until every operator has its result."""

import dataclasses
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np

from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.operator import Operator
from openuni.manifests.contracts.windows import WindowedRun
from openuni.manifests.corpus.parts.spool import SpooledMaps
from openuni.manifests.errors import ClipError, OpenUniError, Unavailable
from openuni.manifests.hosting.process import HostedModel
from openuni.manifests.video.clip import Clip
from openuni.manifests.video.container import Limits
from openuni.manifests.video.reader import Frames, working_size
from openuni.pipeline.failures import format_error
from openuni.pipeline.long_clips.map_coding import Coded, discard
from openuni.pipeline.long_clips.window_pass import OperatorPass, run_windows
from openuni.pipeline.phases import ClipItem, CorpusWorker
from openuni.pipeline.planning.gpu_memory import VramMeter

WHOLE_PER_LIMIT = 4  # clips above this fraction of the limit go in windows if they can
BATCH_SIZE_OPTIONS = ("frames_per_batch", "points_per_batch", "tracked_per_batch")
NO_WINDOWS = (
    "{name} needs all {frames} frames at once, and decoded they take {gb:.3g} GB at {width_px}x{height_px}, over the "
    "limit of {limit_gb:.3g} GB ({source}). Set shorter clips ([ingest] max_s) or a smaller [work] short_side_px, or "
    "raise [work] max_decoded_gb."
)

Views = Callable[[Frames], Iterator[tuple[str, DecodedClip | Unavailable]]]


class OperatorResult(NamedTuple):
    """What one operator gave for one clip: a value, or the error instead."""

    value: Any
    error: str | None
    ms: float | None
    status: str = "ok"
    coded: Mapping[str, Coded | Future[Coded]] = {}  # fields that are coded already, or are being coded
    spooled: Mapping[str, SpooledMaps[Any]] = {}  # fields whose maps are on disk: those of a long clip

    def close(self) -> None:
        """Free the disk that spooled and encoded maps take."""
        for payload in self.coded.values():
            discard(payload)
        for maps in self.spooled.values():
            maps.close()


class LongClip(NamedTuple):
    """A clip whose decoded frames exceed the limit: it is decoded in windows while it is computed."""

    positions: Mapping[str, np.ndarray] = {}  # filters only: the places of their samples among the decoded frames
    windows: Generator[Frames] | None = None  # filters only: begun already, to know the samples


class WindowedWorker(CorpusWorker):
    """A worker of operators that computes clips of any length. Subclasses say what an operator sees of a window."""

    spec: Any  # OperatorSpec
    limits: Limits
    reader: str
    operators: dict[str, Operator]
    models: dict[str, Any]
    vram: VramMeter

    def decoded_bytes(self, clip: Clip, frames: int) -> int:
        """Size of so many decoded frames of a clip."""
        height_px, width_px = working_size(clip, self.spec.short_side_px)
        return frames * height_px * width_px * 3

    def is_long(self, clip: Clip) -> bool:
        """Whether the decoded frames of a clip exceed the limit."""
        return self.decoded_bytes(clip, clip.frame_count) > self.limits.max_decoded_bytes

    def is_better_in_windows(self, item: ClipItem) -> bool:
        """Whether a clip is processed in windows though it could be decoded whole: it is large, and all operators can.

        Whole, operators need a multiple of the decoded frames. Small clips are decoded ahead while others are computed.
        """
        is_large = (
            self.decoded_bytes(item.clip, item.clip.frame_count) * WHOLE_PER_LIMIT > self.limits.max_decoded_bytes
        )
        return is_large and all(self._started_windows(name) is not None for name in item.todo)

    def _started_windows(self, name: str) -> WindowedRun[Any] | None:
        """The named operator at the beginning of a clip in windows; None if it does not support them."""
        model = self.models[name]
        return None if isinstance(model, HostedModel) else self.operators[name].start_windows(model)

    def start_pass(self, name: str, item: ClipItem, prepared: LongClip) -> OperatorPass:
        """The named operator at the beginning of a long clip. Raises `ClipError` if it does not support windows."""
        started = self._started_windows(name)
        if started is None:
            count = len(prepared.positions[name]) if prepared.positions else item.clip.frame_count
            height_px, width_px = working_size(item.clip, self.spec.short_side_px)
            gb, limit_gb = self.decoded_bytes(item.clip, count) / 1e9, self.limits.max_decoded_bytes / 1e9
            size = {"frames": count, "height_px": height_px, "width_px": width_px, "gb": gb, "limit_gb": limit_gb}
            raise ClipError(NO_WINDOWS.format(source=item.clip.source, name=name, **size))
        return OperatorPass(name, self.operators[name], started, item.clip, self.writers[name].scratch_folder)

    def open_windows(
        self, item: ClipItem, prepared: LongClip, passes: Mapping[str, OperatorPass], done: Mapping[str, OperatorResult]
    ) -> tuple[Generator[Frames], Views]:
        """The windows of a long clip, and what each operator sees of one. `done`: results of passes before."""
        raise NotImplementedError

    def hand_on(self, name: str, item: ClipItem, result: OperatorResult) -> OperatorResult:
        """The result of a long clip, with the maps coded that others of the clip start from."""
        return result

    def compute_long(self, item: ClipItem, prepared: LongClip) -> dict[str, OperatorResult]:
        """Push the clip's windows through all operators; those that start from maps of others in a later pass."""
        results: dict[str, OperatorResult] = {}
        waiting = list(item.todo)
        while waiting:
            ready = [name for name in waiting if not self._is_early(name, waiting)]
            passes = self._started(ready, item, prepared, results)
            if passes:
                windows, views = self.open_windows(item, prepared, passes, results)
                run_windows(windows, passes, views, self.vram.running)
            for name, one in passes.items():
                smaller = with_half_batch_size(one.operator) if one.is_out_of_memory else None
                if smaller is not None:
                    self.operators[name] = smaller  # the GPU will not grow: stay with the smaller batch, pass again
                elif one.error is not None:
                    results[name] = self.error_result(name, item, one.error)
                else:
                    results[name] = OperatorResult(one.value, None, one.seconds * 1000, spooled=one.maps)
            for name in [name for name in waiting if name in results]:
                results[name] = self.hand_on(name, item, results[name])
                waiting.remove(name)
            prepared = prepared._replace(windows=None)
        return results

    def error_result(self, name: str, item: ClipItem, error: BaseException) -> OperatorResult:
        """The result of an operator that raised an error."""
        if isinstance(error, Unavailable):
            return OperatorResult(None, format_error(error), None, "unavailable")
        self.note_failure(item.key, name, error)
        return OperatorResult(None, format_error(error), None, "failed")

    def _is_early(self, name: str, waiting: list[str]) -> bool:
        return any(source.annotator in waiting for source in self.spec.required_maps[name].values())

    def _started(
        self, names: list[str], item: ClipItem, prepared: LongClip, results: dict[str, OperatorResult]
    ) -> dict[str, OperatorPass]:
        """The operators that begin; the results get the errors of the others."""
        passes = {}
        for name in names:
            try:
                passes[name] = self.start_pass(name, item, prepared)
            except OpenUniError:
                raise  # a missing part: no clip's fault
            except Exception as error:
                results[name] = self.error_result(name, item, error)
        return passes


def with_half_batch_size(operator: Operator) -> Operator | None:
    """The operator with half its batch size (one of `BATCH_SIZE_OPTIONS`), or None when there is no smaller one."""
    smaller = {name: getattr(operator, name) // 2 for name in BATCH_SIZE_OPTIONS if getattr(operator, name, 1) > 1}
    return dataclasses.replace(operator, **smaller) if smaller else None
