"""One pass over a long clip: it is decoded in windows, each of which goes through every operator."""

import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.modality import Modality
from openuni.manifests.contracts.operator import Operator
from openuni.manifests.contracts.windows import WindowedRun
from openuni.manifests.corpus.parts.spool import SpooledMaps
from openuni.manifests.errors import ClipError, OpenUniError, Unavailable
from openuni.manifests.hosting.process import run_operator
from openuni.manifests.video.clip import Clip
from openuni.manifests.video.reader import Frames, working_size

WINDOWS_PER_LIMIT = (
    32  # a window has at most this fraction of the limit of a decode: annotators need up to 15 times as much
)

T = TypeVar("T")


@dataclass
class OperatorPass:
    """One operator's way through the windows of a clip, and what came out."""

    name: str
    operator: Operator
    started: WindowedRun[Any]
    clip: Clip
    folder: Callable[[], Path]  # where its maps are spooled
    maps: dict[str, SpooledMaps[Any]] = field(default_factory=dict)  # by result field
    seconds: float = 0.0
    value: Any = None
    error: BaseException | None = None

    @property
    def is_out_of_memory(self) -> bool:
        """Whether the operator failed because the GPU is too small for its batch."""
        return type(self.error).__name__ == "OutOfMemoryError"

    def add(self, window: DecodedClip) -> None:
        """Process a window and spool its maps. An error ends this operator's pass, not that of others."""

        def process() -> None:
            for key, maps in self.started.add(window).items():
                if key not in self.maps:
                    self.maps[key] = SpooledMaps(self.folder(), self.clip.frame_count)
                self.maps[key].append(maps)

        self.attempt(process)

    def finish(self) -> None:
        """Take the result; the maps that it still has are spooled behind the others."""

        def process() -> None:
            value = self.started.result()
            if not isinstance(value, self.operator.result_type()):
                raise ClipError(f"returned {type(value).__name__}, declared {self.operator.result_type().__name__}")
            for key, maps in self.maps.items():
                if (rest := getattr(value, key)) is not None:
                    maps.append(rest)
            self.value = value

        self.attempt(process)

    def attempt(self, process: Callable[[], None]) -> None:
        """Run a step of the operator, unless one failed before."""
        if self.error is not None:
            return
        started = time.perf_counter()
        try:
            process()
        except OpenUniError:
            raise  # a missing part, a full disk: no clip's fault
        except Exception as error:  # an operator may fail in any way; the others still run
            self.error = error
            self.close()
        self.seconds += time.perf_counter() - started

    def close(self) -> None:
        """Free the disk that the maps take."""
        for maps in self.maps.values():
            maps.close()
        self.maps = {}


class WholeRun(WindowedRun[Any]):
    """One window with all that the operator wants to see: for filters without windows whose sample is small."""

    def __init__(self, operator: Operator, model: Any) -> None:
        self.operator, self.model = operator, model
        self.value: Any = None

    def add(self, window: DecodedClip) -> Mapping[str, Modality]:
        """See `WindowedRun.add`."""
        self.value = run_operator(self.operator, self.model, window)
        return {}

    def result(self) -> Any:
        """See `WindowedRun.result`."""
        return self.value


def frames_per_window(clip: Clip, short_side_px: int, max_bytes: int, steps: Iterable[int]) -> int:
    """Number of new frames of a window: a multiple of all steps, about a thirty-second of the limit of a decode.

    Raises `ClipError` if the smallest window, and the frame before it, exceed the limit.
    """
    height_px, width_px = working_size(clip, short_side_px)
    frame_bytes = height_px * width_px * 3
    step = math.lcm(*steps)
    if (step + 1) * frame_bytes > max_bytes:
        raise ClipError(
            f"{clip.source}: a window of {step} frames of {width_px}x{height_px}, and the one before, need "
            f"{(step + 1) * frame_bytes / 1e9:.3g} GB, over the limit of {max_bytes / 1e9:.3g} GB. Raise [work] "
            "max_decoded_gb, or set a smaller [work] short_side_px or frames_per_batch."
        )
    return max(step, max_bytes // WINDOWS_PER_LIMIT // frame_bytes // step * step)


def read_ahead(items: Generator[T]) -> Generator[T]:
    """The same items; the next one is made in a thread while one is used. Closes `items` at the end."""
    end: Any = object()
    try:
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="window") as reader:
            waiting = reader.submit(next, items, end)
            while (item := waiting.result()) is not end:
                waiting = reader.submit(next, items, end)
                yield item
    finally:
        items.close()


def run_windows(
    windows: Generator[Frames],
    passes: Mapping[str, OperatorPass],
    views: Callable[[Frames], Iterator[tuple[str, DecodedClip | Unavailable]]],
    running: Callable[[str], AbstractContextManager[None]],
) -> None:
    """Decode the clip once and push its windows through all operators.

    `views`: what each operator sees of a window. `running`: the context in which the named operator runs. Raises what
    decoding raises.
    """
    with closing(read_ahead(windows)) as ready:
        for frames in ready:
            for name, view in views(frames):
                one = passes[name]
                if isinstance(view, Unavailable):
                    one.error = one.error or view
                    continue
                with running(name):
                    one.add(view)
            if all(one.error is not None for one in passes.values()):
                break
    for name, one in passes.items():
        with running(name):
            one.finish()
