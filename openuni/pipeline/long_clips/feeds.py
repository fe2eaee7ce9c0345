"""What operators see of a clip that is decoded in windows: samples of filters, maps that annotators start from."""

from collections.abc import Iterator

import numpy as np

from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.modality import Modality
from openuni.manifests.errors import ClipError
from openuni.manifests.video.clip import Clip
from openuni.manifests.video.reader import Frames


class SampleFeed:
    """The windows of one filter: its sample of the frames that all filters decode together.

    `positions`: the sample's places among the decoded frames, int64 [n], increasing. `step`: see
    `Operator.window_step`; 0: one window with the whole sample, for filters that do not support windows.
    """

    def __init__(self, clip: Clip, positions: np.ndarray, step: int) -> None:
        self.clip, self.positions, self.step = clip, positions, step
        self.held: list[DecodedClip] = []  # frames that no window has had yet
        self.before: DecodedClip | None = None  # the last frame of the last window
        self.given = 0  # frames of the sample that windows have had

    def add(self, frames: Frames, first: int) -> Iterator[DecodedClip]:
        """The windows that are complete with the next decoded frames; `first`: the place of the first of them."""
        inside = (self.positions >= first) & (self.positions < first + len(frames.frames))
        places = self.positions[inside] - first
        if len(places):
            vectors = None if frames.vectors is None else tuple(frames.vectors[place] for place in places)
            self.held.append(DecodedClip(self.clip, frames.frames[places], frames.times_s[places], vectors))
        is_last = first + len(frames.frames) > self.positions[-1]
        ready = sum(len(part.frames) for part in self.held)
        count = ready if is_last else ready // self.step * self.step if self.step else 0
        if count:
            yield self._window(count)

    def _window(self, count: int) -> DecodedClip:
        whole = _concatenated(self.held)
        rest = np.arange(count, len(whole.frames))
        self.held = [whole.take(rest)] if len(rest) else []
        taken = whole if not len(rest) else whole.take(np.arange(count))
        before = self.before
        window = taken if before is None else _concatenated([before, taken])
        self.before = taken.take(np.array([count - 1]))
        self.given += count
        overlap = len(window.frames) - count
        return DecodedClip(
            self.clip,
            window.frames,
            window.times_s,
            window.vectors,
            first_frame=self.given - count - overlap,
            overlap_frames=overlap,
        )


def _concatenated(parts: list[DecodedClip]) -> DecodedClip:
    if len(parts) == 1:
        return parts[0]
    vectors = None
    if parts[0].vectors is not None:
        vectors = tuple(entry for part in parts for entry in part.vectors or ())
    frames = np.concatenate([part.frames for part in parts])
    return DecodedClip(parts[0].clip, frames, np.concatenate([part.times_s for part in parts]), vectors)


class MapFeed:
    """The maps of one modality, in the windows of the frames. `blocks`: maps of consecutive frames, in order."""

    def __init__(self, blocks: Iterator[Modality]) -> None:
        self.blocks = blocks
        self.held: list[Modality] = []
        self.fault = ""

    def take(self, overlap: int, count: int, is_last: bool) -> Modality | str:
        """The maps of the next `count` frames behind the last `overlap` ones of the window before.

        The reason instead if they cannot be read. `is_last`: nothing follows; the blocks are read to their end, where
        damage may show.
        """
        if self.fault:
            return self.fault
        try:
            return self._take(overlap, count, is_last)
        except ClipError as error:
            self.fault, self.held = str(error), []
            return self.fault

    def _take(self, overlap: int, count: int, is_last: bool) -> Modality:
        ready = sum(len(part.array) for part in self.held)
        while ready < overlap + count or is_last:
            block = next(self.blocks, None)
            if block is None:
                break
            self.held.append(block)
            ready += len(block.array)
        if ready < overlap + count or (is_last and ready > overlap + count):
            raise ClipError("its stored map has another number of frames than the clip; rerun its annotator")
        joined = type(self.held[0]).joined(self.held)
        self.held = [joined.take(overlap + count - 1, ready)]  # the next window begins with the last of this one
        return joined.take(0, overlap + count)
