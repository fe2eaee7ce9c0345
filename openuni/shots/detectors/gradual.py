"""Hard cuts, dissolves and fades without a checkpoint, by testing whether frames are a mix of two other frames."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from annotated_types import Interval

from openuni.manifests.contracts.options import Formerly
from openuni.shots.detectors._true_runs import true_runs
from openuni.shots.shot_detector import ShotDetector, Timeline, Transition, TransitionKind

HEIGHT_PX, WIDTH_PX = 36, 64
# tested distances between the last frame of the old shot and the first of the new one
DISSOLVE_SPANS = (5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32, 35, 38, 42)
FADE_SPANS = (2, 3, 4, *DISSOLVE_SPANS)  # for one half of a fade
MAX_SPAN = max(FADE_SPANS)
CHUNK_FRAMES = 2048  # positions tested at once, to bound memory

# In squared grey levels, or ratios without unit; tuned on synthetic videos, not retuned on real footage.
NOISE = 4.0  # variance of compression and sensor noise in the coarse picture
FLAT = 16.0  # variance of the coarse picture below which a frame is blank
MIN_DETAIL = 1.0  # of both ends of a dissolve
MIN_FADED_DETAIL = 15.0  # of the bright end of a fade
MAX_DARK_SHARE = 0.15  # of the dark end's variance and detail, relative to the bright end
MAX_CORRELATION = 0.6  # maximum correlation of the two ends of a dissolve
MAX_LEFT_DETAIL = 0.8  # maximum detail within a dissolve, relative to a straight line between the ends
MIN_EXPLAINED = 0.35  # minimum share of the frames' variance explained by a mix of the ends; the rest is motion
UNEXPLAINED_WEIGHT = 0.05  # weight of the unexplained share in a dissolve's misfit
MIN_FADE_EXPLAINED = 0.6
LENGTH_WEIGHT = 0.004  # bonus per frame: parts of a fade fit as well as the whole, which is preferred
MIN_PLAIN_FRAMES = 6  # minimum number of blank frames without a fade; fewer may be a flash
HARD_TIMES_USUAL = (
    12.0  # a change this many times larger than those around it is a hard cut, even between similar frames
)
MIN_HARD_CHANGE = 0.2  # minimum change for that, as 1 - correlation
JOIN_FRAMES = 4  # maximum gap between the two halves of a fade


@dataclass(frozen=True)
class Gradual(ShotDetector):
    """Hard cuts, dissolves and fades, without a checkpoint.

    Fine detail of two pictures does not add up: halfway through a dissolve, half of its energy is gone, following (1 -
    a)^2 and a^2, unlike under motion or changes of light (Alattar 1993, for the variance). A dissolve is a run of
    frames whose detail follows that curve between two dissimilar pictures while the frames turn evenly from the first
    into the second. In a fade, detail decreases to nothing linearly in amplitude, up to the blank frames, and increases
    again. A hard cut is a frame that is dissimilar to the previous one, as are the two frames around them; flashes
    change only brightness and contrast, which are ignored. The most likely false dissolves are fast pans between
    dissimilar views.
    """

    dissolve_misfit: Annotated[
        float, "maximum deviation from the curve and even pace of a dissolve", Interval(gt=0, lt=1)
    ] = 0.09
    fade_misfit: Annotated[float, "maximum deviation from the linear decrease of a fade", Interval(gt=0, lt=1)] = 0.06
    hard_cut_similarity: Annotated[
        float,
        "correlation with the previous frame below which a frame starts a new shot",
        Interval(gt=0, lt=1),
        Formerly("hard_alike"),
    ] = 0.5

    origin: ClassVar[str] = "after Alattar 1993, Detecting and compressing dissolve regions in video sequences"

    def size_px(self, height_px: int, width_px: int) -> tuple[int, int]:
        """36 x 64 for all sources."""
        return HEIGHT_PX, WIDTH_PX

    def transitions(self, model: Any, frames: Iterable[np.ndarray], timeline: Timeline) -> list[Transition]:
        """See `ShotDetector.transitions`. Holds about 180 bytes per frame."""
        signal = measure(frames)
        plain = [_Candidate(0.0, start, stop, "plain") for start, stop in true_runs(signal.products[:, 0] < FLAT)]
        fades = _merge_fades(sorted([*_best(self._fades(signal)), *plain], key=lambda one: one.start))
        left = (one for one in self._dissolves(signal) if all(_disjoint(one, fade) for fade in fades))
        dissolves = [_transition([one], "dissolve") for one in _best(left)]
        soft = sorted([*fades, *dissolves])
        return sorted([*soft, *self._hard_cuts(signal, soft)], key=lambda one: one.start)

    def _dissolves(self, signal: "Signal") -> Iterator["_Candidate"]:
        for span in DISSOLVE_SPANS:
            for fit in _fits(signal, span):
                detail = np.minimum(fit.detail_a, fit.detail_b)
                misfit = fit.misfit + fit.uneven + UNEXPLAINED_WEIGHT * (1 - fit.explained)
                fits = (misfit < self.dissolve_misfit) & (fit.correlation < MAX_CORRELATION) & (detail > MIN_DETAIL)
                fits &= (fit.left_detail < MAX_LEFT_DETAIL) & (fit.explained > MIN_EXPLAINED)
                for place in np.flatnonzero(fits).tolist():
                    first, cost = fit.first + place, float(misfit[place]) / self.dissolve_misfit
                    yield _Candidate(cost, first + 1, first + span, "both")

    def _fades(self, signal: "Signal") -> Iterator["_Candidate"]:
        for span in FADE_SPANS:
            for fit in _fits(signal, span):
                good = (fit.fade_misfit < self.fade_misfit) & (fit.explained > MIN_FADE_EXPLAINED)
                ends = ((fit.detail_a, fit.power_a), (fit.detail_b, fit.power_b))
                for half, bright, dark in (("out", *ends), ("in", *ends[::-1])):
                    sinks = (dark[0] < MAX_DARK_SHARE * bright[0]) & (dark[1] < MAX_DARK_SHARE * bright[1])
                    sinks &= dark[0] <= fit.least_detail + MIN_DETAIL  # and does not increase again
                    for place in np.flatnonzero(good & sinks & (bright[0] > MIN_FADED_DETAIL)).tolist():
                        first = fit.first + place + (half == "out")  # the frame at the dark end is part of the fade
                        cost = float(fit.fade_misfit[place]) - LENGTH_WEIGHT * span
                        yield _Candidate(cost / self.fade_misfit, first, first + span, half)

    def _hard_cuts(self, signal: "Signal", soft: Sequence[Transition]) -> Iterator[Transition]:
        near, count = signal.correlation(1), len(signal.detail)
        usual = _around(1 - near)
        near[2:-1] = np.maximum(near[2:-1], signal.correlation(3)[3:])  # also compare the frames around the two
        least = np.minimum(1 - self.hard_cut_similarity, np.maximum(MIN_HARD_CHANGE, HARD_TIMES_USUAL * usual))
        free = np.ones(count + 2, bool)
        for one in soft:
            free[max(0, one.start - 1) : one.stop + 2] = False
        for place in np.flatnonzero((1 - near > least) & free[:count]).tolist():
            change = 1 - float(near[place])
            yield Transition(place, place, "hard", change / (change + float(least[place])))


@dataclass(frozen=True, eq=False)
class Signal:
    """Per-frame measurements of a source.

    `products`: float32 [T, MAX_SPAN + 1], mean product of the coarse pictures of frames t and t - k, without the mean
    of each channel (0 if there is no such frame); k = 0 is the variance. `detail`: float32 [T], energy of finer detail.
    """

    products: np.ndarray
    detail: np.ndarray

    def correlation(self, lag: int) -> np.ndarray:
        """float32 [T], correlation of frame t with frame t - lag, -1..1; 1 if there is no such frame."""
        count = len(self.detail)
        power = self.products[:, 0] + NOISE
        found = np.ones(count, np.float32)
        found[lag:] = self.products[lag:, lag] / np.sqrt(power[lag:] * power[: max(0, count - lag)])
        return found


def measure(frames: Iterable[np.ndarray]) -> Signal:
    """Measure `frames`, uint8 [36, 64, 3] RGB."""
    import cv2

    size = HEIGHT_PX // 2 * (WIDTH_PX // 2) * 3
    held = np.zeros((MAX_SPAN + 1, size), np.float32)  # ring buffer of coarse pictures: frame t in row t % length
    products, detail = array("f"), array("f")
    for number, frame in enumerate(frames):
        image = frame.astype(np.float32)
        fine = cv2.GaussianBlur(image, (0, 0), 1) - cv2.GaussianBlur(image, (0, 0), 5)
        detail.append(float(np.square(fine).mean()))
        coarse = cv2.resize(image, (WIDTH_PX // 2, HEIGHT_PX // 2), interpolation=cv2.INTER_AREA)
        coarse = cv2.GaussianBlur(coarse, (3, 3), 0)
        row = number % len(held)
        held[row] = (coarse - coarse.mean(axis=(0, 1))).ravel() / np.sqrt(size)
        products.frombytes(np.roll((held @ held[row])[::-1], row + 1).tobytes())
    shape = (len(detail), MAX_SPAN + 1)
    return Signal(np.frombuffer(products, np.float32).reshape(shape), np.frombuffer(detail, np.float32))


class _Candidate(NamedTuple):
    """A run of frames that may be a transition."""

    cost: float  # misfit relative to the allowed maximum
    start: int
    stop: int
    part: str  # both: a dissolve; out, in: half of a fade; plain: blank frames


class _Fit(NamedTuple):
    """How well frames i to i + span are explained as mixes of their two ends; arrays [N], i = first, first + 1, ..."""

    first: int
    misfit: np.ndarray  # of the detail amplitude from a dissolve's curve, relative to the mean of the ends
    fade_misfit: np.ndarray  # from a straight line
    left_detail: np.ndarray  # relative to the straight line between the ends' energies
    explained: np.ndarray  # share of the variance
    correlation: np.ndarray
    uneven: np.ndarray  # standard deviation of the mixing steps
    least_detail: np.ndarray  # of the frames between the ends
    detail_a: np.ndarray
    detail_b: np.ndarray
    power_a: np.ndarray
    power_b: np.ndarray


def _fits(signal: Signal, span: int) -> Iterator[_Fit]:
    places = max(0, len(signal.detail) - span)
    for first in range(0, places, CHUNK_FRAMES):
        yield _fit(signal, np.arange(first, min(places, first + CHUNK_FRAMES)), span)


def _fit(signal: Signal, start: np.ndarray, span: int) -> _Fit:
    products, energy = signal.products, signal.detail
    step = np.arange(1, span)
    inner, end = start[:, None] + step, start + span
    power_a, power_b, shared = products[start, 0], products[end, 0], products[end, span]
    with_a, with_b, own = products[inner, step], products[end[:, None], span - step], products[inner, 0]
    a, b, ab = (values[:, None] for values in (power_a + NOISE, power_b + NOISE, shared))
    scale = a * b - ab**2
    share_a, share_b = (b * with_a - ab * with_b) / scale, (a * with_b - ab * with_a) / scale  # least squares
    rest = own - 2 * share_a * with_a - 2 * share_b * with_b
    rest += share_a**2 * power_a[:, None] + share_b**2 * power_b[:, None] + 2 * share_a * share_b * ab
    edge = np.ones((len(start), 1), np.float32)
    steps = np.diff(np.concatenate([-edge, share_b - share_a, edge], axis=1), axis=1)
    detail_a, detail_b, at = energy[start], energy[end], energy[inner]
    share = (step / span).astype(np.float32)
    line = (1 - share) * detail_a[:, None] + share * detail_b[:, None]
    curve = np.sqrt((1 - share) ** 2 * detail_a[:, None] + share**2 * detail_b[:, None])
    sink = (1 - share) * np.sqrt(detail_a)[:, None] + share * np.sqrt(detail_b)[:, None]
    size = np.sqrt(line.mean(axis=1) + 1)
    return _Fit(
        first=int(start[0]),
        misfit=np.abs(np.sqrt(at) - curve).mean(axis=1) / size,
        fade_misfit=np.abs(np.sqrt(at) - sink).mean(axis=1) / size,
        left_detail=at.sum(axis=1) / (line.sum(axis=1) + 1),
        explained=1 - rest.sum(axis=1) / (own.sum(axis=1) + span * NOISE),
        correlation=shared / np.sqrt((power_a + NOISE) * (power_b + NOISE)),
        uneven=steps.std(axis=1),
        least_detail=at.min(axis=1),
        detail_a=detail_a,
        detail_b=detail_b,
        power_a=power_a,
        power_b=power_b,
    )


def _around(change: np.ndarray) -> np.ndarray:
    """Maximum of the three values before and the three after each, float32 [T]."""
    padded = np.pad(change, 3)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 7)
    return np.maximum(windows[:, :3].max(axis=1), windows[:, 4:].max(axis=1))


def _best(found: Iterable[_Candidate]) -> list[_Candidate]:
    """Of overlapping candidates, the one that fits best."""
    chosen: list[_Candidate] = []
    for one in sorted(found):
        if all(_disjoint(one, other) for other in chosen):
            chosen.append(one)
    return chosen


def _disjoint(one: _Candidate, other: _Candidate | Transition) -> bool:
    return one.stop <= other.start or one.start >= other.stop


def _merge_fades(found: Sequence[_Candidate]) -> list[Transition]:
    """Merge the halves of fades and blank frames into transitions. `found`: sorted by first frame.

    A single half without blank frames is discarded: the light of a scene may change in the same way.
    """
    groups: list[list[_Candidate]] = []
    for one in found:
        if groups and _same_fade(groups[-1][-1], one):
            groups[-1].append(one)
        else:
            groups.append([one])
    return [_transition(group, "fade") for group in groups if len(group) > 1 or _is_plain_stretch(group[0])]


def _is_plain_stretch(one: _Candidate) -> bool:
    return one.part == "plain" and one.stop - one.start >= MIN_PLAIN_FRAMES


def _same_fade(before: _Candidate, after: _Candidate) -> bool:
    """Whether two parts belong to the same fade: there is no bright frame between them."""
    return before.part != "in" and after.part != "out" and after.start - before.stop <= JOIN_FRAMES


def _transition(parts: Sequence[_Candidate], kind: TransitionKind) -> Transition:
    worst = min(1.0, max(0.0, max(part.cost for part in parts)))
    return Transition(parts[0].start, max(part.stop for part in parts), kind, 1 - worst / 2)
