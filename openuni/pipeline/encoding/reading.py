"""Reading what is encoded of a clip: the windows of its frames, and of its stored maps, in bounded memory."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from openuni.manifests.contracts.decoded_clip import decode
from openuni.manifests.contracts.modality import Modality
from openuni.manifests.corpus.column_groups import ColumnGroups
from openuni.manifests.corpus.corpus_clip import stored_blocks
from openuni.manifests.video.clip import Clip
from openuni.manifests.video.decoder.limits import Limits
from openuni.manifests.video.reader import iter_windows
from openuni.pipeline.phases import decoder_threads

MIN_BLOCK_FRAMES = 16  # of a stored map that is read at a time


def decoded_windows(
    clip: Clip, kind: type[Modality], frames: np.ndarray, short_side_px: int, limits: Limits, reader: str = "pyav"
) -> Iterator[Modality]:
    """The windows of a clip's own frames, decoded in one pass. `frames`: see `ClipWindows`.

    `kind`: the modality of RGB. `short_side_px`, `reader`: see `decode_frames`. Raises `ClipError`.
    """
    wanted, threads = np.unique(frames), decoder_threads()
    if len(frames) == 1:
        whole = kind(decode(clip, wanted, short_side_px, limits, threads, reader=reader).frames)
        yield _selected(whole, wanted, frames[0])
        return
    length = frames.shape[1]
    windows = iter_windows(clip, short_side_px, limits, length, indices=wanted, threads=threads, reader=reader)
    with contextlib.closing(windows):
        parts = (kind(window.frames) for window in windows)
        yield from _assembled(_numbered(parts, wanted), frames)


def stored_windows(
    corpus: ColumnGroups, group: str, kind: type[Modality], extent: Mapping[str, Any], clip: Clip, frames: np.ndarray
) -> Iterator[Modality]:
    """The windows of a stored map, read in one pass. Raises `ClipError`, or `OpenUniError` for a damaged one."""
    stop = int(frames.max()) + 1
    per_block = stop if len(frames) == 1 else max(MIN_BLOCK_FRAMES, frames.shape[1])
    blocks = stored_blocks(corpus, group, kind, extent, clip, per_block, stop=stop)
    yield from _assembled(_numbered(blocks, np.arange(stop)), frames)


def _numbered(parts: Iterator[Modality], numbers: np.ndarray) -> Iterator[tuple[np.ndarray, Modality]]:
    """Each part with the numbers of its frames; `numbers`: those of all parts."""
    done = 0
    for part in parts:
        count = len(part.array)
        yield numbers[done : done + count], part
        done += count


def _assembled(parts: Iterator[tuple[np.ndarray, Modality]], frames: np.ndarray) -> Iterator[Modality]:
    """The windows, from parts of consecutive frames. Only parts that the next windows need are in memory."""
    held: list[tuple[np.ndarray, Modality]] = []
    for window in frames:
        held = [part for part in held if part[0][-1] >= window[0]]
        while not held or held[-1][0][-1] < window[-1]:
            numbers, part = next(parts)
            if numbers[-1] >= window[0]:
                held.append((numbers, part))
        numbers = np.concatenate([numbers for numbers, _ in held])
        yield _selected(type(held[0][1]).joined([part for _, part in held]), numbers, window)


def _selected(whole: Modality, numbers: np.ndarray, window: np.ndarray) -> Modality:
    """The frames of a window. `numbers`: those of the frames of `whole`, increasing."""
    return whole if np.array_equal(numbers, window) else whole.take_frames(np.searchsorted(numbers, window))
