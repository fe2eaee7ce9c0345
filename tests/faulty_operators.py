"""Operators with one fault each, which tests/test_every_operator.py must detect."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np

from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.modality import Modality
from openuni.manifests.contracts.operator import Annotator, Filter
from openuni.manifests.contracts.window_filter import WindowFilter
from openuni.manifests.contracts.windows import WindowedRun
from openuni.manifests.modalities.segmentation import Segmentation


class Scores(NamedTuple):
    value: Annotated[float, "mean value, 0 to 255"]


class OtherScores(NamedTuple):
    value: Annotated[float, "mean value, 0 to 255"]


class SilentScores(NamedTuple):
    value: float


class Maps(NamedTuple):
    segmentation: Segmentation


@dataclass(frozen=True)
class Good(Filter):
    """Mean value of the frames: an operator without a fault, to test that all checks pass."""

    gain: Annotated[float, "factor, above 0"] = 1.0

    origin: ClassVar[str] = "made up for the tests"

    def run(self, model: Any, clip: DecodedClip) -> Scores:
        """The score."""
        return Scores(float(clip.frames.mean() * self.gain))


@dataclass(frozen=True)
class WritesInput(Good):
    """Draws a black line into the frames, which other operators share."""

    def run(self, model: Any, clip: DecodedClip) -> Scores:
        """The score."""
        clip.frames.flags.writeable = True
        clip.frames[:, 0] = 0
        clip.frames.flags.writeable = False
        return Scores(0.0)


@dataclass(frozen=True)
class WritesTimes(Good):
    """Shifts the timestamps, which other operators share."""

    def run(self, model: Any, clip: DecodedClip) -> Scores:
        """The score."""
        clip.times_s.flags.writeable = True
        np.add(clip.times_s, 1, out=clip.times_s)
        return Scores(0.0)


@dataclass(frozen=True)
class UnlocksInput(Good):
    """Makes the frames writeable and leaves them so for the next operator."""

    def run(self, model: Any, clip: DecodedClip) -> Scores:
        """The score."""
        clip.frames.flags.writeable = True
        return Scores(0.0)


@dataclass(frozen=True)
class ReturnsOther(Good):
    """Declares one NamedTuple and returns another one."""

    def run(self, model: Any, clip: DecodedClip) -> Scores:
        """The score."""
        return OtherScores(0.0)


@dataclass(frozen=True)
class ReturnsNumPy(Good):
    """Returns a NumPy scalar where a float is declared."""

    def run(self, model: Any, clip: DecodedClip) -> Scores:
        """The score."""
        return Scores(clip.frames.astype(np.float32).mean())


@dataclass(frozen=True)
class ReturnsNone(Good):
    """Returns None where a float is declared."""

    def run(self, model: Any, clip: DecodedClip) -> Scores:
        """The score."""
        return Scores(None)


@dataclass(frozen=True)
class ReturnsNan(Good):
    """Returns NaN for what it cannot measure."""

    def run(self, model: Any, clip: DecodedClip) -> Scores:
        """The score."""
        return Scores(float("nan"))


@dataclass(frozen=True)
class ForgetsAFrame(Annotator):
    """Returns one map fewer than there are frames."""

    origin: ClassVar[str] = "made up for the tests"

    def run(self, model: Any, clip: DecodedClip) -> Maps:
        """The maps."""
        count, height_px, width_px = clip.frames.shape[:3]
        return Maps(Segmentation(np.zeros((count - 1, height_px, width_px, 1), np.uint16)))


@dataclass(frozen=True)
class FilterWithMaps(Filter):
    """A filter that returns maps, which the column group of a filter cannot hold."""

    origin: ClassVar[str] = "made up for the tests"

    def run(self, model: Any, clip: DecodedClip) -> Maps:
        """The maps."""
        return Maps(Segmentation(np.zeros((*clip.frames.shape[:3], 1), np.uint16)))


@dataclass(frozen=True)
class RangePerWindow(WindowFilter):
    """Takes the range of each window for that of the clip."""

    origin: ClassVar[str] = "made up for the tests"

    def measure(self, model: Any, clip: DecodedClip) -> list[float]:
        """One value per frame, relative to the brightest one at hand."""
        means = clip.new_frames.mean(axis=(1, 2, 3))
        return list(means / means.max())

    def summarize(self, measured: Sequence[float]) -> Scores:
        """The score."""
        return Scores(float(np.mean(measured)))


@dataclass(frozen=True)
class ForgetsTheOverlap(WindowFilter):
    """Measures the first frame of a window again."""

    origin: ClassVar[str] = "made up for the tests"

    def measure(self, model: Any, clip: DecodedClip) -> list[float]:
        """One value per frame."""
        return [float(frame.mean()) for frame in clip.frames]

    def summarize(self, measured: Sequence[float]) -> Scores:
        """The score."""
        return Scores(float(np.sum(measured)))


@dataclass(frozen=True)
class ForgetsTheLastMap(Annotator):
    """Has one map fewer than there are frames, but only in windows."""

    origin: ClassVar[str] = "made up for the tests"

    def run(self, model: Any, clip: DecodedClip) -> Maps:
        """The maps."""
        return Maps(Segmentation(clip.frames[..., :1].astype(np.uint16)))

    def start_windows(self, model: Any) -> "MapsOfPairs":
        """See `Operator.start_windows`."""
        return MapsOfPairs()


class MapsOfPairs(WindowedRun[Maps]):
    """The map of the first frame of each pair."""

    def add(self, window: DecodedClip) -> dict[str, Modality]:
        """See `WindowedRun.add`."""
        return {"segmentation": Segmentation(window.frames[:-1, ..., :1].astype(np.uint16))}

    def result(self) -> Maps:
        """See `WindowedRun.result`."""
        return Maps(None)


@dataclass(frozen=True)
class Random(Good):
    """Returns a random score on every run."""

    def run(self, model: Any, clip: DecodedClip) -> Scores:
        """The score."""
        return Scores(float(np.random.default_rng().random()))


@dataclass(frozen=True)
class RandomWeights(Good):
    """Loads random weights on every load."""

    def load(self, device: str) -> float:
        return float(np.random.default_rng().random())

    def run(self, model: Any, clip: DecodedClip) -> Scores:
        """The score."""
        return Scores(model)


@dataclass(frozen=True)
class NeedsTwoFrames(Good):
    """Compares the second frame with the first, even for a clip of one frame."""

    def run(self, model: Any, clip: DecodedClip) -> Scores:
        """The score."""
        return Scores(float(clip.frames[1].mean() - clip.frames[0].mean()))


@dataclass(frozen=True)
class NeedsContrast(Good):
    """Divides by the spread of the frames, which a uniform clip does not have."""

    def run(self, model: Any, clip: DecodedClip) -> Scores:
        """The score."""
        spread = clip.frames.std()
        return Scores(float(clip.frames.mean() / spread) if spread else float("nan"))


@dataclass(frozen=True)
class WritesMap(Annotator):
    """Modifies its input map, which is shared with other operators and stored."""

    origin: ClassVar[str] = "made up for the tests"

    def requires(self) -> tuple[str, ...]:
        """Ids."""
        return ("segmentation",)

    def run(self, model: Any, clip: DecodedClip) -> Scores:
        """The score."""
        clip.maps["segmentation"].array[0] = 1
        return Scores(0.0)


@dataclass(frozen=True)
class NoDocstring(Good):
    gain: Annotated[float, "factor, above 0"] = 1.0


@dataclass(frozen=True)
class SilentOption(Good):
    """Has an option without a description, and no other fault."""

    threshold: float = 0.5


@dataclass(frozen=True)
class SilentScore(Good):
    """Has a score without a description, and no other fault."""

    def run(self, model: Any, clip: DecodedClip) -> SilentScores:
        """The score."""
        return SilentScores(0.0)


@dataclass(frozen=True)
class NoOrigin(Good):
    """Does not name the paper or project that its method comes from."""

    origin: ClassVar[str] = ""


@dataclass
class NotFrozen:
    """An operator whose options can be assigned after construction."""

    gain: float = 1.0

    options = classmethod(lambda cls: Good.options())

    def __hash__(self) -> int:
        return hash(self.gain)


@dataclass(frozen=True)
class NotHashable(Good):
    """Has a list among its options, which cannot be hashed."""

    labels: Annotated[list[str] | None, "names"] = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", ["a"])


@dataclass(frozen=True)
class VersionPerProcess(Good):
    """Has a set as an option: its order, and therefore the version, differs between processes."""

    labels: Annotated[frozenset[str], "names"] = frozenset("abcdefgh")


@dataclass(frozen=True)
class VersionForgetsOptions(Good):
    """Has the same version for all options, so a changed option would not cause recomputation."""

    def version(self) -> str:
        return "0" * 16


@dataclass(frozen=True)
class SamplesBackwards(Good):
    """Samples frames in the wrong order."""

    def sample(self, times_s: np.ndarray) -> np.ndarray:
        return np.arange(len(times_s), dtype=np.int64)[::-1]


@dataclass(frozen=True)
class SamplesTooFar(Good):
    """Samples a frame after the last one."""

    def sample(self, times_s: np.ndarray) -> np.ndarray:
        return np.array([0, len(times_s)], dtype=np.int64)
