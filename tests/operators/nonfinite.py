"""A filter whose arithmetic goes wrong: NaN and infinities in scores, nested scores, series and vectors."""

from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import numpy as np

from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.operator import Filter


class Place(NamedTuple):
    """A score within a score."""

    left: Annotated[float, "pixels"]
    name: Annotated[str, "of the place"]


class Scores(NamedTuple):
    """What is measured."""

    mean: Annotated[float, "mean level, or what `value` says"]
    single: Annotated[np.float32, "the same with 32 bits"]
    best: Annotated[Place | None, "nested"]
    series: Annotated[list[float], "per frame"]
    places: Annotated[list[Place], "nested in a list"]
    vector: Annotated[list[np.float32] | None, "an embedding"]


@dataclass(frozen=True)
class Nonfinite(Filter):
    """Gives `value` as every score of clips whose source contains `word`, 1 elsewhere."""

    value: Annotated[str, "a float as text"] = "nan"
    word: Annotated[str, "part of the names of the sources concerned"] = "clip-000"
    vectors: Annotated[bool, "also in the vector"] = False

    origin = "made for the tests"

    def run(self, model: Any, clip: DecodedClip) -> Scores:
        """Frames to scores."""
        value = float(self.value) if self.word in clip.clip.source else 1.0
        place = Place(value, "here")
        vector = [np.float32(value if self.vectors else 1.0), np.float32(2)]
        return Scores(value, np.float32(value), place, [0.5, value], [place], vector)
