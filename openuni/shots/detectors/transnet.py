"""Cuts, dissolves and fades by TransNetV2, a small network that processes windows of 100 thumbnails."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Ge, Interval

from openuni.manifests.contracts.checkpoint import Checkpoint, published_or_path
from openuni.manifests.contracts.weights import read_weights
from openuni.manifests.errors import OpenUniError
from openuni.shots.detectors._true_runs import true_runs
from openuni.shots.shot_detector import ShotDetector, Timeline, Transition

WINDOW_FRAMES = 100
CENTRE_FRAMES = 50  # centre of a window, for which results are used; 25 frames of context on either side
HARD_FRAMES = 2  # transitions of at most this many frames are hard cuts: the frame on either side
HEIGHT_PX, WIDTH_PX = 27, 48

PUBLISHED = Checkpoint(
    "Sn4kehead/TransNetV2",  # the authors' weights, converted by their script; the authors do not host PyTorch weights
    "hub",
    "MIT",
    sha256="a313d0b3bebfa9a71914b375bfdf918a30b5c3b1e6be51972d35dd8078b442de",
    size_mb=30.5,
    only=("*.pth",),
)

Network = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class TransNet(ShotDetector):
    """Hard cuts, dissolves and fades by TransNetV2; its second head gives the extent of transitions."""

    checkpoint: Annotated[str, "checkpoint (hub name or path) with PyTorch weights: a .pth file or its folder"] = (
        PUBLISHED.ref
    )
    threshold: Annotated[float, "probability above which a frame belongs to a transition", Interval(gt=0, lt=1)] = 0.5
    windows_per_batch: Annotated[int, "windows of 100 frames per forward pass", Ge(1)] = 4

    licence: ClassVar[str] = "MIT"
    origin: ClassVar[str] = "Soucek and Lokoc 2020 (arXiv:2008.04838), TransNetV2"

    def checkpoints(self) -> Sequence[Checkpoint]:
        """The checkpoint file."""
        return (published_or_path(self.checkpoint, (PUBLISHED,)),)

    @classmethod
    def published(cls) -> Sequence[Checkpoint]:
        """See `Component.published`."""
        return (PUBLISHED,)

    def size_px(self, height_px: int, width_px: int) -> tuple[int, int]:
        """27 x 48 for all sources, as in the network's training."""
        return HEIGHT_PX, WIDTH_PX

    def load(self, device: str) -> Network:
        """A function from windows of frames to probabilities; see `transitions`."""
        import torch

        from openuni.shots.detectors._transnet_network import TransNetV2

        network = TransNetV2()
        path = _weights_file(self.checkpoints()[0].resolve())
        weights = read_weights(path, f"with: openuni checkpoints get {PUBLISHED.ref}")
        try:
            network.load_state_dict(weights)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise OpenUniError(f"transnet: {path} does not contain PyTorch weights of TransNetV2: {reason}") from error
        network.eval().to(device)

        def run(windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            with torch.inference_mode():
                ends, mixed = network(torch.from_numpy(windows).to(device))
                return ends.sigmoid().cpu().numpy(), mixed.sigmoid().cpu().numpy()

        return run

    def transitions(self, model: Network, frames: Iterable[np.ndarray], timeline: Timeline) -> list[Transition]:
        """See `ShotDetector.transitions`.

        `model`: uint8 [B, 100, 27, 48, 3] -> probabilities that a frame is the last of a shot, and that it belongs to a
        transition, two float32 [B, 100].
        """
        return transitions_of(*probabilities(model, frames, self.windows_per_batch), self.threshold)


def probabilities(
    model: Network, frames: Iterable[np.ndarray], windows_per_batch: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Both probabilities of every frame, two float32 [T]; `model`: see `TransNet.transitions`."""
    found: list[tuple[np.ndarray, np.ndarray]] = []
    batch: list[np.ndarray] = []
    counted = _CountingIterator(frames)
    edge = (WINDOW_FRAMES - CENTRE_FRAMES) // 2

    def flush() -> None:
        if batch:
            ends, mixed = model(np.stack(batch))
            centre = slice(edge, edge + CENTRE_FRAMES)
            found.append((ends[:, centre].ravel(), mixed[:, centre].ravel()))
            batch.clear()

    for window in _windows(counted, edge):
        batch.append(window)
        if len(batch) == windows_per_batch:
            flush()
    flush()
    if not found:
        return np.zeros(0, np.float32), np.zeros(0, np.float32)
    ends, mixed = (np.concatenate(parts)[: counted.count] for parts in zip(*found, strict=True))
    return ends, mixed


class _CountingIterator:
    """Iterates over frames and counts them."""

    def __init__(self, frames: Iterable[np.ndarray]) -> None:
        self.frames, self.count = frames, 0

    def __iter__(self) -> Iterator[np.ndarray]:
        for frame in self.frames:
            self.count += 1
            yield frame


def _windows(frames: _CountingIterator, edge: int) -> Iterator[np.ndarray]:
    """[100, H, W, 3] every 50 frames; the first and last frame are repeated beyond the ends of the source."""
    held: list[np.ndarray] = []
    for frame in frames:
        held = held or [frame] * edge
        held.append(frame)
        if len(held) == WINDOW_FRAMES:
            yield np.stack(held)
            held = held[CENTRE_FRAMES:]
    short = -frames.count % CENTRE_FRAMES  # so that the centre of the last window is complete
    held += held[-1:] * (edge + short)
    for start in range(0, len(held) - WINDOW_FRAMES + 1, CENTRE_FRAMES):
        yield np.stack(held[start : start + WINDOW_FRAMES])


def transitions_of(ends: np.ndarray, mixed: np.ndarray, threshold: float) -> list[Transition]:
    """Transitions by the authors' rule.

    A shot ends with the first frame above the threshold, and the next one starts after the last. If the second head
    marks more frames around them than a hard cut has, those belong to neither shot.
    """
    reach = true_runs(mixed > threshold)
    found: list[Transition] = []
    if (ends > threshold).all():
        return []  # uninformative: one shot
    for first, stop in true_runs(ends > threshold):
        start = first + 1 if first else 0  # a source that starts within a transition does not start with a shot
        kind = "hard" if start == stop else "gradual"
        for low, high in reach:
            if low < stop and high > first and high - low > HARD_FRAMES:
                start, stop, kind = min(start, low), max(stop, high), "gradual"
        confidence = float(ends[first : max(stop, first + 1)].max())
        if found and start <= found[-1].stop and kind == "gradual" == found[-1].kind:
            before = found.pop()  # one extent around two shot ends
            start, stop = min(before.start, start), max(before.stop, stop)
            confidence = max(before.confidence or 0.0, confidence)
        found.append(Transition(start, stop, kind, confidence))  # type: ignore[arg-type]
    return found


def _weights_file(place: Path) -> Path:
    if not place.is_dir():
        return place
    files = sorted(place.glob("*.pth"))
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise OpenUniError(f"transnet: {place} must contain one .pth file, got {found}. Pass the file itself.")
    return files[0]
