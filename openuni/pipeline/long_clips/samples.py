"""Filters on long clips: the sparse sample of all filters, whole if it is within the limit, else in windows."""

from collections.abc import Generator, Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np

from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.operator import Filter
from openuni.manifests.contracts.window_filter import supports_windows
from openuni.manifests.errors import Unavailable
from openuni.manifests.video.reader import Frames, iter_windows
from openuni.pipeline.long_clips.feeds import SampleFeed
from openuni.pipeline.long_clips.window_pass import OperatorPass, WholeRun, frames_per_window
from openuni.pipeline.long_clips.worker import LongClip, OperatorResult, Views, WindowedWorker
from openuni.pipeline.phases import ClipItem, decoder_threads


class SampleWindows(WindowedWorker):
    """The part of a filter worker that is for long clips."""

    def prepare_long(self, item: ClipItem) -> tuple[DecodedClip, dict[str, np.ndarray]] | LongClip:
        """The sample of a long clip, and whose frames are whose: whole if it is within the limit."""
        wanted: dict[str, np.ndarray] = {}
        windows = self._open_sample(item, wanted)
        first = next(windows)
        union = np.unique(np.concatenate(list(wanted.values())))
        positions = {name: np.searchsorted(union, indices) for name, indices in wanted.items()}
        if self.decoded_bytes(item.clip, len(union)) > self.limits.max_decoded_bytes:
            return LongClip(positions, _chained(first, windows))
        frames, times_s = np.empty((len(union), *first.frames.shape[1:]), np.uint8), np.empty(len(union))
        vectors: list[Any] = []
        done = 0
        for window in chain([first], windows):
            place = slice(done, done + len(window.frames))
            frames[place], times_s[place] = window.frames, window.times_s
            vectors.extend(window.vectors or ())
            done = place.stop
        decoded = DecodedClip(item.clip, frames, times_s, tuple(vectors) if first.vectors is not None else None)
        return decoded, positions

    def start_pass(self, name: str, item: ClipItem, prepared: LongClip) -> OperatorPass:
        """Also filters that do not support windows, if their own sample is within the limit."""
        operator = self.operators[name]
        nbytes = self.decoded_bytes(item.clip, len(prepared.positions[name]))
        if not supports_windows(operator) and nbytes <= self.limits.max_decoded_bytes:
            run = WholeRun(operator, self.models[name])
            return OperatorPass(name, operator, run, item.clip, self.writers[name].scratch_folder)
        return super().start_pass(name, item, prepared)

    def open_windows(
        self, item: ClipItem, prepared: LongClip, passes: Mapping[str, OperatorPass], done: Mapping[str, OperatorResult]
    ) -> tuple[Generator[Frames], Views]:
        """See `WindowedWorker.open_windows`: each filter gets windows of its own sample."""
        feeds = {}
        for name, one in passes.items():
            step = 0 if isinstance(one.started, WholeRun) else one.operator.window_step()
            feeds[name] = SampleFeed(item.clip, prepared.positions[name], step)
        decoded = 0

        def views(frames: Frames) -> Iterator[tuple[str, DecodedClip | Unavailable]]:
            nonlocal decoded
            first, decoded = decoded, decoded + len(frames.frames)
            for name, feed in feeds.items():
                for window in feed.add(frames, first):
                    yield name, window

        return prepared.windows or self._open_sample(item, {}), views

    def sample(self, name: str, times_s: np.ndarray) -> np.ndarray:
        """Indices of the frames that the named filter measures."""
        operator = self.operators[name]
        assert isinstance(operator, Filter)
        return operator.sample(times_s)

    def wants_vectors(self, item: ClipItem) -> bool:
        """Whether a filter of the item reads the codec's motion vectors."""
        return any(getattr(self.operators[name], "requires_motion_vectors", False) for name in item.todo)

    def _open_sample(self, item: ClipItem, wanted: dict[str, np.ndarray]) -> Generator[Frames]:
        """The frames any of the filters wants, in windows. With the first one, `wanted` gets which are whose."""

        def choose(times_s: np.ndarray) -> np.ndarray:
            wanted.update({name: self.sample(name, times_s) for name in item.todo})
            return np.unique(np.concatenate(list(wanted.values())))

        size = self.spec.short_side_px
        count = frames_per_window(item.clip, size, self.limits.max_decoded_bytes, ())
        vectors = self.wants_vectors(item)
        return iter_windows(item.clip, size, self.limits, count, 0, choose, decoder_threads(), vectors, self.reader)


def _chained(first: Frames, windows: Generator[Frames]) -> Generator[Frames]:
    yield first
    yield from windows
